"""Searching posting lists: which of them a query has to look into.

A query looks into the nearest lists that hold enough rows which count for it, and into
every list whose centre is not much farther than the nearest of those that hold any. How
much farther is a matter of the data and of the condition: the limit is measured on a
sample of the workload's own queries, which are answered exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.corpus import Segments
from pgembed.batch.engine import Scan, Task
from pgembed.batch.metric import Metric
from pgembed.batch.passing import Passing

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHUNK = 1024
_FIRST_LISTS = 48
_NEIGHBOURS = 100
_FACTORS = np.geomspace(0.25, 8, 61)
_CERTAINTY = 1.64
"""Standard errors between the sample's recall and the one that is asked for."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Queries and the lists they look into, (p,) each."""

    queries: Ints
    lists: Ints

    def __len__(self) -> int:
        return len(self.queries)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How much farther to look, the recall that it showed, and what it looks at."""

    limit: float
    recall: float
    rows: float
    """The rows of the lists that a query looks into, on average."""
    lists: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """Queries of a group that were answered exactly."""

    needed: Float32
    """(s, c): see :meth:`Prober.needed`."""
    values: Float32
    """(s, w): the same for the lists of each one's true neighbours."""
    counts: NDArray[np.bool_]
    """(s, w): which of the *values* there are."""

    @property
    def enough(self) -> Float32:
        """Return (s,): how much farther each query has to look to find them all."""
        return np.asarray(np.where(self.counts, self.values, 0).max(axis=1).clip(0))

    def shares(self, limits: Float32) -> Float64:
        """Return (s,): the share of its neighbours that each finds with *limits*."""
        missed = ((self.values > limits[:, None]) & self.counts).sum(axis=1)
        return np.asarray(1 - missed / np.maximum(self.counts.sum(axis=1), 1))


class Prober:
    """Lists for the queries of a workload; *members* (q,) are their conditions."""

    def __init__(
        self,
        metric: Metric,
        segments: Segments,
        passing: Passing,
        members: Ints,
        width: int,
        threads: int,
    ) -> None:
        self.metric, self.segments, self.passing = metric, segments, passing
        self.members, self.width, self.threads = members, width, threads
        self._centre_norms = np.einsum(
            "cd,cd->c", segments.lists.centres, segments.lists.centres
        )

    def pairs(self, queries: Ints, limits: Float32) -> tuple[Pairs, Pairs]:
        """Return the lists that *queries* (q,) look into with *limits* (q,).

        The nearest come first: they yield thresholds for the others.
        """
        # So that all threads together need the memory of one chunk.
        size = max(1, _CHUNK // self.threads)

        def part(start: int) -> tuple[Pairs, Pairs]:
            chosen = queries[start : start + size]
            needed = self.needed(chosen)
            row, column = np.nonzero(np.isneginf(needed))
            near = Pairs(chosen[row], column)
            needed[row, column] = np.inf
            row, column = np.nonzero(needed <= limits[start : start + size, None])
            return near, Pairs(chosen[row], column)

        with ThreadPoolExecutor(self.threads) as pool:
            parts = list(pool.map(part, range(0, len(queries), size)))
        return _joined([near for near, _ in parts]), _joined([far for _, far in parts])

    def needed(self, queries: Ints) -> Float32:
        """Return (q, c): how much farther each list is than the nearest that counts.

        Infinity where no row counts, and minus infinity for the nearest lists, which
        are looked into in any case.
        """
        away, there = self._away(queries), self._there(queries)
        away[there == 0] = np.inf
        nearest = self._nearest(away, there)
        away -= np.minimum(away.min(axis=1), np.float32(1e30))[:, None]
        away[nearest] = -np.inf
        return away

    def _nearest(self, away: Float32, there: NDArray[np.int32]) -> tuple[Ints, Ints]:
        """Return the nearest lists with enough rows for the candidates, as indices."""
        most = min(_FIRST_LISTS, away.shape[1])
        order = np.argpartition(away, most - 1, axis=1)[:, :most]
        sizes = np.take_along_axis(away, order, axis=1)
        order = np.take_along_axis(order, np.argsort(sizes, axis=1), axis=1)
        rows = np.take_along_axis(there, order, axis=1)
        before = np.cumsum(rows, axis=1) - rows
        row, column = np.nonzero((before < 2 * self.width) & (rows > 0))
        return row, order[row, column]

    def _away(self, queries: Ints) -> Float32:
        """Return (q, c): how far the centre of each list is."""
        centres = self.segments.lists.centres
        vectors = self.metric.scan_queries[queries]
        products = vectors @ centres.T
        if self.metric.distance == "inner_product":
            return np.asarray(-products)
        own = np.einsum("qd,qd->q", vectors, vectors)
        squares = own[:, None] - 2 * products + self._centre_norms
        return np.asarray(np.sqrt(np.maximum(squares, 0)))

    def _there(self, queries: Ints) -> NDArray[np.int32]:
        """Return (q, c): how many rows of each list count for each query."""
        return self.passing.in_lists[self.members[queries]]

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
            meeting = self.passing.in_lists[self.members[group], number]
            tested = bool((meeting < sizes[number]).any())
            found += [
                Task(group, rows, tested) for rows in self.segments.slices(number)
            ]
        return found


def _joined(parts: list[Pairs]) -> Pairs:
    none = np.empty(0, np.int64)
    return Pairs(
        np.concatenate([none, *(p.queries for p in parts)]),
        np.concatenate([none, *(p.lists for p in parts)]),
    )


def sample_of(prober: Prober, scan: Scan, queries: Ints, k: Ints) -> Sample:
    """Return what *queries* (s,), which were answered exactly, had to look into."""
    estimates, found = scan.best(queries)
    order = np.argsort(-estimates, axis=1)
    positions = np.take_along_axis(found, order, axis=1).astype(np.int64)
    most = int(k.max())
    steps = np.unique(np.linspace(0, most - 1, min(most, _NEIGHBOURS)).astype(int))
    counts = (steps < k[:, None]) & (positions[:, steps] >= 0)
    lists = prober.segments.of(np.maximum(positions[:, steps], 0))
    needed = prober.needed(queries)
    return Sample(needed, np.take_along_axis(needed, lists, axis=1), counts)


def calibrate(
    groups: Sequence[tuple[Ints, Sample]], sizes: Ints, recall: float
) -> list[Calibration]:
    """Choose how far the queries of each group look, from a sample of others of it.

    A group looks as far as the neediest query of its sample, times a factor for all
    groups. The factor is the least with which the queries of the samples reach the
    *recall* if each of them has to do with what the others of its group need: leave
    one out. With no such factor the limits are infinite. *sizes* (c,) are the rows of
    the lists.
    """
    if not groups:
        return []
    samples = [sample for _, sample in groups]
    most = np.array([sample.enough.max() for sample in samples])
    # Where a sample needs next to nothing, others of its group may need more.
    least = [_median(np.delete(most, i)) / 2 for i in range(len(most))]
    bases = [
        _without_each(sample.enough).clip(floor)
        for sample, floor in zip(samples, least, strict=True)
    ]
    weights = [
        np.full(len(base), max(1, len(group)) / len(base))
        for base, (group, _) in zip(bases, groups, strict=True)
    ]
    factor, shares = _factor(samples, bases, np.concatenate(weights), recall)
    limits = factor * np.maximum(most, least).clip(1e-12)
    return [
        _calibration(sample, float(limit), share, sizes)
        for sample, limit, share in zip(samples, limits, shares, strict=True)
    ]


def _factor(
    samples: list[Sample], bases: list[Float32], weights: Float64, recall: float
) -> tuple[float, list[Float64]]:
    """Return the least factor for *bases* that is surely enough, and the shares found.

    *weights* are those of all queries of the samples.
    """
    weights = weights / weights.sum()
    for factor in _FACTORS:
        shares = [
            sample.shares(base * np.float32(factor))
            for sample, base in zip(samples, bases, strict=True)
        ]
        share = np.concatenate(shares)
        mean = float(weights @ share)
        doubt = _CERTAINTY * float(np.sqrt(weights**2 @ (share - mean) ** 2))
        if mean - doubt >= recall:
            return float(factor), shares
    return np.inf, [np.ones(len(base)) for base in bases]


def _calibration(
    sample: Sample, limit: float, shares: Float64, sizes: Ints
) -> Calibration:
    within = sample.needed <= limit
    rows, lists = (within @ sizes).mean(), within.sum(axis=1).mean()
    return Calibration(limit, float(shares.mean()), float(rows), float(lists))


def _median(values: Float32) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _without_each(values: Float32) -> Float32:
    """Return for each of *values* (s,) the largest of the others."""
    ordered = np.sort(values)
    largest = np.full(len(values), ordered[-1])
    largest[values.argmax()] = ordered[-2] if len(values) > 1 else 0
    return largest
