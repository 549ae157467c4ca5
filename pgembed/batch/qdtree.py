"""A qd-tree: rows cut by the workload's own conditions, so that queries skip leaves.

A node asks whether rows meet one condition. Its cost is the number of rows that the
workload touches below it, in every leaf in which some row meets a query's condition:
all rows of the leaf, or those that its nearest posting lists hold, or those that meet
the condition, whatever is least. So a cut has to save those who ask for one side more
than it costs those who ask for both and have to look into the nearest lists of either.
Cuts are chosen greedily, the one that saves most first; a leaf keeps what holds in all
of its rows, and what in none. Centroids cut every leaf again, into posting lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float64 = NDArray[np.float64]

_LEAST_GAIN = 0.01
"""A cut has to save this share of what the whole workload touches without any."""
_GATHER = 2.0
"""What a row costs that is fetched by itself, in rows of a list."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Rows of the same answers: conditions that all of them meet, or none."""

    signatures: Ints
    rows: int
    holds: tuple[int, ...]
    """Conditions by which the tree was cut on the way here, and which hold."""
    fails: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tree:
    """The leaves, the leaf (n,) of each row, and rows touched before and after."""

    leaves: tuple[Leaf, ...]
    leaf: Ints
    touched_before: float
    touched: float


def grow(
    words: NDArray[np.uint64],
    weights: Float64,
    *,
    least_rows: int,
    probed_rows: float,
    most_leaves: int = 64,
) -> Tree:
    """Build the tree over rows whose conditions are bits of *words* (n,).

    *weights* (f,) are how many queries have each condition, f at most 64. No leaf has
    fewer than *least_rows*, unless there are fewer in all. *probed_rows*: how many rows
    the posting lists hold that a query looks into, where all rows count for it.
    """
    values, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    shifts = np.arange(len(weights), dtype=np.uint64)
    answers = np.asarray(values[:, None] >> shifts & np.uint64(1), bool)
    grower = _Grower(
        answers, counts.astype(np.float64), weights, least_rows, probed_rows
    )
    root = Leaf(np.arange(len(values)), len(words), (), ())
    before = grower.cost(root.signatures)
    leaves = grower.leaves(root, before * _LEAST_GAIN, most_leaves)
    of_signature = np.zeros(len(values), np.int64)
    for number, leaf in enumerate(leaves):
        of_signature[leaf.signatures] = number
    after = sum(grower.cost(leaf.signatures) for leaf in leaves)
    return Tree(tuple(leaves), of_signature[inverse], before, after)


class _Grower:
    def __init__(
        self,
        answers: Bools,
        counts: Float64,
        weights: Float64,
        least_rows: int,
        probed_rows: float,
    ) -> None:
        self._answers, self._counts = answers, counts
        self._weights, self._least = weights, least_rows
        self._probed = probed_rows

    def cost(self, signatures: Ints) -> float:
        """Return the rows that the workload touches, if this is a leaf."""
        counts = self._counts[signatures]
        meeting = counts @ self._answers[signatures]
        return float(self._touched(counts.sum(), meeting) @ self._weights)

    def _touched(self, rows: Float64, meeting: Float64) -> Float64:
        """Return what one query touches of leaves of *rows*, of which *meeting* count.

        Among rows of which few count, the nearest of them lie in as many more lists.
        """
        few = rows / np.maximum(meeting, 1) * self._probed
        return np.minimum(np.minimum(rows, few), _GATHER * meeting)

    def leaves(self, root: Leaf, least_gain: float, most: int) -> list[Leaf]:
        """Cut the leaf with the best cut, until none is good enough."""
        open_cuts = [(root, *self._best_cut(root))]
        while len(open_cuts) < most:
            index = max(range(len(open_cuts)), key=lambda i: open_cuts[i][1])
            leaf, gain, condition = open_cuts[index]
            if gain <= least_gain:
                break
            open_cuts[index : index + 1] = [
                (child, *self._best_cut(child)) for child in self._cut(leaf, condition)
            ]
        return [leaf for leaf, _, _ in open_cuts]

    def _best_cut(self, leaf: Leaf) -> tuple[float, int]:
        """Return what the best condition to cut by saves, and that condition."""
        answers = self._answers[leaf.signatures].astype(np.float64)
        counts = self._counts[leaf.signatures]
        # Rows that meet both of two conditions, and by that all that cuts do.
        both = (answers * counts[:, None]).T @ answers
        inside, total = np.diag(both), counts.sum()
        outside = total - inside
        touched_in = self._touched(inside[:, None], both)
        touched_out = self._touched(outside[:, None], inside[None, :] - both)
        gains = self.cost(leaf.signatures) - (touched_in + touched_out) @ self._weights
        gains[np.minimum(inside, total - inside) < self._least] = -np.inf
        if not len(gains):
            return -np.inf, -1
        best = int(gains.argmax())
        return float(gains[best]), best

    def _cut(self, leaf: Leaf, condition: int) -> Iterator[Leaf]:
        met = self._answers[leaf.signatures, condition]
        for chosen, holds, fails in (
            (met, (condition,), ()),
            (~met, (), (condition,)),
        ):
            signatures = leaf.signatures[chosen]
            rows = int(self._counts[signatures].sum())
            yield Leaf(signatures, rows, leaf.holds + holds, leaf.fails + fails)
