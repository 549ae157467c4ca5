"""Answers written to tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.join import Askers
from pgembed.batch.result import BatchResult
from pgembed.batch.results_table import ResultsTable
from pgembed.batch.rows import (
    Float8Array,
    Int4Array,
    Int8Array,
    TidArray,
    fetch,
    raw_cursor,
)
from pgembed.batch.source import Source
from pgembed.batch.tables import QueryTable
from pgembed.errors import PgembedError
from pgembed.postgres import copying
from pgembed.postgres.connection import Connection

_BLOCK = 50_000
Ints = NDArray[np.int64]
_NUMBERS = {21: ">i2", 23: ">i4", 20: ">i8", 701: ">f8"}
"""How COPY BINARY has numbers, by the oid of their type."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """The rows of a table that asked."""

    places: NDArray[np.uint64]
    """(q,): where they are."""
    numbers: NDArray[np.int64] | None
    """(q,): what the results call them, if that is one column of integers."""
    oids: tuple[int, ...] = ()
    """The tables to which *places* refer, when the rows are in several."""

    @classmethod
    def by_table(cls, queries: QueryTable) -> Asked:
        """Queries of a table with an id."""
        return cls(queries.places, queries.ids)

    @classmethod
    def by_rows(cls, asking: Source, askers: Askers, oids: Sequence[int]) -> Asked:
        """Rows of an embedding, in tables *oids*."""
        numbers = askers.keys if asking.whole_key else None
        return cls(askers.ids, numbers, tuple(oids) if asking.divided else ())


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows to write: whose answers, and the table and columns for them."""

    asked: Asked
    answer: BatchResult
    queries: Ints
    """(n,): the query of each row."""
    ranks: Ints
    """(n,): its rank, from 0."""
    target: str
    names: list[str]

    def __len__(self) -> int:
        """Return n."""
        return len(self.queries)


def write_results(
    connection: Connection, results: ResultsTable, asked: Asked, answer: BatchResult
) -> int:
    """Write *answer* to the table of results; return the rows written.

    Belongs into the transaction in which the batch ran: then all of it is committed,
    or nothing. The table is created if it does not exist.
    """
    there = np.arange(answer.distances.shape[1]) < answer.counts[:, None]
    queries, ranks = np.nonzero(there)
    target = results.create(connection)
    rows = _Rows(asked, answer, queries, ranks, target, results.columns)
    written = _copy_in(connection, rows)
    if written is None:
        written = _insert(connection, results, rows)
    if written != len(rows):
        raise PgembedError(
            f"{written} of {len(rows)} result rows could be written: a trigger of "
            f"{results.name} left some out, or rows of {results.source.relation} are "
            "not visible any more: run the batch in a REPEATABLE READ transaction with "
            "the writing"
        )
    return written


def _copy_in(connection: Connection, rows: _Rows) -> int | None:
    """Write answers by COPY, if they are numbers as the table has them, and may be.

    A tenth of what it takes to look up the keys of both sides where they are. Returns
    the rows written; None if they have to be inserted.
    """
    numbers, keys = rows.asked.numbers, rows.answer.keys
    if numbers is None or keys.dtype != np.int64 or not keys.size:
        return None
    queries, ranks = rows.queries, rows.ranks
    distances = rows.answer.distances[queries, ranks]
    values = [numbers[queries], ranks + 1, keys[queries, ranks], distances]
    oids = _types(connection, rows.target, rows.names)
    types = [_NUMBERS.get(oid, "") for oid in oids]
    pairs = list(zip(types, values, strict=False))
    if len(pairs) < len(values) or not all(itertools.starmap(_holds, pairs)):
        return None
    return copying.write_columns(connection, rows.target, rows.names, pairs)


def _types(connection: Connection, target: str, names: list[str]) -> list[int]:
    """Return the types of columns; none if COPY would not do what INSERT does."""
    found = fetch(
        connection,
        """
        SELECT a.atttypid::pg_catalog.int8
        FROM pg_catalog.unnest($2::pg_catalog._text) WITH ORDINALITY AS u (name, place)
        INNER JOIN pg_catalog.pg_attribute AS a
            ON a.attrelid = $1::pg_catalog.text::pg_catalog.regclass::oid
            AND u.name IN (
                pg_catalog.quote_ident(a.attname),
                '"' || pg_catalog.replace(a.attname, '"', '""') || '"'
            )
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
        WHERE c.relkind IN ('r', 'p') AND NOT c.relhasrules AND a.attidentity <> 'a'
            AND NOT pg_catalog.row_security_active(c.oid)
        ORDER BY u.place
        """,
        [target, names],
    )
    return [kind for (kind,) in found]


def _holds(type_: str, values: NDArray[Any]) -> bool:
    """Whether a type holds all of *values* as they are."""
    if not type_ or np.dtype(type_).kind != values.dtype.kind:
        return False
    if values.dtype.kind == "f" or not len(values):
        return True
    bounds = np.iinfo(type_)
    return bool(bounds.min <= values.min() and values.max() <= bounds.max)


def _insert(connection: Connection, results: ResultsTable, rows: _Rows) -> int:
    asked, answer = rows.asked, rows.answer
    statement = _insert_statement(results, rows)
    written = 0
    with raw_cursor(connection) as cursor:
        for start in range(0, len(rows), _BLOCK):
            queries = rows.queries[start : start + _BLOCK]
            ranks = rows.ranks[start : start + _BLOCK]
            askers = asked.places[queries]
            places = answer.places[queries, ranks]
            cursor.execute(
                statement.encode(),
                [
                    TidArray(askers),
                    _tables(askers, asked.oids),
                    TidArray(places),
                    _tables(places, answer.tables),
                    Int4Array(ranks + 1),
                    Float8Array(answer.distances[queries, ranks]),
                ],
            )
            written += cursor.rowcount
    return written


def _insert_statement(results: ResultsTable, rows: _Rows) -> str:
    source = results.source
    in_table = " AND {}.tableoid::pg_catalog.int8 = u.{}"
    asker = in_table.format("q", "query_oid") if rows.asked.oids else ""
    found = in_table.format("t", "oid") if source.divided else ""
    return (
        f"INSERT INTO {rows.target} ({', '.join(rows.names)}) "  # noqa: S608 - quoted names
        f"SELECT {', '.join(results.asked.values())}, u.rank, "
        f"{source.key_list('t')}, u.distance "
        "FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog._tid), "
        "pg_catalog.unnest($2::pg_catalog._int8), "
        "pg_catalog.unnest($3::pg_catalog._tid), "
        "pg_catalog.unnest($4::pg_catalog._int8), "
        "pg_catalog.unnest($5::pg_catalog._int4), "
        "pg_catalog.unnest($6::pg_catalog._float8)) "
        "AS u (query, query_oid, tid, oid, rank, distance) "
        f"INNER JOIN {results.asking} AS q ON q.ctid = u.query{asker} "
        f"INNER JOIN {source.target} AS t ON t.ctid = u.tid{found}"
    )


def _tables(places: NDArray[np.uint64], oids: Sequence[int]) -> Int8Array:
    if not oids:
        return Int8Array(np.zeros(len(places)))
    numbers = (places >> np.uint64(48)).astype(np.int64)
    return Int8Array(np.array(oids, np.int64)[numbers])
