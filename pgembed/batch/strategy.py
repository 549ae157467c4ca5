"""How the candidates of each query are found: in all rows, or in posting lists.

Queries are grouped by their condition, or by the share of rows that meet it. A few of
each group are answered exactly: they show how far into the lists the others have to
look for the recall that is asked for, and whether that is cheaper than all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pgembed.batch.corpus import Segments
from pgembed.batch.engine import Scan, Task
from pgembed.batch.metric import Metric
from pgembed.batch.passing import Passing
from pgembed.batch.plan import exact_seconds, exact_tasks, product_seconds, tests_of
from pgembed.batch.probing import Calibration, Prober, calibrate, sample_of
from pgembed.batch.ranking import Found
from pgembed.batch.result import Report

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_SAMPLE = (16, 48)
_LEAST_SHARE = 32
"""A condition that fewer than one row of so many meet is answered exactly."""
_PAIR_SECONDS = 2e-6
"""What a query costs in a posting list beyond its products (measured)."""
Calibrated = tuple[Ints, Calibration]


class Searcher:
    """Finds candidates for queries with conditions *members* (q,) and *k* (q,)."""

    def __init__(
        self,
        metric: Metric,
        passing: Passing,
        segments: Segments | None,
        members: Ints,
        k: Ints,
        *,
        recall: float,
        threads: int,
        report: Report,
        tick: Callable[[float], None] | None = None,
    ) -> None:
        self.metric, self.passing, self.segments = metric, passing, segments
        self.members, self.k, self.recall = members, k, recall
        self.threads, self.report, self.tick = threads, report, tick
        self._tests = tests_of(passing, members)
        self._asked = False

    def __call__(self, queries: Ints, width: int) -> Found:
        """Return scores and positions (m, width), and whether all rows were seen."""
        scan = Scan(
            self.metric,
            width,
            asked=queries,
            tests=self._tests,
            threads=self.threads,
        )
        thorough = np.ones(len(self.members), bool)
        probing = self.segments is not None and self.recall < 1 and not self._asked
        self._asked = True
        # The threads are its own; those of BLAS would wait busily between products.
        with threadpool_limits(1, user_api="blas"):
            if probing:
                self._mixed(scan, queries, width, thorough)
            else:
                self._exact(scan, queries)
        self.report.products += scan.products
        with self.report.stage("merging"):
            estimates, found = scan.best(queries)
        return estimates, found, thorough[queries]

    def _exact(self, scan: Scan, queries: Ints) -> None:
        with self.report.stage("comparing"):
            tasks = exact_tasks(
                self.passing, self.members, queries, self.metric.vectors.dimensions
            )
            self._run(scan, list(tasks))

    def _run(self, scan: Scan, tasks: list[Task]) -> None:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if self.tick is not None:
                self.tick(done / len(tasks))

        scan.run(tasks, tick)

    def _mixed(
        self, scan: Scan, queries: Ints, width: int, thorough: NDArray[np.bool_]
    ) -> None:
        assert self.segments is not None  # noqa: S101 - the caller has looked
        groups = self._groups(queries)
        samples = [_sample(group) for group in groups]
        without = np.setdiff1d(queries, _joined(groups))
        self._exact(scan, np.sort(_joined([without, *samples])))
        if not groups:
            return
        prober = Prober(
            self.metric,
            self.segments,
            self.passing,
            self.members,
            width,
            self.threads,
        )
        limits = np.zeros(len(self.members), np.float32)
        with self.report.stage("calibrating"):
            probing = self._calibrated(prober, scan, groups, samples)
        for rest, found in probing:
            limits[rest] = found.limit
            self.report.measured.append((len(rest), found.recall))
        probed = np.sort(_joined([rest for rest, _ in probing]))
        exact = np.setdiff1d(_joined(groups), _joined([probed, *samples]))
        if len(exact):
            self._exact(scan, exact)
        if len(probed):
            thorough[probed] = False
            self._probe(scan, prober, probed, limits[probed])

    def _groups(self, queries: Ints) -> list[Ints]:
        """Return the queries for which posting lists may pay, in groups.

        A condition that many queries have is a group, unless most rows meet it; those
        of the others that as many rows meet are one together.
        """
        passing, members = self.passing, self.members[queries]
        counts = passing.counts
        common = np.asarray(passing.masks.any(axis=1)) & (
            counts * _LEAST_SHARE > passing.total
        )
        asked = np.bincount(members, minlength=len(counts))
        share = np.log2(passing.total / np.maximum(counts, 1)).astype(np.int64)
        alone = (asked > 6 * _SAMPLE[0]) & (share > 0)
        group = np.where(alone, np.arange(len(counts)), -1 - share)
        found = []
        for number in np.unique(group[common]):
            chosen = queries[common[members] & (group[members] == number)]
            if len(chosen) > 2 * _SAMPLE[0]:
                found.append(chosen)
        return found

    def _calibrated(
        self, prober: Prober, scan: Scan, groups: list[Ints], samples: list[Ints]
    ) -> list[Calibrated]:
        """Return the groups that lists answer sooner, less their samples."""
        sizes = prober.segments.sizes()
        known = [
            (
                np.setdiff1d(group, sample),
                sample_of(prober, scan, sample, self.k[sample]),
            )
            for group, sample in zip(groups, samples, strict=True)
        ]
        # Once more without those that need much, and are not to be searched like this.
        for _ in range(2):
            found = calibrate(known, sizes, self.recall)
            paying = self._pay(prober, [rest for rest, _ in known], found)
            found = [f for f, pays in zip(found, paying, strict=True) if pays]
            known = [k for k, pays in zip(known, paying, strict=True) if pays]
        return [(rest, f) for (rest, _), f in zip(known, found, strict=True)]

    def _pay(
        self, prober: Prober, groups: list[Ints], found: list[Calibration]
    ) -> list[bool]:
        """Return for which groups posting lists are cheaper than all rows.

        A list is compared with the queries of all groups at once.
        """
        dimensions = self.metric.vectors.dimensions
        pairs = sum(len(g) * f.lists for g, f in zip(groups, found, strict=True))
        together = max(1, round(pairs / max(1, len(prober.segments.lists))))
        each = product_seconds(together, dimensions) / together
        return [
            len(g) * (f.rows * each + f.lists * _PAIR_SECONDS)
            < exact_seconds(self.passing, self.members, g, dimensions)
            for g, f in zip(groups, found, strict=True)
        ]

    def _probe(
        self, scan: Scan, prober: Prober, queries: Ints, limits: Float32
    ) -> None:
        self.report.strategy = "posting lists"
        with self.report.stage("routing"):
            turns = prober.pairs(queries, limits)
        for pairs in turns:
            with self.report.stage("routing"):
                tasks = prober.tasks(pairs)
            with self.report.stage("comparing"):
                self._run(scan, tasks)
            self.report.lists += len(pairs)


def _sample(group: Ints) -> Ints:
    size = int(np.clip(len(group) // 16, *_SAMPLE))
    random = np.random.default_rng(len(group))
    return np.sort(random.choice(group, size, replace=False))


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts])
