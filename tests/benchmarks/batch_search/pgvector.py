"""pgvector's own ways to answer hybrid queries, one at a time, with several clients."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg

from pgembed.postgres.connection import Connection, connect
from tests.benchmarks.batch_search.data import Array, Questions, exists


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
        for ef, scan in ((40, 20_000), (200, 20_000), (1000, 200_000))
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
        for probes in (10, 40, 160)
    ),
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Queries per second and recall of a strategy."""

    strategy: Strategy
    rate: float
    recall: float


def build_indexes(connection: Connection, rows: int, *, hnsw: bool) -> dict[str, float]:
    """Build what is not there yet; return the seconds of each index by name.

    Seconds of an index of an earlier run are those of that run.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS built (name text PRIMARY KEY, seconds float8)"
    )
    lists = max(10, min(1000, rows // 1000))
    for index, options in (("hnsw", ""), ("ivfflat", f"WITH (lists = {lists})")):
        if exists(connection, f"entity_{index}") or (index == "hnsw" and not hnsw):
            continue
        start = time.perf_counter()
        connection.execute(
            f"CREATE INDEX entity_{index} ON entity "
            f"USING {index} (v vector_cosine_ops) {options}".encode()
        )
        seconds = time.perf_counter() - start
        connection.execute("INSERT INTO built VALUES (%s, %s)", [index, seconds])
        connection.execute("VACUUM ANALYZE entity")
    return dict(connection.execute("SELECT name, seconds FROM built").fetchall())


def measure(
    connection: Connection,
    dsn: str,
    questions: Questions,
    strategy: Strategy,
    *,
    sample: int,
    clients: int,
) -> Measured:
    """Answer a sample of the queries by *strategy*, with several clients."""
    random = np.random.default_rng(1)
    count = len(questions.vectors)
    chosen = random.choice(count, min(sample, count), replace=False).tolist()
    choose_index(connection, strategy)
    hits: list[float] = []
    lock = threading.Lock()
    queue = iter(chosen)

    def client() -> None:
        with connect(dsn, purpose="benchmark") as own:
            for name, value in strategy.settings:
                own.execute(f"SET {name} = {value}".encode())
            while True:
                with lock:
                    i = next(queue, None)
                if i is None:
                    return
                hits.append(questions.recall(i, ask(own, strategy, questions.query(i))))

    # Once to warm the caches, once to measure.
    for warm in (True, False):
        queue = iter(chosen[: 20 if warm else None])
        hits.clear()
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            for future in [pool.submit(client) for _ in range(clients)]:
                future.result()
        seconds = time.perf_counter() - start
    return Measured(strategy, len(chosen) / seconds, float(np.mean(hits)))


def choose_index(connection: Connection, strategy: Strategy | None) -> None:
    """Hide the indexes that a strategy does not use from the planner, or none."""
    for index in ("hnsw", "ivfflat"):
        connection.execute(
            "UPDATE pg_index SET indisvalid = %s WHERE indexrelid = to_regclass(%s)",
            [
                strategy is None or index == strategy.index,
                f"public.entity_{index}",
            ],
        )


def ask(
    connection: Connection, strategy: Strategy, query: tuple[Array, Any]
) -> set[int]:
    """Return the keys that one query finds, as an application would ask it."""
    vector, where = query
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
