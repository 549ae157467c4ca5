"""Hybrid search, pgembed's and pgvector's: recall and queries per second.

    python -m tests.benchmarks.hybrid_search [--rows 200000 --queries 2000 --clients 2 --plot FILE]

Clustered vectors, attributes partly correlated with the clusters, queries under
recurring filters: eight hot categories among fifty, price and year ranges, and both.
All strategies answer the same queries in one run, on one server with the same
settings; recall is against NumPy's exact answers. Throughput is told twice: by the
clock, and by the processor time of the server's sessions, which other programs on the
machine disturb less.
"""  # noqa: E501 - a command

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pgembed.postgres.connection import Connection, connect, fetch_one
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.postgres.schema import install
from pgembed.search import advice
from tests.benchmarks.hybrid_data import (
    WIDTH,
    Items,
    K,
    Query,
    make_items,
    make_queries,
)

_SETTINGS = {
    "shared_buffers": "1GB",
    "maintenance_work_mem": "600MB",
    "random_page_cost": "1.1",
    # Two clients keep two processors busy; and a session's time is all its time.
    "max_parallel_workers_per_gather": "0",
    "max_wal_size": "4GB",
    "fsync": "off",
}
_GOAL = 0.95


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to search: settings, and the statement for a query."""

    name: str
    settings: Mapping[str, str]
    statement: Callable[[Query], tuple[str, list[str]]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a strategy reached."""

    name: str
    rate: float
    cpu_rate: float
    recall: float
    by_shape: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The recall of the worst shape of filter."""
        return min(self.by_shape.values())


def load(connection: Connection, items: Items) -> None:
    """Fill table items, index it and adopt its vectors."""
    install(connection)
    connection.execute(
        "CREATE TABLE items (id int PRIMARY KEY, category int, price numeric(10,2), "
        f"year int, v public.vector({WIDTH}))"
    )
    columns = zip(
        items.category.tolist(), items.price.tolist(), items.year.tolist(), strict=True
    )
    with connection.cursor().copy("COPY items FROM STDIN") as copy:
        for i, (category, price, year) in enumerate(columns):
            text = "[" + ",".join(f"{x:.6g}" for x in items.vectors[i]) + "]"
            copy.write_row((i, category, price, year, text))
    for column in ("category", "price", "year"):
        connection.execute(f"CREATE INDEX ON items ({column})".encode())
    started = time.perf_counter()
    connection.execute(
        "CREATE INDEX items_v ON items USING hnsw (v public.vector_cosine_ops)"
    )
    print(f"HNSW built in {time.perf_counter() - started:.0f} s", flush=True)
    connection.execute("VACUUM ANALYZE items")
    connection.execute("SELECT pgembed.adopt_vectors('items', 'v')")


def pgvector(name: str, distance: str = "v <=> $1", **settings: str) -> Strategy:
    """Return what one writes with pgvector alone."""
    dotted = {key.replace("__", "."): value for key, value in settings.items()}

    def statement(query: Query) -> tuple[str, list[str]]:
        return (
            f"SELECT id FROM items WHERE {query.where} "
            f"ORDER BY {distance.replace('$1', '%s::public.vector')} LIMIT {K}"
        ), [query.vector]

    return Strategy(name, dotted, statement)


def pgembed(name: str) -> Strategy:
    """Return pgembed's search as it comes."""

    def statement(query: Query) -> tuple[str, list[str]]:
        return (
            "SELECT (item).id FROM pgembed.search(NULL::items, %s::public.vector, "
            f"{K}, %s::jsonb)"
        ), [query.vector, json.dumps(query.filter)]

    return Strategy(name, {}, statement)


def strategies() -> list[Strategy]:
    """Return pgvector's strategies: exact, default, iterative, planned and forced."""
    found = [
        pgvector("exact", "(v <=> $1) + 0"),
        pgvector("default"),
        pgvector("ef 400", hnsw__ef_search="400"),
    ]
    for order, ef in (("relaxed", 40), ("relaxed", 200), ("strict", 200)):
        found.append(_iterative(order, ef))
    for ef in (400, 800):
        found.append(_iterative("relaxed", ef))
        forced = {"enable_sort": "off", "hnsw__max_scan_tuples": "200000"}
        found.append(_iterative("relaxed", ef, " always", **forced))
    return found


def _iterative(order: str, ef: int, note: str = "", **settings: str) -> Strategy:
    return pgvector(
        f"iterative {order} ef {ef}{note}",
        hnsw__iterative_scan=f"{order}_order",
        hnsw__ef_search=str(ef),
        **settings,
    )


def measure(
    dsn: str, strategy: Strategy, queries: Sequence[Query], clients: int
) -> Measured:
    """Run the queries, shared among clients, and print the line of the table."""
    shares = [queries[i::clients] for i in range(clients)]
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(session(dsn, strategy.settings)) for _ in shares
        ]
        for connection, share in zip(sessions, shares, strict=True):
            run(connection, strategy, share[: max(5, len(share) // 50)])
        before = [processor_seconds(connection) for connection in sessions]
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(run, sessions, [strategy] * clients, shares))
        elapsed = time.perf_counter() - started
        used = sum(map(processor_seconds, sessions)) - sum(before)
    by_shape: dict[str, list[float]] = {}
    for share, hits in zip(shares, answers, strict=True):
        for query, hit in zip(share, hits, strict=True):
            by_shape.setdefault(query.shape, []).append(hit)
    everything = [hit for hits in by_shape.values() for hit in hits]
    measured = Measured(
        strategy.name,
        len(queries) / elapsed,
        len(queries) / used,
        float(np.mean(everything)),
        {shape: float(np.mean(hits)) for shape, hits in sorted(by_shape.items())},
    )
    print(line(measured), flush=True)
    return measured


@contextlib.contextmanager
def session(dsn: str, settings: Mapping[str, str]) -> Iterator[Connection]:
    """Yield a connection with settings of its own."""
    with connect(dsn, purpose="benchmark") as connection:
        connection.execute("SELECT '[1]'::public.vector")
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        yield connection


def run(
    connection: Connection, strategy: Strategy, queries: Sequence[Query]
) -> list[float]:
    """Return the recall of each query."""
    recalls = []
    for query in queries:
        statement, parameters = strategy.statement(query)
        rows = connection.execute(statement.encode(), parameters).fetchall()
        recalls.append(len({row[0] for row in rows} & query.truth) / len(query.truth))
    return recalls


def processor_seconds(connection: Connection) -> float:
    """Return the processor time of a session so far."""
    pid = connection.info.backend_pid
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def line(measured: Measured) -> str:
    """Return a line of the table."""
    return (
        f"{measured.name:34}{measured.rate:9.1f}{measured.cpu_rate:11.1f}"
        f"{measured.recall:9.3f}{measured.worst:9.3f}"
    )


def planning_ms(connection: Connection, queries: Sequence[Query]) -> float:
    """Return the median milliseconds of planning, as explain_search tells them."""
    times = [
        fetch_one(
            connection,
            "SELECT pgembed.explain_search(NULL::items, %s::public.vector, "
            "filter => %s::jsonb) -> 'planning_ms'",
            (query.vector, json.dumps(query.filter)),
        )[0]
        for query in queries
    ]
    return float(np.median(times))


@contextlib.contextmanager
def server(folder: Path | None) -> Iterator[str]:
    """Yield the DSN of a server on the folder, or on one that is deleted."""
    place = folder or Path(tempfile.mkdtemp(prefix="pgembed-benchmark-"))
    try:
        with EmbeddedServer(place, settings=_SETTINGS) as running:
            yield running.dsn()
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def covering_indexes(dsn: str) -> Iterator[None]:
    """Have the filters' columns beside the vectors for a while; say what it costs."""
    columns = ("category, year, price", "price, year", "year, price")
    with connect(dsn, purpose="benchmark") as connection:
        started = time.perf_counter()
        for i, names in enumerate(columns):
            statement = f"CREATE INDEX covering_{i} ON items ({names}) INCLUDE (id, v)"
            connection.execute(statement.encode())
        took = time.perf_counter() - started
        connection.execute("VACUUM ANALYZE items")
        (share,) = fetch_one(
            connection,
            "SELECT sum(pg_relation_size(c.oid)) / pg_relation_size('items_v') "
            "FROM pg_class AS c WHERE c.relname LIKE 'covering%'",
        )
        print(
            f"3 covering indexes in {took:.1f} s, {share:.2f} of the full index's size"
        )
        yield
        for i in range(len(columns)):
            connection.execute(f"DROP INDEX covering_{i}".encode())


def advise(dsn: str, queries: Sequence[Query]) -> None:
    """Create the indexes advised for a workload, and print what they are."""
    with connect(dsn, purpose="benchmark") as connection:
        connection.execute("DROP TABLE IF EXISTS workload")
        connection.execute("CREATE TABLE workload (filter jsonb)")
        with connection.cursor().copy("COPY workload FROM STDIN") as copy:
            for query in queries:
                copy.write_row([json.dumps(query.filter)])
        found = advice.advise(connection, "items_v", workload="workload")
        connection.execute("DROP TABLE workload")
        started = time.perf_counter()
        for each in found:
            advice.apply(connection, each)
        took = time.perf_counter() - started
        (full,) = fetch_one(connection, "SELECT pg_relation_size('items_v')")
        known = advice.advised_indexes(connection, "items_v")
        connection.execute("VACUUM ANALYZE items")
    print(
        f"{len(found)} advised indexes in {took:.0f} s, "
        f"{sum(each.bytes for each in known) / full:.2f} of the full index's size; "
        f"predicted {found[-1].speedup:.2f} times pgembed without them"
    )


def draw(found: Sequence[Measured], file: Path) -> None:
    """Draw recall against queries per second."""
    figure = importlib.import_module("matplotlib.figure").Figure(layout="constrained")
    axes = figure.subplots()
    for each in found:
        mark = "*" if each.name.startswith("pgembed") else "o"
        axes.plot(each.cpu_rate, each.recall, mark)
        axes.annotate(each.name, (each.cpu_rate, each.recall), fontsize="x-small")
    axes.set(xlabel="queries per processor second", ylabel="recall@10", xscale="log")
    figure.savefig(file)


def report(found: Sequence[Measured]) -> None:
    """Print the recall of every shape, and what one strategy is of the other."""
    ours = [each for each in found if each.name.startswith("pgembed")]
    # pgvector as one finds it: without indexes that nobody would think of.
    others = [
        each
        for each in found
        if each not in ours and "covering" not in each.name and each.recall >= _GOAL
    ]
    for each in ours:
        print(f"{each.name}: recall by shape of filter")
        for shape, recall in each.by_shape.items():
            print(f"  {shape:20}{recall:.3f}")
    best = max(others, key=lambda each: each.cpu_rate, default=ours[0])
    for each in ours:
        print(
            f"{each.name} / {best.name}: {each.rate / best.rate:.2f} by the clock, "
            f"{each.cpu_rate / best.cpu_rate:.2f} by processor time"
        )


def main() -> None:
    """Measure all strategies on one data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--only", default="", help="strategies whose name has this")
    parser.add_argument("--data", type=Path, help="keep the server's data there")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.plot:
        importlib.import_module("matplotlib.figure")
    items = make_items(arguments.rows, np.random.default_rng(20))
    queries = make_queries(items, arguments.queries, np.random.default_rng(21))
    earlier = make_queries(items, arguments.queries // 4, np.random.default_rng(22))
    with server(arguments.data) as dsn:
        with connect(dsn, purpose="benchmark") as connection:
            if fetch_one(connection, "SELECT to_regclass('items') IS NULL")[0]:
                load(connection, items)
            install(connection)
            connection.execute("SELECT count(*) FROM items WHERE v IS NOT NULL")
            print(f"planning: {planning_ms(connection, queries[:100]):.2f} ms")
        print(f"{'':34}{'q/s':>9}{'q/cpu s':>11}{'recall':>9}{'worst':>9}")
        found = [
            measure(dsn, strategy, queries, arguments.clients)
            for strategy in [*strategies(), pgembed("pgembed")]
            if arguments.only in strategy.name
        ]
        with covering_indexes(dsn):
            exact = pgvector("exact, covering indexes", "(v <=> $1) + 0")
            for strategy in (exact, pgembed("pgembed, covering indexes")):
                found.append(measure(dsn, strategy, queries, arguments.clients))
        advise(dsn, earlier)
        advised = pgembed("pgembed, advised indexes")
        found.append(measure(dsn, advised, queries, arguments.clients))
        with connect(dsn, purpose="benchmark") as connection:
            print(f"planning: {planning_ms(connection, queries[:100]):.2f} ms")
            for each in advice.advised_indexes(connection, "items_v"):
                connection.execute(f"DROP INDEX {each.index_name}".encode())
        report(found)
        if arguments.plot:
            draw(found, arguments.plot)


if __name__ == "__main__":
    main()
