"""The queries of a benchmark, what they are to find, and tables of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from numpy.typing import NDArray
from psycopg import sql

from pgembed.postgres.connection import Connection, fetch_one

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Questions:
    """Queries: vectors (q, d), a filter for each, and the keys of the exact answer."""

    vectors: Array
    filters: list[Any]
    truth: list[set[int]]

    def query(self, number: int) -> tuple[Array, Any]:
        """Return the vector and the filter of one query."""
        return self.vectors[number], self.filters[number]

    def recall(self, number: int, found: set[int]) -> float:
        """Return the share of the true keys of one query that were *found*."""
        true = self.truth[number]
        return len(true & found) / len(true) if true else 1.0


def exists(connection: Connection, relation: str) -> bool:
    """Whether a table or an index of that name is there, from an earlier run."""
    (found,) = fetch_one(
        connection, "SELECT to_regclass(%s) IS NOT NULL", [f"public.{relation}"]
    )
    return bool(found)


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
