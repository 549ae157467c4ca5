"""A few queries, answered one by one by SQL when that is cheaper than a batch."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.predicates import refusals
from pgembed.batch.result import ONE_BY_ONE, BatchResult, Report
from pgembed.batch.rows import Tables, fetch, readable, unpack
from pgembed.batch.source import Source
from pgembed.batch.workload import Condition, Workload
from pgembed.postgres.connection import Connection, fetch_one

_MOST_QUERIES = 256
_ROW_SECONDS = 5e-7
"""What a batch spends on each row before it compares any (measured)."""
_READ_SECONDS = 2e-6, 1e-8
"""What reading a row costs, and each of its dimensions (measured)."""
_SQL_SECONDS = 1.5e-3


def is_cheaper(
    connection: Connection,
    source: Source,
    workload: Workload,
    *,
    recall: float,
    layout: bool,
) -> bool:
    """Whether SQL is expected to answer the queries sooner than a batch."""
    count = len(workload)
    if source.chunked or not 0 < count <= _MOST_QUERIES:
        return False
    (rows,) = fetch_one(
        connection,
        "SELECT (pgembed._table_size(%s::pg_catalog.text::pg_catalog.regclass)).rows",
        [source.relation],
    )
    fixed = rows * _ROW_SECONDS
    if not layout:
        fixed += rows * (_READ_SECONDS[0] + source.dimensions * _READ_SECONDS[1])
    singly = 0.0
    for member in np.unique(workload.members):
        members = np.flatnonzero(workload.members == member)
        query = int(members[0])
        cost = _estimate(connection, source, workload, query, recall)
        singly += len(members) * (cost + _SQL_SECONDS)
        if singly > fixed:
            return False
    return True


def _estimate(
    connection: Connection,
    source: Source,
    workload: Workload,
    query: int,
    recall: float,
) -> float:
    ((exact, index),) = fetch(
        connection,
        "SELECT p.exact_us, "  # noqa: S608 - names PostgreSQL quoted
        "CASE p.strategy WHEN 'index' THEN p.index_us END "
        f"FROM pgembed._plan_search('{_literal(source.relation)}'::pg_catalog.regtype, "
        "$1, $2, $3::pg_catalog.jsonb, $4, $5, 'auto', $6) AS p",
        _arguments(source, workload, query, recall),
    )
    return float(index if index is not None else exact) / 1e6


def _arguments(
    source: Source, workload: Workload, query: int, recall: float
) -> list[Any]:
    condition = workload.conditions[workload.members[query]]
    return [
        workload.queries[query],
        int(workload.k[query]),
        condition.filter,
        condition.predicate,
        source.name,
        recall,
    ]


def _literal(text: str) -> str:
    return text.replace("'", "''")


def answer(
    connection: Connection,
    source: Source,
    workload: Workload,
    recall: float,
    report: Report,
    *,
    keys: bool = True,
) -> BatchResult:
    """Answer each query by pgembed.search; *keys*: whether they are wanted."""
    report.strategy = ONE_BY_ONE
    tables = Tables()
    most = int(workload.k.max())
    shape = (len(workload), most)
    distances = np.full(shape, np.inf)
    places = np.zeros(shape, np.uint64)
    found = np.empty(shape if keys else (len(workload), 0), object)
    counts = np.zeros(len(workload), np.int64)
    with report.stage("searching"):
        for query in range(len(workload)):
            rows = _search(connection, source, workload, query, recall, keys=keys)
            counts[query] = len(rows)
            for rank, (oid, tid, distance, *key) in enumerate(rows):
                distances[query, rank] = distance
                places[query, rank] = tables.ids(oid, unpack(tid))[0]
                if keys:
                    found[query, rank] = key[0] if len(key) == 1 else tuple(key)
    return BatchResult(
        typed(found, counts), distances, counts, report, places, tuple(tables.oids)
    )


def typed(keys: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """Return *keys* (q, k) as int64, if all of the first *counts* are integers."""
    there = np.arange(keys.shape[1]) < counts[:, None]
    if there.any() and all(type(key) is int for key in keys[there]):
        return np.where(there, keys, 0).astype(np.int64)
    return keys


def _named(condition: Condition) -> contextlib.AbstractContextManager[None]:
    if condition.predicate is None:
        return contextlib.nullcontext()
    return refusals(f"{condition}: ")


def _search(
    connection: Connection,
    source: Source,
    workload: Workload,
    query: int,
    recall: float,
    *,
    keys: bool,
) -> list[tuple[Any, ...]]:
    condition = workload.conditions[workload.members[query]]
    values = f", {source.key_values('t')}" if keys else ""
    match = " AND ".join(f"t.{key} = (s.item).{key}" for key in source.keys)
    statement = (
        "SELECT t.tableoid::pg_catalog.int8, "  # noqa: S608 - names PostgreSQL quoted
        f"pg_catalog.tidsend(t.ctid), s.distance{values} "
        f"FROM pgembed.search(NULL::{source.relation}, $1, $2, $3::pg_catalog.jsonb, "
        f"$4, $5, 'auto', $6) AS s INNER JOIN {source.relation} AS t ON {match} "
        f"ORDER BY s.distance, {source.key_list('t')}"
    )
    arguments = _arguments(source, workload, query, recall)
    with _named(condition), readable(source):
        return fetch(connection, statement, arguments)
