"""How the candidates of each query are found: in all rows, or in posting lists.

Queries are grouped by the share of rows that meet their condition. A few of each group
are answered exactly: they show how far into the lists the others have to look for the
recall that is asked for, and whether that is cheaper than looking at all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.corpus import Segments
from pgembed.batch.engine import Scan, Task
from pgembed.batch.metric import Metric
from pgembed.batch.passing import Passing
from pgembed.batch.plan import exact_seconds, exact_tasks, product_seconds, tests_of
from pgembed.batch.probing import (
    Calibration,
    Limits,
    Pairs,
    Prober,
    calibrate,
    kth_scores,
)
from pgembed.batch.ranking import Found
from pgembed.batch.result import Report

Ints = NDArray[np.int64]

_SAMPLE = (24, 96)
_TASK_SECONDS = 1e-4
"""What a posting list costs beyond its products (measured)."""


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
        scan = Scan(self.metric, width, tests=self._tests, threads=self.threads)
        thorough = np.ones(len(self.members), bool)
        probing = self.segments is not None and self.recall < 1 and not self._asked
        self._asked = True
        if probing:
            self._mixed(scan, queries, width, thorough)
        else:
            self._exact(scan, queries)
        self.report.products += scan.products
        with self.report.stage("merging"):
            estimates, found = scan.best()
        return estimates[queries], found[queries], thorough[queries]

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
        others = np.setdiff1d(queries, _joined(groups))
        self._exact(scan, np.sort(_joined([others, *samples])))
        prober = Prober(self.metric, self.segments, self.passing, self.members, width)
        count = len(self.members)
        limits = Limits(np.zeros(count, np.int64), np.zeros(count, np.float32))
        probing, exact = [], []
        for group, sample in zip(groups, samples, strict=True):
            rest = np.setdiff1d(group, sample)
            with self.report.stage("calibrating"):
                found = calibrate(prober, scan, sample, self.k[sample], self.recall)
            if self._pays(rest, found):
                limits.rule[rest], limits.limit[rest] = found.rule, found.limit
                probing.append(rest)
                self.report.measured.append((len(rest), found.recall))
            else:
                exact.append(rest)
        if exact:
            self._exact(scan, np.sort(_joined(exact)))
        if probing:
            rest = np.sort(_joined(probing))
            thorough[rest] = False
            self._probe(scan, prober, rest, limits)

    def _groups(self, queries: Ints) -> list[Ints]:
        """Return the queries for which posting lists may pay, by share of rows."""
        passing = self.passing
        counts = np.array(passing.counts)[self.members[queries]]
        bits = np.asarray(passing.masks.any(axis=1))[self.members[queries]]
        share = np.log2(passing.total / np.maximum(counts, 1)).astype(np.int64)
        found = []
        for size in np.unique(share[bits & (counts > 0)]):
            group = queries[bits & (counts > 0) & (share == size)]
            if len(group) > 2 * _SAMPLE[0]:
                found.append(group)
        return found

    def _pays(self, queries: Ints, found: Calibration) -> bool:
        segments = self.segments
        if segments is None or not len(queries):
            return False
        dimensions = self.metric.vectors.dimensions
        count = len(segments.lists)
        pairs = len(queries) * found.lists
        together = max(1, round(pairs / count))
        rows = len(queries) * found.rows
        probing = rows * product_seconds(together, dimensions) / together
        probing += min(count, pairs) * _TASK_SECONDS
        return probing < exact_seconds(self.passing, self.members, queries, dimensions)

    def _probe(self, scan: Scan, prober: Prober, queries: Ints, limits: Limits) -> None:
        report = self.report
        report.strategy = "posting lists"
        with report.stage("routing"):
            first = prober.first(queries)
            tasks = prober.tasks(first)
        with report.stage("comparing"):
            self._run(scan, tasks)
        with report.stage("routing"):
            scores = kth_scores(scan, queries, self.k[queries])
            rest = prober.rest(queries, scores, limits, first)
            tasks = prober.tasks(rest)
        with report.stage("comparing"):
            self._run(scan, tasks)
        report.lists += _count(first) + _count(rest)


def _sample(group: Ints) -> Ints:
    size = int(np.clip(len(group) // 16, *_SAMPLE))
    random = np.random.default_rng(len(group))
    return np.sort(random.choice(group, size, replace=False))


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _count(pairs: Pairs) -> int:
    return len(pairs.queries)
