"""Answers written to tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgembed.batch.join import Askers
from pgembed.batch.result import BatchResult
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
from pgembed.errors import PgembedError, SettingError
from pgembed.postgres import copying
from pgembed.postgres.connection import Connection, fetch_all, fetch_one

_BLOCK = 50_000
Ints = NDArray[np.int64]
_NUMBERS = {21: ">i2", 23: ">i4", 20: ">i8", 701: ">f8"}
"""How COPY BINARY has numbers, by the oid of their type."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """The rows of a table q that asked, and what results call them and the answers."""

    name: str
    places: NDArray[np.uint64]
    """(q,): where the rows are."""
    columns: dict[str, str]
    """Columns of the results by name: expressions on q."""
    keys: tuple[str, ...]
    """Columns of the results for the key columns of the rows found."""
    numbers: NDArray[np.int64] | None
    """(q,): the values of *columns*, if that is one column of integers."""
    oids: tuple[int, ...] = ()
    """The tables to which *places* refer, when the rows are in several."""

    @classmethod
    def by_table(cls, queries: QueryTable, source: Source) -> Asked:
        """Queries of a table with an id."""
        columns = {"query_id": "q.id"}
        return cls(queries.name, queries.places, columns, source.keys, queries.ids)

    @classmethod
    def by_rows(
        cls, asking: Source, source: Source, askers: Askers, oids: Sequence[int]
    ) -> Asked:
        """Rows of an embedding, in tables *oids*."""
        columns = {key: f"q.{key}" for key in asking.keys}
        keys = tuple(_related(key) for key in source.keys)
        several = tuple(oids) if asking.divided else ()
        numbers = askers.keys if asking.whole_key else None
        return cls(asking.target, askers.ids, columns, keys, numbers, several)


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
    connection: Connection,
    source: Source,
    asked: Asked,
    results: str,
    answer: BatchResult,
) -> int:
    """Write *answer* to the table *results*; return the rows written.

    Belongs into the transaction in which the batch ran: then all of it is committed,
    or nothing. The table is created if it does not exist: the columns of those who
    asked, rank, the key columns of the rows found, distance.
    """
    names = _result_columns(source, asked)
    _create(connection, source, asked, results, names)
    target = _quoted(connection, results)
    there = np.arange(answer.distances.shape[1]) < answer.counts[:, None]
    queries, ranks = np.nonzero(there)
    rows = _Rows(asked, answer, queries, ranks, target, names)
    written = _copy_in(connection, rows)
    if written is None:
        written = _insert(connection, source, rows)
    if written != len(rows):
        raise PgembedError(
            f"{written} of {len(rows)} result rows could be written: a trigger of "
            f"{results} left some out, or rows of {source.relation} are not visible "
            "any more: run the batch in a REPEATABLE READ transaction with the writing"
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
            ON a.attrelid = $1::pg_catalog.text::pg_catalog.regclass
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


def _insert(connection: Connection, source: Source, rows: _Rows) -> int:
    asked, answer = rows.asked, rows.answer
    statement = _insert_statement(source, rows)
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


def _insert_statement(source: Source, rows: _Rows) -> str:
    asked = rows.asked
    in_table = " AND {}.tableoid::pg_catalog.int8 = u.{}"
    asker = in_table.format("q", "query_oid") if asked.oids else ""
    found = in_table.format("t", "oid") if source.divided else ""
    return (
        f"INSERT INTO {rows.target} ({', '.join(rows.names)}) "  # noqa: S608 - quoted names
        f"SELECT {', '.join(asked.columns.values())}, u.rank, "
        f"{source.key_list('t')}, u.distance "
        "FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog._tid), "
        "pg_catalog.unnest($2::pg_catalog._int8), "
        "pg_catalog.unnest($3::pg_catalog._tid), "
        "pg_catalog.unnest($4::pg_catalog._int8), "
        "pg_catalog.unnest($5::pg_catalog._int4), "
        "pg_catalog.unnest($6::pg_catalog._float8)) "
        "AS u (query, query_oid, tid, oid, rank, distance) "
        f"INNER JOIN {asked.name} AS q ON q.ctid = u.query{asker} "
        f"INNER JOIN {source.target} AS t ON t.ctid = u.tid{found}"
    )


def _tables(places: NDArray[np.uint64], oids: Sequence[int]) -> Int8Array:
    if not oids:
        return Int8Array(np.zeros(len(places)))
    numbers = (places >> np.uint64(48)).astype(np.int64)
    return Int8Array(np.array(oids, np.int64)[numbers])


def _result_columns(source: Source, asked: Asked) -> list[str]:
    names = [*asked.columns, "rank", *asked.keys, "distance"]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingError(
            f"the key column {twice[0]} of {source.relation} has the name of a "
            "column of results: rename it, or use pgembed.search_batch in Python"
        )
    return names


def _related(key: str) -> str:
    """Return the quoted name of the column for a related row's key column."""
    name = key[1:-1].replace('""', '"') if key.startswith('"') else key
    return sql.Identifier(f"related_{name}").as_string()


def _create(
    connection: Connection,
    source: Source,
    asked: Asked,
    results: str,
    names: list[str],
) -> None:
    found = fetch_all(connection, "SELECT pg_catalog.to_regclass(%s)", [results])
    if found[0][0] is not None:
        return
    parts = fetch_one(connection, "SELECT pg_catalog.parse_ident(%s)", [results])[0]
    values = [
        *asked.columns.values(),
        "NULL::pg_catalog.int4",
        *(f"t.{key}" for key in source.keys),
        "NULL::pg_catalog.float8",
    ]
    columns = [f"{v} AS {n}" for v, n in zip(values, names, strict=True)]
    connection.execute(
        sql.SQL("CREATE TABLE {} AS SELECT {} FROM {} AS q, {} AS t LIMIT 0").format(
            sql.Identifier(*parts),
            _sql(", ".join(columns)),
            _sql(asked.name),
            _sql(source.target),
        )
    )


def _quoted(connection: Connection, name: str) -> str:
    (quoted,) = fetch_one(
        connection,
        "SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) "
        "FROM pg_catalog.pg_class AS c INNER JOIN pg_catalog.pg_namespace AS n "
        "ON n.oid = c.relnamespace "
        "WHERE c.oid = %s::pg_catalog.text::pg_catalog.regclass",
        [name],
    )
    return str(quoted)


def _sql(text: str) -> sql.SQL:
    return sql.SQL(text)
