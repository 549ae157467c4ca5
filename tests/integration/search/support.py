"""What the search tests share: tables with vectors, filters run by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[Any]
Matrix = NDArray[np.float32]


def vector_text(vector: NDArray[Any]) -> str:
    """Return *vector* (d,) in pgvector's text form."""
    return "[" + ",".join(map(str, vector.tolist())) + "]"


def unsafe(text: str) -> sql.SQL:
    """Return *text*, which the tests made themselves, as SQL."""
    return sql.SQL(text)


def compiled(connection: Connection, table: str, where: Any) -> tuple[str, list[str]]:
    """Compile *filter* on *table*: the condition and its arguments."""
    row = connection.execute(
        "SELECT condition, arguments "
        "FROM pgembed._compile_filter(%s::regclass, %s, '$1::text[]')",
        (table, json.dumps(where)),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def passing(
    connection: Connection, table: str, where: Any, key: str = "id"
) -> list[Any]:
    """Return the keys of the rows of *table* that pass *filter*, sorted."""
    condition, arguments = compiled(connection, table, where)
    query = (
        f"SELECT {key} FROM {table} WHERE $1::text[] IS NOT NULL AND {condition} "
        f"ORDER BY {key}"
    )
    with psycopg.RawCursor(connection) as cursor:
        cursor.execute(unsafe(query), [arguments])
        return [row[0] for row in cursor.fetchall()]


def search(
    connection: Connection,
    table: str,
    query: NDArray[Any],
    *,
    key: str = "id",
    **arguments: Any,
) -> list[tuple[Any, float]]:
    """Call pgembed.search with a vector; return (key, distance) in its order."""
    return [
        tuple(row)
        for row in connection.execute(
            unsafe(
                f"SELECT (item).{key}, distance FROM pgembed.search("
                f"NULL::{table}, %(query)s::vector{_named(arguments)})"
            ),
            _adapted(arguments) | {"query": vector_text(query)},
        )
    ]


def explain(
    connection: Connection, table: str, query: NDArray[Any], **arguments: Any
) -> dict[str, Any]:
    """Call pgembed.explain_search with a vector."""
    row = connection.execute(
        unsafe(
            f"SELECT pgembed.explain_search("
            f"NULL::{table}, %(query)s::vector{_named(arguments)})"
        ),
        _adapted(arguments) | {"query": vector_text(query)},
    ).fetchone()
    assert row is not None
    return cast("dict[str, Any]", row[0])


def plan_of(connection: Connection, report: dict[str, Any], query: NDArray[Any]) -> str:
    """Return the plan of the statement in an explain_search *report*, as text."""
    with connection.transaction(force_rollback=True):
        cursor = psycopg.RawCursor(connection)
        for name, value in report["settings"].items():
            cursor.execute("SELECT set_config($1, $2, true)", [name, value])
        cursor.execute(
            unsafe(
                "PREPARE searched (public.vector, int, text[], int, tid[]) AS "
                + report["statement"]
            )
        )
        k = report["k"]
        values = sql.SQL(", ").join(
            (vector_text(query), k, report["arguments"], k * 8, sql.NULL)
        )
        try:
            rows = connection.execute(
                sql.SQL("EXPLAIN EXECUTE searched ({})").format(values)
            ).fetchall()
        finally:
            cursor.execute("DEALLOCATE searched")
        return "\n".join(row[0] for row in rows)


def _named(arguments: dict[str, Any]) -> str:
    return "".join(f", {name} => %({name})s" for name in arguments)


def _adapted(arguments: dict[str, Any]) -> dict[str, Any]:
    where = arguments.get("filter")
    return arguments | ({} if where is None else {"filter": Jsonb(where)})


def create_items(
    connection: Connection,
    table: str,
    vectors: Matrix,
    *,
    columns: Mapping[str, tuple[str, Sequence[Any]]] | None = None,
    kind: str = "vector",
) -> None:
    """Create *table* with id 0 … n-1, *vectors* (n, d) in column v, and *columns*.

    *columns*: name -> (SQL type, values).
    """
    given = columns or {}
    definitions = "".join(f", {name} {type_}" for name, (type_, _) in given.items())
    width = vectors.shape[1]
    connection.execute(
        unsafe(
            f"CREATE TABLE {table} (id int PRIMARY KEY, v {kind}({width}){definitions})"
        )
    )
    extra = zip(*(values for _, values in given.values()), strict=True)
    with connection.cursor().copy(unsafe(f"COPY {table} FROM STDIN")) as copy:
        for i, vector in enumerate(vectors):
            copy.write_row((i, _literal(vector, kind), *(next(extra, ()))))
    connection.execute(unsafe(f"ANALYZE {table}"))


def _literal(vector: Matrix, kind: str) -> str:
    if kind == "bit":
        return "".join("1" if x > 0 else "0" for x in vector)
    return vector_text(vector)


def adopt(connection: Connection, table: str, column: str = "v", **options: Any) -> str:
    """Adopt the vector column of *table*; return the embedding's name."""
    row = connection.execute(
        unsafe(
            "SELECT pgembed.adopt_vectors(%(table)s::regclass, %(column)s"
            f"{_named(options)})"
        ),
        options | {"table": table, "column": column},
    ).fetchone()
    assert row is not None
    name: str = row[0]
    return name
