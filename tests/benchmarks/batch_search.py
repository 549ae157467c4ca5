"""Batches against pgvector: ``python -m tests.benchmarks.batch_search``.

A table like a knowledge graph, and hybrid queries from its hot clusters. All of it is
measured in one run on one server: pgvector's exact scan, HNSW (default and iterative)
and IVFFlat, with several clients, on a sample of the queries; then whole batches, from
the call to the committed results table. Recall is against the exact answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from threadpoolctl import threadpool_limits

from pgembed.batch.execute import Options
from pgembed.batch.job import read_workload, run_batch
from pgembed.batch.layout import build_layout
from pgembed.batch.result import Report
from pgembed.batch.search import search_batch
from pgembed.postgres.connection import Connection, connect
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.postgres.schema import install
from tests.benchmarks.graph import Generator, load

Array = NDArray[Any]
SETTINGS = {
    "fsync": "off",
    "shared_buffers": "3GB",
    "maintenance_work_mem": "3GB",
    "max_parallel_maintenance_workers": "2",
    "max_wal_size": "16GB",
}
ENGINE = ("routing", "calibrating", "comparing", "merging", "ranking", "ties")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to let pgvector answer: an index to use, or none, and settings."""

    name: str
    index: str | None
    settings: tuple[tuple[str, str], ...] = ()


STRATEGIES = (
    Strategy("exact in SQL", None),
    Strategy("HNSW", "hnsw"),
    *(
        Strategy(
            f"HNSW iterative, ef_search {ef}",
            "hnsw",
            (
                ("hnsw.iterative_scan", "strict_order"),
                ("hnsw.ef_search", str(ef)),
                ("hnsw.max_scan_tuples", str(scan)),
            ),
        )
        for ef, scan in ((40, 20_000), (200, 20_000), (400, 200_000))
    ),
    *(
        Strategy(
            f"IVFFlat iterative, {probes} probes",
            "ivfflat",
            (
                ("ivfflat.iterative_scan", "relaxed_order"),
                ("ivfflat.probes", str(probes)),
            ),
        )
        for probes in (10, 40)
    ),
)


def main() -> None:
    """Run what is asked for, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--clusters", type=int, help="default: one per 1,000 rows")
    parser.add_argument(
        "--local",
        type=float,
        default=0.0,
        help="share of queries that ask for what is usual in their cluster",
    )
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-pgvector", action="store_true")
    parser.add_argument("--no-hnsw", action="store_true", help="its build takes long")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="pgembed-bench-"))
    # The server runs as another account, when this is root.
    root.chmod(0o711)
    try:
        with (
            EmbeddedServer(root / "data", settings=SETTINGS) as server,
            connect(server.dsn("postgres"), purpose="benchmark") as connection,
        ):
            install(connection)
            Benchmark(connection, server.dsn("postgres"), root, arguments).run()
    finally:
        shutil.rmtree(root, ignore_errors=True)


class Benchmark:
    """One run."""

    def __init__(
        self,
        connection: Connection,
        dsn: str,
        root: Path,
        arguments: argparse.Namespace,
    ) -> None:
        self.connection, self.dsn, self.root = connection, dsn, root
        self.given = arguments
        made = Generator(
            arguments.rows,
            arguments.dimensions,
            clusters=arguments.clusters,
            local=arguments.local,
        )
        load(connection, "entity", made.graph())
        connection.execute("SELECT pgembed.adopt_vectors('entity', 'v', 'entity')")
        self.vectors, self.filters = made.queries(arguments.queries)
        made.random = np.random.default_rng(99)
        self.past = made.queries(max(100, arguments.queries // 4))
        write_queries(connection, "queries", self.vectors, self.filters)
        write_queries(connection, "past", *self.past)
        exact = search_batch(
            connection,
            "entity",
            self.vectors,
            filters=self.filters,
            recall=1.0,
            few_by_sql=False,
            layout=False,
        )
        self.truth = [{key for key, _ in exact[i]} for i in range(len(self.vectors))]

    def run(self) -> None:
        """Measure all, and print it."""
        given = self.given
        print(f"{given.rows:,} x {given.dimensions}, {given.queries:,} queries, k = 10")
        best, hnsw_seconds = 0.0, 0.0
        if not given.no_pgvector:
            best, hnsw_seconds = self.pgvector()
        rate = blas_rate(given.dimensions)
        print(f"\nBLAS on all cores: {rate / 1e9:.0f} GFLOP/s")
        for workload in (None, read_workload(self.connection, "entity", "past")):
            built = build_layout(
                self.connection, "entity", workload=workload, root=self.root
            )
            seconds = sum(built.seconds.values())
            of = f", 1/{hnsw_seconds / seconds:.0f} of HNSW" if hnsw_seconds else ""
            print(
                f"\nlayout: {built.leaves} leaves, {built.lists} lists, "
                f"{seconds:.1f} s{of}, {built.bytes / 2**20:.0f} MB; "
                + ", ".join(f"{k} {v:.2f}" for k, v in built.seconds.items())
            )
            self.batches(best, rate)
        self.small(best)
        self.ablation()

    def pgvector(self) -> tuple[float, float]:
        """Measure each strategy; return the best rate at recall 0.99, HNSW's build."""
        seconds = {}
        lists = max(10, min(1000, self.given.rows // 1000))
        for index, options in (
            ("hnsw", ""),
            ("ivfflat", f"WITH (lists = {lists})"),
        ):
            if index == "hnsw" and self.given.no_hnsw:
                continue
            start = time.perf_counter()
            self.connection.execute(
                f"CREATE INDEX entity_{index} ON entity "
                f"USING {index} (v vector_cosine_ops) {options}".encode()
            )
            seconds[index] = time.perf_counter() - start
            print(f"{index} built in {seconds[index]:.1f} s")
        self.connection.execute("VACUUM ANALYZE entity")
        best = 0.0
        print(f"{'pgvector':34} {'q/s':>8} {'recall':>7}")
        for strategy in STRATEGIES:
            if strategy.index not in (None, *seconds):
                continue
            rate, recall = self.measure(strategy)
            print(f"{strategy.name:34} {rate:8.1f} {recall:7.3f}")
            if recall >= 0.99:
                best = max(best, rate)
        return best, seconds.get("hnsw", 0.0)

    def measure(self, strategy: Strategy) -> tuple[float, float]:
        """Return queries per second and recall of a sample, with several clients."""
        random = np.random.default_rng(1)
        sample = random.choice(
            len(self.vectors), min(self.given.sample, len(self.vectors)), replace=False
        )
        choose_index(self.connection, strategy)
        hits: list[float] = []
        lock = threading.Lock()
        queue = iter(sample.tolist())

        def client() -> None:
            with connect(self.dsn, purpose="benchmark") as connection:
                for name, value in strategy.settings:
                    connection.execute(f"SET {name} = {value}".encode())
                while True:
                    with lock:
                        i = next(queue, None)
                    if i is None:
                        return
                    found = ask(connection, strategy, self.vectors[i], self.filters[i])
                    true = self.truth[i]
                    hits.append(len(true & found) / max(1, len(true)))

        # Once to warm the caches, once to measure.
        for warm in (True, False):
            queue = iter(sample.tolist()[: 20 if warm else None])
            hits.clear()
            start = time.perf_counter()
            with ThreadPoolExecutor(self.given.clients) as pool:
                for future in [pool.submit(client) for _ in range(self.given.clients)]:
                    future.result()
            seconds = time.perf_counter() - start
        return len(sample) / seconds, float(np.mean(hits))

    def batches(self, best: float, rate: float) -> None:
        """Run whole batches, from the call to the committed results."""
        seconds, reports = [], []
        with peak_memory() as memory:
            for _ in range(self.given.runs):
                spent, report = self.batch("queries")
                seconds.append(spent)
                reports.append(report)
        middle = statistics.median(seconds)
        report = reports[seconds.index(middle)] if len(seconds) % 2 else reports[-1]
        speed = len(self.vectors) / middle
        times = f", {speed / best:.0f} x the best pgvector" if best else ""
        print(
            f"batch {middle:.2f} s, {speed:.0f} q/s{times}; recall "
            f"{self.recall():.4f} (sample: {report.recall:.4f}); {report.strategy}, "
            f"{report.products / len(self.vectors):.0f} distances and "
            f"{report.lists / len(self.vectors):.1f} lists a query; "
            f"peak {memory() / 2**20:.0f} MB beside mapped files"
        )
        total = sum(report.seconds.values())
        print(
            "  " + ", ".join(f"{k} {v / total:.0%}" for k, v in report.seconds.items())
        )
        engine = sum(report.seconds.get(stage, 0) for stage in ENGINE)
        needed = 2 * report.products * self.given.dimensions / rate
        print(f"  engine {engine:.2f} s, {needed / engine:.2f} of its roofline")

    def batch(self, queries: str) -> tuple[float, Report]:
        """Return the seconds of one batch, and its report."""
        self.connection.execute("DROP TABLE IF EXISTS results")
        options = Options(
            0.99, 512 << 20, len(os.sched_getaffinity(0)), layouts=self.root
        )
        start = time.perf_counter()
        _, report = run_batch(
            self.connection, "entity", queries, "results", options=options
        )
        return time.perf_counter() - start, report

    def recall(self) -> float:
        """Return the recall of the results table."""
        found: dict[int, set[int]] = {}
        for query, key in self.connection.execute("SELECT query_id, id FROM results"):
            found.setdefault(query, set()).add(key)
        shares = [
            len(true & found.get(i, set())) / len(true)
            for i, true in enumerate(self.truth)
            if true
        ]
        return float(np.mean(shares))

    def small(self, best: float) -> None:
        """Measure small workloads against the best pgvector strategy, per query."""
        print(f"\n{'queries':>8} {'seconds':>9} {'ms/query':>9} {'strategy'}")
        for count in (1, 10, 100, 1000):
            write_queries(
                self.connection, "few", self.vectors[:count], self.filters[:count]
            )
            runs = [self.batch("few") for _ in range(3)]
            spent, report = sorted(runs, key=lambda run: run[0])[1]
            times = f", {count / spent / best:.1f} x pgvector" if best else ""
            print(
                f"{count:8} {spent:9.3f} {spent / count * 1000:9.2f} "
                f"{report.strategy}{times}"
            )

    def ablation(self) -> None:
        """Partitioning on and off, sharing on and off; ms per query."""
        print("\nms/query      together  one by one")
        sample = range(min(20, len(self.vectors)))
        for layout in (True, False):
            together = self.timed(list(range(len(self.vectors))), layout=layout)
            start = time.perf_counter()
            for i in sample:
                self.timed([i], layout=layout)
            alone = (time.perf_counter() - start) / len(sample)
            name = "layout" if layout else "no layout"
            print(
                f"{name:12} {together / len(self.vectors) * 1000:9.3f} "
                f"{alone * 1000:11.2f}"
            )

    def timed(self, chosen: list[int], *, layout: bool) -> float:
        """Return the seconds of a batch in Python."""
        start = time.perf_counter()
        search_batch(
            self.connection,
            "entity",
            self.vectors[chosen],
            filters=[self.filters[i] for i in chosen],
            layout=layout,
            layouts=self.root,
            few_by_sql=False,
        )
        return time.perf_counter() - start


def write_queries(
    connection: Connection, table: str, vectors: Array, filters: list[Any]
) -> None:
    """Create a table of queries."""
    name = sql.Identifier(table)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
    connection.execute(
        sql.SQL("CREATE TABLE {} (id int, embedding vector, filter jsonb)").format(name)
    )
    with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(name)) as copy:
        for i, (vector, where) in enumerate(zip(vectors, filters, strict=True)):
            text = "[" + ",".join(map(str, vector.tolist())) + "]"
            copy.write_row((i, text, None if where is None else json.dumps(where)))
    connection.execute(sql.SQL("ANALYZE {}").format(name))


def choose_index(connection: Connection, strategy: Strategy) -> None:
    """Hide the indexes that a strategy does not use from the planner."""
    for index in ("hnsw", "ivfflat"):
        connection.execute(
            "UPDATE pg_index SET indisvalid = %s WHERE indexrelid = to_regclass(%s)",
            [index == strategy.index, f"public.entity_{index}"],
        )


def ask(
    connection: Connection, strategy: Strategy, vector: Array, where: Any
) -> set[int]:
    """Return the keys that one query finds, as an application would ask it."""
    condition, values = condition_of(where)
    hidden = "" if strategy.index else " + 0"
    cursor = psycopg.RawCursor(connection)
    cursor.execute(
        f"SELECT id FROM entity WHERE {condition} "
        f"ORDER BY (v <=> $1){hidden} LIMIT 10".encode(),
        [vector, *values],
    )
    return {row[0] for row in cursor.fetchall()}


def condition_of(where: Any) -> tuple[str, list[Any]]:
    """Return a filter of the benchmark as plain SQL with parameters from $2 on."""
    operators = {"gt": ">", "gte": ">=", "lt": "<"}
    parts: list[str] = ["true"]
    values: list[Any] = []
    for column, given in (where or {}).items():
        terms = given if isinstance(given, dict) else {"eq": given}
        for word, value in terms.items():
            at = len(values) + 2
            if isinstance(value, list) and word == "eq":
                parts.append(f"{column} = ANY (${at})")
                values.append(value)
            elif word == "between":
                parts.append(f"{column} BETWEEN ${at} AND ${at + 1}")
                values += value
            else:
                parts.append(f"{column} {operators.get(word, '=')} ${at}")
                values.append(value)
    return " AND ".join(parts), values


def blas_rate(dimensions: int) -> float:
    """Return floating-point operations per second of matrix products on all cores."""
    cores = len(os.sched_getaffinity(0))
    random = np.random.default_rng(0)
    rows = random.standard_normal((65_536, dimensions)).astype(np.float32)
    queries = random.standard_normal((256, dimensions)).astype(np.float32)

    def work(_: int) -> float:
        out = np.empty((256, 1024), np.float32)
        for start in range(0, len(rows), 1024):
            np.matmul(queries, rows[start : start + 1024].T, out=out)
        return 2.0 * len(rows) * len(queries) * dimensions

    best = 0.0
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            done = sum(pool.map(work, range(2 * cores)))
            best = max(best, done / (time.perf_counter() - start))
    return best


class peak_memory:  # noqa: N801 - used as a function
    """Watch the anonymous memory of this process; yields how to ask for the peak."""

    def __enter__(self) -> Callable[[], int]:
        self._peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return lambda: self._peak

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            for line in _status():
                if line.startswith("RssAnon"):
                    self._peak = max(self._peak, int(line.split()[1]) * 1024)


def _status() -> Iterator[str]:
    yield from Path("/proc/self/status").read_text().splitlines()


if __name__ == "__main__":
    main()
