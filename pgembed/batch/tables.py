"""Workloads read from tables."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.metric import ZERO
from pgembed.batch.rows import Tables, TidArray, fetch, unpack
from pgembed.batch.workload import INFINITE, Workload
from pgembed.errors import SettingError, VectorError
from pgembed.postgres.connection import Connection, fetch_one

Float32 = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Float32]

_VECTORS = ("embedding", "vector")


@dataclasses.dataclass(frozen=True)
class QueryTable:
    """A table of queries: its quoted name, its columns, the places of its rows."""

    name: str
    columns: frozenset[str]
    places: NDArray[np.uint64]
    ids: NDArray[np.int64] | None
    """Those of the queries, if the column holds nothing but integers."""


def read_queries(
    connection: Connection,
    name: str,
    *,
    k: int = 10,
    dimensions: int,
    distance: str | None = None,
    embed: Embed | None = None,
) -> tuple[Workload, QueryTable]:
    """Read the table *name*: id, embedding (a vector) or content (a text), and
    optionally filter (jsonb), predicate (text) and k (integer).

    *embed* makes vectors (n, d) of texts. Rows with neither a vector nor a text are
    left out. Raises SettingError for a table without the columns that are needed, and
    VectorError for a vector that has no *distance* (None: any may do).
    """
    quoted, columns, whole = _describe(connection, name)
    wanted = ["pg_catalog.tidsend(q.ctid)", "q.id" if whole else "NULL"]
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
    rows = [row for row in rows if row[2] is not None or row[3] is not None]
    vectors = _vectors(name, [row[2:4] for row in rows], dimensions, embed)
    places = Tables().ids(0, unpack(b"".join(row[0] for row in rows)))
    _check(connection, quoted, vectors, places, distance)
    workload = Workload.of(
        vectors,
        [row[4] for row in rows],
        [row[5] for row in rows],
        np.array([k if row[6] is None else row[6] for row in rows], np.int64),
    )
    ids = [row[1] for row in rows]
    numbers = None if None in ids else np.array(ids, np.int64)
    return workload, QueryTable(quoted, columns, places, numbers)


def read_texts(connection: Connection, name: str) -> list[str]:
    """Return the distinct texts of the queries in table *name* without a vector."""
    quoted, columns, _ = _describe(connection, name)
    if "content" not in columns:
        return []
    bare = "WHERE q.embedding IS NULL" if "embedding" in columns else "WHERE true"
    rows = fetch(
        connection,
        f"SELECT DISTINCT q.content::pg_catalog.text FROM {quoted} AS q "  # noqa: S608
        f"{bare} AND q.content IS NOT NULL",
    )
    return [row[0] for row in rows]


def _describe(connection: Connection, name: str) -> tuple[str, frozenset[str], bool]:
    """Return the quoted name, the columns, and whether those of id are integers."""
    row = fetch_one(
        connection,
        """
        SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname),
            pgembed._columns(c.oid), c.relkind = 'r' AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = c.oid),
            EXISTS (
                SELECT FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attname = 'id'
                    AND a.atttypid IN (20::oid, 21::oid, 23::oid)
            )
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = %s::pg_catalog.text::pg_catalog.regclass::oid
        """,
        [name],
    )
    columns = frozenset(row[1])
    if not row[2]:
        raise SettingError(
            f"{name} is not an ordinary table, or others inherit from it: put the "
            "queries into one alone, such as CREATE UNLOGGED TABLE queries AS SELECT …"
        )
    if "id" not in columns or not columns & {"embedding", "content"}:
        raise SettingError(
            f"table {name} has the columns {', '.join(sorted(columns))}; queries need "
            "id, and embedding (a vector) or content (a text)"
        )
    return str(row[0]), columns, row[3]


def _vectors(
    name: str, rows: list[tuple[Any, ...]], dimensions: int, embed: Embed | None
) -> Float32:
    vectors = np.zeros((len(rows), dimensions), np.float32)
    texts = [i for i, (vector, _) in enumerate(rows) if vector is None]
    for i, (given, _) in enumerate(rows):
        if given is not None:
            vector = _vector(name, given)
            if len(vector) != dimensions:
                raise SettingError(
                    f"a query in {name} has {len(vector)} dimensions, the embedding "
                    f"{dimensions}: make it with the model that made the vectors"
                )
            vectors[i] = vector
    if texts and embed is None:
        raise SettingError(
            f"{len(texts)} queries in {name} are texts, and the embedding has no model "
            "to read them with: give vectors in the column embedding"
        )
    if texts and embed is not None:
        vectors[texts] = embed([rows[i][1] for i in texts])
    return vectors


def _vector(name: str, given: Any) -> Float32:
    if isinstance(given, np.ndarray) and given.dtype == np.float32:
        return given
    with contextlib.suppress(TypeError, ValueError), np.errstate(over="ignore"):
        vector = np.asarray(given, np.float32)
        if vector.ndim == 1:
            return vector
    raise SettingError(
        f"the column embedding of {name} holds {str(given)[:60]!r}, which is no "
        "vector: make its type vector, halfvec or real[]"
    )


def _check(
    connection: Connection,
    quoted: str,
    vectors: Float32,
    places: NDArray[np.uint64],
    distance: str | None,
) -> None:
    """Raise VectorError, by its id, for a query that has no *distance*."""
    wrong = [(~np.isfinite(vectors).all(axis=1), INFINITE)]
    if distance == "cosine":
        wrong.append((~vectors.any(axis=1), ZERO))
    for is_wrong, reason in wrong:
        if is_wrong.any():
            ((found,),) = fetch(
                connection,
                f"SELECT q.id::pg_catalog.text FROM {quoted} AS q "  # noqa: S608
                "WHERE q.ctid = ANY ($1)",
                [TidArray(places[is_wrong][:1])],
            )
            raise VectorError(f"query {found!r} in {quoted} {reason}")
