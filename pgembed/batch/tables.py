"""Workloads read from tables, and answers written to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgembed.batch.result import BatchResult
from pgembed.batch.rows import (
    Float8Array,
    Int4Array,
    Int8Array,
    RowIds,
    TidArray,
    fetch,
    raw_cursor,
)
from pgembed.batch.source import Source
from pgembed.batch.workload import Workload
from pgembed.errors import PgembedError, SettingError
from pgembed.postgres.connection import Connection, fetch_all, fetch_one

Float32 = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Float32]

_VECTORS = ("embedding", "vector")
_BLOCK = 50_000


@dataclasses.dataclass(frozen=True)
class QueryTable:
    """A table of queries: its quoted name, its columns, the places of its rows."""

    name: str
    columns: frozenset[str]
    places: NDArray[np.uint64]


def read_queries(
    connection: Connection,
    name: str,
    *,
    k: int = 10,
    dimensions: int,
    embed: Embed | None = None,
) -> tuple[Workload, QueryTable]:
    """Read the table *name*: id, embedding (a vector) or content (a text), and
    optionally filter (jsonb), predicate (text) and k (integer).

    *embed* makes vectors (n, d) of texts. Rows with neither a vector nor a text are
    left out. Raises SettingError for a table without the columns that are needed.
    """
    quoted, columns = _describe(connection, name)
    wanted = ["pg_catalog.tidsend(q.ctid)"]
    for column, kind, fallback in (
        ("embedding", "", "NULL"),
        ("content", "::pg_catalog.text", "NULL"),
        ("filter", "::pg_catalog.text", "NULL"),
        ("predicate", "::pg_catalog.text", "NULL"),
        ("k", "::pg_catalog.int8", "NULL"),
    ):
        wanted.append(f"q.{column}{kind}" if column in columns else fallback)
    rows = fetch(
        connection,
        f"SELECT {', '.join(wanted)} FROM {quoted} AS q",  # noqa: S608 - quoted
    )
    rows = [row for row in rows if row[1] is not None or row[2] is not None]
    vectors = _vectors(name, rows, dimensions, embed)
    places = _places([row[0] for row in rows])
    workload = Workload.of(
        vectors,
        [row[3] for row in rows],
        [row[4] for row in rows],
        np.array([k if row[5] is None else row[5] for row in rows], np.int64),
    )
    return workload, QueryTable(quoted, columns, places)


def read_texts(connection: Connection, name: str) -> list[str]:
    """Return the distinct texts of the queries in table *name* without a vector."""
    quoted, columns = _describe(connection, name)
    if "content" not in columns:
        return []
    bare = "WHERE q.embedding IS NULL" if "embedding" in columns else "WHERE true"
    rows = fetch(
        connection,
        f"SELECT DISTINCT q.content::pg_catalog.text FROM {quoted} AS q "  # noqa: S608
        f"{bare} AND q.content IS NOT NULL",
    )
    return [row[0] for row in rows]


def _describe(connection: Connection, name: str) -> tuple[str, frozenset[str]]:
    row = fetch_one(
        connection,
        """
        SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname),
            pgembed._columns(c.oid), c.relkind
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = %s::pg_catalog.text::pg_catalog.regclass
        """,
        [name],
    )
    columns = frozenset(row[1])
    if row[2] != "r":
        raise SettingError(
            f"{name} is not an ordinary table: put the queries into one, such as "
            "CREATE TEMP TABLE queries AS SELECT …"
        )
    if "id" not in columns or not columns & {"embedding", "content"}:
        raise SettingError(
            f"table {name} has the columns {', '.join(sorted(columns))}; queries need "
            "id, and embedding (a vector) or content (a text)"
        )
    return str(row[0]), columns


def _vectors(
    name: str, rows: list[tuple[Any, ...]], dimensions: int, embed: Embed | None
) -> Float32:
    vectors = np.zeros((len(rows), dimensions), np.float32)
    texts = [i for i, row in enumerate(rows) if row[1] is None]
    for i, row in enumerate(rows):
        if row[1] is not None:
            if len(row[1]) != dimensions:
                raise SettingError(
                    f"a query in {name} has {len(row[1])} dimensions, the embedding "
                    f"{dimensions}: make it with the model that made the vectors"
                )
            vectors[i] = row[1]
    if texts and embed is None:
        raise SettingError(
            f"{len(texts)} queries in {name} are texts, and the embedding has no model "
            "to read them with: give vectors in the column embedding"
        )
    if texts and embed is not None:
        vectors[texts] = embed([rows[i][2] for i in texts])
    return vectors


def _places(tids: list[bytes]) -> NDArray[np.uint64]:
    raw = np.frombuffer(b"".join(tids), [("block", ">u4"), ("offset", ">u2")])
    return np.asarray((raw["block"].astype(np.uint64) << np.uint64(16)) | raw["offset"])


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
    oids: tuple[int, ...] = ()
    """The tables to which *places* refer, when the rows are in several."""

    @classmethod
    def by_table(cls, queries: QueryTable, source: Source) -> Asked:
        """Queries of a table with an id."""
        columns = {"query_id": "q.id"}
        return cls(queries.name, queries.places, columns, source.keys)

    @classmethod
    def by_rows(
        cls, asking: Source, source: Source, ids: RowIds, oids: Sequence[int]
    ) -> Asked:
        """Rows *ids* (q,) of an embedding, in tables *oids*."""
        columns = {key: f"q.{key}" for key in asking.keys}
        keys = tuple(_related(key) for key in source.keys)
        several = tuple(oids) if asking.divided else ()
        return cls(asking.target, ids, columns, keys, several)


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
    rows, ranks = np.nonzero(there)
    places = answer.places[rows, ranks]
    statement = _insert(source, asked, target, names)
    written = 0
    with raw_cursor(connection) as cursor:
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            askers = asked.places[rows[part]]
            cursor.execute(
                statement.encode(),
                [
                    TidArray(askers),
                    _tables(askers, asked.oids),
                    TidArray(places[part]),
                    _tables(places[part], answer.tables),
                    Int4Array(ranks[part] + 1),
                    Float8Array(answer.distances[rows[part], ranks[part]]),
                ],
            )
            written += cursor.rowcount
    if written != len(rows):
        raise PgembedError(
            f"{written} of {len(rows)} result rows could be written, because rows of "
            f"{source.relation} are not visible any more: run the batch in one "
            "REPEATABLE READ transaction with the writing"
        )
    return written


def _insert(source: Source, asked: Asked, target: str, names: list[str]) -> str:
    in_table = " AND {}.tableoid::pg_catalog.int8 = u.{}"
    asker = in_table.format("q", "query_oid") if asked.oids else ""
    found = in_table.format("t", "oid") if source.divided else ""
    return (
        f"INSERT INTO {target} ({', '.join(names)}) "  # noqa: S608 - quoted names
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
