"""From candidates to the answer: exact distances, ties by key, and a certificate.

Candidates are chosen by float32 estimates. They are ranked by float64 distances, and
an answer stands only if nothing that was left out can belong to it; otherwise its
query is asked again, for more candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.metric import Metric

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Found = tuple[Float32, NDArray[np.int32], NDArray[np.bool_]]
Search = Callable[[Ints, int], Found]
Ranks = Callable[[Ints], Ints]


class Ranking:
    """Ranks candidates of all queries of *metric*.

    *search* returns scores and positions (m, width) for queries (m,) and a width, and
    for which of them (m,) all rows were looked at, so that the certificate is due (when
    vectors are rounded, it is for all); *ranks* the ranks of the keys of positions
    (p,), equal for one row's chunks.
    """

    def __init__(
        self, metric: Metric, k: Ints, search: Search, ranks: Ranks, *, chunked: bool
    ) -> None:
        self._metric, self._k = metric, k
        self._search, self._ranks, self._chunked = search, ranks, chunked
        most = min(int(k.max(initial=1)), max(1, len(metric.vectors)))
        self.positions = np.full((len(k), most), -1, np.int64)
        self.distances = np.full((len(k), most), np.inf)
        self.repeated = 0
        """Queries that had to be asked again."""

    def run(self) -> None:
        """Fill ``positions`` and ``distances`` (q, k); -1 and infinity: no more."""
        total = len(self._metric.vectors)
        queries, width = np.arange(len(self._k)), first_width(self._k)
        most = len(queries) * width
        while len(queries) and total:
            width = min(width, total)
            # Fewer at once as each needs more memory.
            parts = np.array_split(queries, -(-len(queries) * width // most))
            queries = np.concatenate([self._round(part, width) for part in parts])
            self.repeated += len(queries)
            width *= 4

    def _round(self, queries: Ints, width: int) -> Ints:
        """Settle what can be settled of *queries*; return the others."""
        estimates, found, thorough = self._search(queries, width)
        positions = found.astype(np.int64)
        distances, scores = self._metric.exact(queries, positions)
        order, distances = self._order(positions, distances)
        positions = np.take_along_axis(positions, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
        none = np.isinf(distances)
        positions[none], scores[none] = -1, -np.inf
        wanted = np.minimum(self._k[queries], width)
        reached = scores[np.arange(len(queries)), wanted - 1]
        # Those left out have estimates no higher than any that was kept.
        margin = estimates.min(axis=1) + self._metric.tolerance[queries]
        complete = (found < 0).any(axis=1) | (width >= len(self._metric.vectors))
        short = (wanted < self._k[queries]) | np.isneginf(reached)
        # Recall is measured by lists, which says nothing of what rounding hides.
        due = thorough | (not self._metric.vectors.rounding.lossless)
        settled = complete | (((reached > margin) | ~due) & ~short)
        keep = min(self.positions.shape[1], width)
        beyond = np.arange(keep) >= self._k[queries][:, None]
        positions, distances = positions[:, :keep], distances[:, :keep]
        positions[beyond], distances[beyond] = -1, np.inf
        self.positions[queries[settled], :keep] = positions[settled]
        self.distances[queries[settled], :keep] = distances[settled]
        return np.asarray(queries[~settled])

    def _order(self, positions: Ints, distances: Float64) -> tuple[Ints, Float64]:
        """Return the order by distance and key, and the distances in it."""
        ranks = np.zeros(positions.shape, np.int64)
        order = np.argsort(distances, axis=1, kind="stable")
        asked = positions >= 0 if self._chunked else _tied(order, distances)
        if asked.any():
            distinct, inverse = np.unique(positions[asked], return_inverse=True)
            ranks[asked] = self._ranks(distinct)[inverse]
            order = np.lexsort((ranks, distances), axis=1)
        if self._chunked:
            distances = _only_nearest(distances, ranks, order)
            order = np.lexsort((ranks, distances), axis=1)
        return order, np.take_along_axis(distances, order, axis=1)


def first_width(k: Ints) -> int:
    """How many candidates to look for: some more than are asked for."""
    most = int(k.max(initial=1))
    return most + max(6, most // 4)


def _tied(order: Ints, distances: Float64) -> NDArray[np.bool_]:
    """Return (q, w): whether another candidate of the query is as far away."""
    ordered = np.take_along_axis(distances, order, axis=1)
    same = (ordered[:, 1:] == ordered[:, :-1]) & np.isfinite(ordered[:, 1:])
    tied = np.zeros(order.shape, bool)
    tied[:, 1:] |= same
    tied[:, :-1] |= same
    result = np.zeros(order.shape, bool)
    np.put_along_axis(result, order, tied, axis=1)
    return result


def _only_nearest(distances: Float64, ranks: Ints, order: Ints) -> Float64:
    """Put the farther chunks of a row that has several at an infinite distance."""
    by_row = np.lexsort((np.argsort(order, axis=1), ranks), axis=1)
    ordered = np.take_along_axis(ranks, by_row, axis=1)
    again = np.zeros(ranks.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = distances.copy()
    rows, columns = np.nonzero(again)
    result[rows, by_row[rows, columns]] = np.inf
    return result
