"""Batches against pgvector: ``python -m tests.benchmarks.batch_search``.

A table like a knowledge graph, and hybrid queries from its hot clusters. All of it is
measured in one run on one server: pgvector's exact scan, HNSW (default and iterative)
and IVFFlat, with several clients, on a sample of the queries; then whole batches, from
the call to the committed results table; small workloads; partitioning and sharing, on
and off; and cost by the number of queries and of rows. Recall is against the exact
answer. With ``--data`` the table and its indexes are kept for further runs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from pgembed.batch.search import search_batch
from pgembed.postgres.connection import Connection, connect
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.postgres.schema import install
from tests.benchmarks.batch_search import pgvector
from tests.benchmarks.batch_search.batches import Batches, Growth
from tests.benchmarks.batch_search.data import Questions, exists, write_queries
from tests.benchmarks.batch_search.machine import blas_rate
from tests.benchmarks.graph import Generator, load

SETTINGS = {
    "fsync": "off",
    "shared_buffers": "3GB",
    "maintenance_work_mem": "3GB",
    "max_parallel_maintenance_workers": "2",
    "max_wal_size": "16GB",
}


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
    parser.add_argument("--data", type=Path, help="a folder to keep the table in")
    parser.add_argument("--plot", type=Path, help="draw cost by queries and rows")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="pgembed-bench-"))
    # The server runs as another account, when this is root.
    root.chmod(0o711)
    try:
        with (
            EmbeddedServer(
                arguments.data or root / "data", settings=SETTINGS
            ) as server,
            connect(server.dsn("postgres"), purpose="benchmark") as connection,
        ):
            install(connection)
            run(connection, server.dsn("postgres"), root, arguments)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(
    connection: Connection, dsn: str, root: Path, given: argparse.Namespace
) -> None:
    """Measure all, and print it."""
    questions = prepare(connection, given)
    print(f"{given.rows:,} x {given.dimensions}, {given.queries:,} queries, k = 10")
    peers: list[pgvector.Measured] = []
    built: dict[str, float] = {}
    if not given.no_pgvector:
        built = pgvector.build_indexes(connection, given.rows, hnsw=not given.no_hnsw)
        for name, seconds in built.items():
            print(f"{name} built in {seconds:.1f} s")
        peers = compare(connection, dsn, questions, built, given)
    rate = blas_rate(given.dimensions)
    print(f"\nBLAS on all cores: {rate / 1e9:.0f} GFLOP/s")
    batches = Batches(connection, root, questions, peers, given.runs)
    for workload in (None, "past"):
        batches.build(workload, built.get("hnsw"))
        batches.whole(rate)
    by_queries = batches.small()
    batches.ablation()
    by_rows = batches.by_rows(given.rows)
    if given.plot is not None:
        draw(given.plot, by_queries, by_rows)


def prepare(connection: Connection, given: argparse.Namespace) -> Questions:
    """Load what is not there yet, and answer the queries exactly."""
    made = Generator(
        given.rows, given.dimensions, clusters=given.clusters, local=given.local
    )
    if not exists(connection, "entity"):
        load(connection, "entity", made.graph())
        connection.execute("SELECT pgembed.adopt_vectors('entity', 'v', 'entity')")
    made.random = np.random.default_rng(98)
    vectors, filters = made.queries(given.queries)
    made.random = np.random.default_rng(99)
    past = made.queries(max(100, given.queries // 4))
    write_queries(connection, "queries", vectors, filters)
    write_queries(connection, "past", *past)
    exact = search_batch(
        connection,
        "entity",
        vectors,
        filters=filters,
        recall=1.0,
        few_by_sql=False,
        layout=False,
    )
    truth = [{key for key, _ in exact[i]} for i in range(len(vectors))]
    return Questions(vectors, filters, truth)


def compare(
    connection: Connection,
    dsn: str,
    questions: Questions,
    built: dict[str, float],
    given: argparse.Namespace,
) -> list[pgvector.Measured]:
    """Measure pgvector's strategies, and print them."""
    print(f"{'pgvector':34} {'q/s':>8} {'recall':>7}")
    found = []
    for strategy in pgvector.STRATEGIES:
        if strategy.index not in (None, *built):
            continue
        measured = pgvector.measure(
            connection,
            dsn,
            questions,
            strategy,
            sample=given.sample,
            clients=given.clients,
        )
        found.append(measured)
        print(f"{strategy.name:34} {measured.rate:8.1f} {measured.recall:7.3f}")
    pgvector.choose_index(connection, None)
    return found


def draw(path: Path, by_queries: Growth, by_rows: Growth) -> None:
    """Draw seconds by the number of queries and of rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, growth, name in zip(
        figure.subplots(1, 2), (by_queries, by_rows), ("queries", "rows"), strict=True
    ):
        axes.loglog(growth.sizes, growth.seconds, marker="o", label="pgembed batch")
        if growth.pgvector:
            axes.loglog(growth.sizes, growth.pgvector, "--", label=growth.peer)
        axes.set_xlabel(name)
        axes.set_ylabel("seconds")
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
