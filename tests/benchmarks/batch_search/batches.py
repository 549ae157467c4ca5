"""Whole batches, from the call to the committed table of results."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np

from pgembed.batch.execute import Options
from pgembed.batch.job import read_workload, run_batch
from pgembed.batch.layout import build_layout
from pgembed.batch.result import Report
from pgembed.batch.search import search_batch
from pgembed.postgres.connection import Connection
from tests.benchmarks.batch_search.data import Questions, write_queries
from tests.benchmarks.batch_search.machine import peak_memory
from tests.benchmarks.batch_search.pgvector import Measured

_RECALL = 0.99
_ENGINE = ("routing", "calibrating", "comparing", "merging", "ranking", "ties")


@dataclasses.dataclass
class Growth:
    """Seconds of workloads of several *sizes*, and of pgvector's best for the same."""

    peer: str = ""
    sizes: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    pgvector: list[float] = dataclasses.field(default_factory=list)


class Batches:
    """Batches of one table, compared with what pgvector did there."""

    def __init__(
        self,
        connection: Connection,
        root: Path,
        questions: Questions,
        peers: list[Measured],
        runs: int,
    ) -> None:
        self.connection, self.root, self.questions = connection, root, questions
        self.runs = runs
        enough = [peer for peer in peers if peer.recall >= _RECALL]
        iterative = [p for p in peers if p.strategy.name.startswith("HNSW iterative")]
        self.best = max(enough, key=lambda peer: peer.rate, default=None)
        self.iterative = max(iterative, key=lambda peer: peer.rate, default=None)

    def build(self, workload: str | None, hnsw_seconds: float | None) -> None:
        """Build the layout, for the workload in a table or for none."""
        given = workload and read_workload(self.connection, "entity", workload)
        built = build_layout(
            self.connection, "entity", workload=given or None, root=self.root
        )
        seconds = sum(built.seconds.values())
        of = f", 1/{hnsw_seconds / seconds:.0f} of HNSW" if hnsw_seconds else ""
        print(
            f"\nlayout for {workload or 'no workload'}: {built.leaves} leaves, "
            f"{built.lists} lists, {seconds:.1f} s{of}, {built.bytes / 2**20:.0f} MB; "
            + ", ".join(f"{k} {v:.2f}" for k, v in built.seconds.items())
        )

    def whole(self, rate: float) -> None:
        """Answer all queries; *rate* is what BLAS does in a second."""
        spent, report = self.median("queries", self.runs)
        # Watching takes time of its own.
        with peak_memory() as memory:
            self.run("queries")
        count = len(self.questions.vectors)
        print(
            f"batch {spent:.2f} s, {count / spent:.0f} q/s"
            f"{self._times(count / spent)}; "
            f"recall {self._recall():.4f} (sample: {report.recall}); "
            f"{report.strategy}, {report.products / count:.0f} distances and "
            f"{report.lists / count:.1f} lists a query; "
            f"peak {memory() / 2**20:.0f} MB beside mapped files"
        )
        shares = {**report.seconds, "rest": spent - sum(report.seconds.values())}
        print("  " + ", ".join(f"{k} {v / spent:.0%}" for k, v in shares.items()))
        engine = sum(report.seconds.get(stage, 0) for stage in _ENGINE)
        dimensions = self.questions.vectors.shape[1]
        needed = 2 * report.products * dimensions / rate
        print(f"  engine {engine:.2f} s, {needed / engine:.2f} of its roofline")

    def median(
        self, queries: str, runs: int, embedding: str = "entity"
    ) -> tuple[float, Report]:
        """Return seconds and report of the median of several runs."""
        found = [self.run(queries, embedding) for _ in range(runs)]
        return sorted(found, key=lambda run: run[0])[runs // 2]

    def run(self, queries: str, embedding: str = "entity") -> tuple[float, Report]:
        """Return the seconds of one batch, and its report."""
        self.connection.execute("DROP TABLE IF EXISTS results")
        options = Options(
            _RECALL, 512 << 20, len(os.sched_getaffinity(0)), layouts=self.root
        )
        start = time.perf_counter()
        _, report = run_batch(
            self.connection, embedding, queries, "results", options=options
        )
        return time.perf_counter() - start, report

    def _times(self, rate: float) -> str:
        found = ""
        for peer in (self.best, self.iterative):
            if peer is not None:
                found += (
                    f", {rate / peer.rate:.0f} x pgvector's {peer.strategy.name} "
                    f"at recall {peer.recall:.3f}"
                )
        return found

    def _recall(self) -> float:
        found: dict[int, set[int]] = {}
        for query, key in self.connection.execute("SELECT query_id, id FROM results"):
            found.setdefault(query, set()).add(key)
        shares = [
            self.questions.recall(i, found.get(i, set()))
            for i, true in enumerate(self.questions.truth)
            if true
        ]
        return float(np.mean(shares))

    def small(self) -> Growth:
        """Measure workloads of few queries, and of more and more."""
        growth = Growth(self.best.strategy.name if self.best else "")
        print(f"\n{'queries':>8} {'seconds':>9} {'ms/query':>9}  strategy")
        counts = [n for n in (1, 10, 100, 1000) if n < len(self.questions.vectors)]
        for count in (*counts, len(self.questions.vectors)):
            write_queries(
                self.connection,
                "few",
                self.questions.vectors[:count],
                self.questions.filters[:count],
            )
            spent, report = self.median("few", 5 if count < 1000 else 3)
            times = ""
            if self.best is not None:
                growth.pgvector.append(count / self.best.rate)
                times = f", {count / spent / self.best.rate:.1f} x pgvector"
            print(
                f"{count:8} {spent:9.3f} {spent / count * 1000:9.2f}  "
                f"{report.strategy}{times}"
            )
            growth.sizes.append(count)
            growth.seconds.append(spent)
        return growth

    def by_rows(self, rows: int) -> Growth:
        """Measure all queries on parts of the table."""
        growth = Growth()
        print(f"\n{'rows':>9} {'seconds':>9} {'ms/query':>9}  distances a query")
        count = len(self.questions.vectors)
        for share in (0.1, 0.3, 1.0):
            part = round(rows * share)
            self._part(part)
            spent, report = self.median("queries", self.runs, "part")
            print(
                f"{part:9} {spent:9.3f} {spent / count * 1000:9.2f}  "
                f"{report.products / count:.0f}"
            )
            growth.sizes.append(part)
            growth.seconds.append(spent)
        return growth

    def _part(self, rows: int) -> None:
        """Make table part of the first rows, with its layout."""
        for statement in (
            "DROP TABLE IF EXISTS part CASCADE",
            f"CREATE TABLE part AS SELECT * FROM entity WHERE id < {rows}",
            "ALTER TABLE part ADD PRIMARY KEY (id)",
            "CREATE INDEX ON part (type, genre)",
            "CREATE INDEX ON part (artist)",
            "VACUUM ANALYZE part",
            "SELECT pgembed.drop_embedding(name) FROM pgembed.embedding "
            "WHERE name = 'part'",
            "SELECT pgembed.adopt_vectors('part', 'v', 'part')",
        ):
            self.connection.execute(statement.encode())
        build_layout(self.connection, "part", root=self.root)

    def ablation(self) -> None:
        """Partitioning on and off, sharing on and off; ms per query."""
        print("\nms/query      together  one by one")
        count = len(self.questions.vectors)
        sample = range(min(20, count))
        for layout in (True, False):
            together = self._timed(list(range(count)), layout=layout)
            start = time.perf_counter()
            for i in sample:
                self._timed([i], layout=layout)
            alone = (time.perf_counter() - start) / len(sample)
            name = "layout" if layout else "no layout"
            print(f"{name:12} {together / count * 1000:9.3f} {alone * 1000:11.2f}")

    def _timed(self, chosen: list[int], *, layout: bool) -> float:
        """Return the seconds of a batch in Python."""
        start = time.perf_counter()
        search_batch(
            self.connection,
            "entity",
            self.questions.vectors[chosen],
            filters=[self.questions.filters[i] for i in chosen],
            layout=layout,
            layouts=self.root,
            few_by_sql=False,
        )
        return time.perf_counter() - start
