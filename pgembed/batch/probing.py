"""Searching posting lists: which of them a query has to look into.

Two rules say how much has to be conceded before a query q looks into a list:

- *cosine*: a row of a list with centre m lies at m + e, and its score is that of the
  centre plus (q - m) · e. So the list holds a row above the score s only if
  (s - base) / (|q - m| · |e|) does not exceed the cosine between q - m and some e.
- *gap*: how much farther the list's centre is than the nearest one.

How much has to be conceded is a matter of the data. For either rule the limit is
measured on a sample of the workload's own queries, which are answered exactly; the rule
that then looks at fewer rows is taken.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.corpus import Segments
from pgembed.batch.engine import Scan, Task
from pgembed.batch.metric import Metric
from pgembed.batch.passing import Passing

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_COSINE, _GAP = 0, 1
_CHUNK = 1024
_FIRST_LISTS = 48
_NEIGHBOURS = 100
_CERTAINTY = 1.64
"""Standard errors between the sample's recall and the one that is asked for."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Queries and the lists they look into, (p,) each."""

    queries: Ints
    lists: Ints


@dataclasses.dataclass(frozen=True)
class Limits:
    """What each query (q,) concedes, and by which rule."""

    rule: Ints
    limit: Float32


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A rule with its limit, the recall that it showed, and the rows it looks at."""

    rule: int
    limit: float
    recall: float
    rows: float
    lists: float


class Prober:
    """Lists for the queries of a workload; *members* (q,) are their conditions."""

    def __init__(
        self,
        metric: Metric,
        segments: Segments,
        passing: Passing,
        members: Ints,
        width: int,
    ) -> None:
        self.metric, self.segments, self.passing = metric, segments, passing
        self.members, self.width = members, width
        self._counts: dict[int, Ints] = {}
        self._centre_norms = np.einsum(
            "cd,cd->c", segments.lists.centres, segments.lists.centres
        )

    def counts(self, condition: int) -> Ints:
        """Return (c,): the rows of each list that meet a condition."""
        if condition not in self._counts:
            positions = self.passing.positions(condition)
            self._counts[condition] = self.segments.counts(positions)
        return self._counts[condition]

    def first(self, queries: Ints) -> Pairs:
        """Return the nearest lists, enough to hold the candidates of each query."""
        found = [self._first(part) for part in _chunks(queries)]
        return _join(found)

    def _first(self, queries: Ints) -> Pairs:
        base, _, _ = self._geometry(queries)
        there = self._there(queries)
        base[there == 0] = -np.inf
        most = min(_FIRST_LISTS, base.shape[1])
        order = np.argpartition(-base, most - 1, axis=1)[:, :most]
        scores = np.take_along_axis(base, order, axis=1)
        order = np.take_along_axis(order, np.argsort(-scores, axis=1), axis=1)
        rows = np.take_along_axis(there, order, axis=1)
        before = np.cumsum(rows, axis=1) - rows
        row, column = np.nonzero((before < 2 * self.width) & (rows > 0))
        return Pairs(queries[row], order[row, column])

    def rest(self, queries: Ints, scores: Float32, limits: Limits, but: Pairs) -> Pairs:
        """Return the lists within *limits* of the queries, beyond those of *but*.

        *queries* (q,) are sorted; *scores* (q,) are the k-th best so far.
        """
        found = []
        done = np.searchsorted(queries, but.queries)
        for start in range(0, len(queries), _CHUNK):
            part = slice(start, start + _CHUNK)
            chosen = queries[part]
            needed = self.needed(chosen, scores[part], limits.rule[chosen])
            wanted = needed <= limits.limit[chosen][:, None]
            inside = (done >= start) & (done < start + _CHUNK)
            wanted[done[inside] - start, but.lists[inside]] = False
            row, column = np.nonzero(wanted)
            found.append(Pairs(chosen[row], column))
        return _join(found)

    def needed(self, queries: Ints, scores: Float32, rules: Ints) -> Float32:
        """Return (q, c): what has to be conceded to look into each list.

        That is infinite where no row counts. *scores* (q,) are to be exceeded.
        """
        base, spread, gap = self._geometry(queries)
        needed = (scores[:, None] - base) / spread
        there = self._there(queries) > 0
        gap[~there] = np.inf
        gap -= np.minimum(gap.min(axis=1), np.float32(1e30))[:, None]
        by_gap = rules == _GAP
        needed[by_gap] = gap[by_gap]
        needed[~there] = np.inf
        return np.asarray(needed)

    def _geometry(self, queries: Ints) -> tuple[Float32, Float32, Float32]:
        """Return (q, c): expected score, how far rows spread around it, distance."""
        lists, distance = self.segments.lists, self.metric.distance
        vectors = self.metric.scan_queries[queries]
        base = vectors @ lists.centres.T
        own = np.einsum("qd,qd->q", vectors, vectors)
        if distance == "inner_product":
            away = np.broadcast_to(np.sqrt(own)[:, None], base.shape)
            gap = -base
        else:
            squares = own[:, None] - 2 * base + self._centre_norms
            away = np.sqrt(np.maximum(squares, 0))
            gap = away.copy()
        spread = np.maximum(away * lists.spreads, np.float32(1e-12))
        if distance == "l2":
            base -= lists.lengths / 2
        return base, spread, gap

    def _there(self, queries: Ints) -> Ints:
        """Return (q, c): how many rows of each list count for each query."""
        conditions, inverse = np.unique(self.members[queries], return_inverse=True)
        table = np.stack([self.counts(int(c)) for c in conditions])
        return np.asarray(table[inverse])

    def tasks(self, pairs: Pairs) -> list[Task]:
        """Group pairs by list."""
        order = np.lexsort((pairs.queries, pairs.lists))
        lists, queries = pairs.lists[order], pairs.queries[order]
        first = np.flatnonzero(np.diff(lists, prepend=-1))
        sizes = self.segments.sizes()
        found = []
        for number, group in zip(
            lists[first].tolist(), np.split(queries, first)[1:], strict=True
        ):
            # Leaves have lists all of whose rows meet a condition.
            tested = any(
                self.counts(int(c))[number] < sizes[number]
                for c in np.unique(self.members[group])
            )
            found += [
                Task(group, rows, tested) for rows in self.segments.slices(number)
            ]
        return found


def kth_scores(scan: Scan, queries: Ints, k: Ints) -> Float32:
    """Return the k-th best score so far of each of *queries* (m,)."""
    estimates, _ = scan.best()
    ordered = -np.sort(-estimates[queries], axis=1)
    return np.asarray(ordered[np.arange(len(queries)), k - 1])


def _chunks(queries: Ints) -> list[Ints]:
    return [queries[i : i + _CHUNK] for i in range(0, len(queries), _CHUNK)]


def _join(parts: list[Pairs]) -> Pairs:
    none = np.empty(0, np.int64)
    return Pairs(
        np.concatenate([none, *(p.queries for p in parts)]),
        np.concatenate([none, *(p.lists for p in parts)]),
    )


def calibrate(
    prober: Prober, scan: Scan, sample: Ints, k: Ints, recall: float
) -> Calibration:
    """Measure on *sample* (s,), queries that were answered exactly, how far to look."""
    estimates, positions = scan.best()
    estimates, positions = estimates[sample], positions[sample].astype(np.int64)
    order = np.argsort(-estimates, axis=1)
    estimates = np.take_along_axis(estimates, order, axis=1)
    positions = np.take_along_axis(positions, order, axis=1)
    most = int(k.max())
    steps = np.unique(np.linspace(0, most - 1, min(most, _NEIGHBOURS)).astype(int))
    counts = (steps < k[:, None]) & (positions[:, steps] >= 0)
    lists = prober.segments.of(np.maximum(positions[:, steps], 0))
    first = prober.first(sample)
    looked = np.searchsorted(sample, first.queries), first.lists
    reached = estimates[np.arange(len(sample)), k - 1]
    sizes = prober.segments.sizes()
    found = []
    for rule in (_COSINE, _GAP):
        needed = prober.needed(sample, reached, np.full(len(sample), rule))
        needed[looked] = -np.inf
        values = np.take_along_axis(needed, lists, axis=1)
        limit, measured = _limit(values, counts, recall)
        within = needed <= limit
        rows = float((within @ sizes).mean())
        mean_lists = float(within.sum(axis=1).mean())
        found.append(Calibration(rule, limit, measured, rows, mean_lists))
    return min(found, key=lambda calibration: calibration.rows)


def _limit(
    values: Float32, counts: NDArray[np.bool_], recall: float
) -> tuple[float, float]:
    """Return the smallest limit whose recall is surely enough, and that recall.

    *values* (s, w): what each true neighbour's list needs, where *counts*.
    """
    finite = values[counts & np.isfinite(values)]
    if not len(finite):
        return -np.inf, 1.0
    options = np.unique(np.quantile(finite, np.linspace(0, 1, 200), method="higher"))
    total = np.maximum(counts.sum(axis=1), 1)
    for option in options:
        shares = ((values <= option) & counts).sum(axis=1) / total
        doubt = _CERTAINTY * shares.std() / np.sqrt(len(shares))
        if shares.mean() - doubt >= recall:
            return float(option), float(shares.mean())
    return float(options[-1]), 1.0
