"""The table that the answers of a batch are written to."""

from __future__ import annotations

import dataclasses

from psycopg import errors, sql

from pgembed.batch.source import Source
from pgembed.errors import SettingError
from pgembed.postgres.connection import Connection, fetch_all, fetch_one


@dataclasses.dataclass(frozen=True)
class ResultsTable:
    """A table for results, which need not exist, and what its columns hold.

    They are: those of the row q of table *asking* that asked, rank, the key columns of
    the row found, distance.
    """

    name: str
    asking: str
    source: Source
    asked: dict[str, str]
    """Columns by name: expressions on q."""
    found: tuple[str, ...]
    """Columns for the key of the row found."""

    @classmethod
    def for_queries(cls, name: str, queries: str, source: Source) -> ResultsTable:
        """Return what holds answers to table *queries*, which has an id."""
        return cls(name, queries, source, {"query_id": "q.id"}, source.keys)

    @classmethod
    def for_rows(cls, name: str, asking: Source, source: Source) -> ResultsTable:
        """Return what holds the rows related to those of *asking*."""
        asked = {key: f"q.{key}" for key in asking.keys}
        return cls(
            name, asking.target, source, asked, tuple(map(_related, source.keys))
        )

    @property
    def columns(self) -> list[str]:
        """The names of the columns, as SQL has them."""
        return [*self.asked, "rank", *self.found, "distance"]

    def check(self, connection: Connection) -> None:
        """Raise SettingError when the table cannot hold the results.

        A batch does so before it starts.
        """
        names = self.columns
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingError(
                f"the key column {twice[0]} of {self.source.relation} has the name of "
                "a column of results: rename it, or use pgembed.search_batch in Python"
            )
        missing = fetch_all(
            connection,
            """
            SELECT u.name
            FROM pg_catalog.pg_class AS c
            CROSS JOIN pg_catalog.unnest(%s::pg_catalog._text)
                WITH ORDINALITY AS u (name, place)
            WHERE c.oid = pg_catalog.to_regclass(%s)::oid AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = c.oid AND NOT a.attisdropped
                    AND a.attname
                        = (pg_catalog.parse_ident(u.name))[1]::pg_catalog.name)
            ORDER BY u.place
            """,
            [names, self.name],
        )
        if missing:
            raise SettingError(
                f"table {self.name} has no column {missing[0][0]}: results have the "
                f"columns {', '.join(names)}; add what it lacks, or name a table that "
                "does not exist yet"
            )

    def create(self, connection: Connection) -> str:
        """Create the table if it is not there; return its quoted, qualified name."""
        if not self._is_there(connection):
            try:
                with connection.transaction():
                    self._create(connection)
            except (errors.DuplicateTable, errors.UniqueViolation):
                # Another batch made it meanwhile.
                if not self._is_there(connection):
                    raise
        # Not from pg_class: the snapshot may be older than the table.
        (quoted,) = fetch_one(
            connection,
            """
            SELECT pg_catalog.format('%%I.%%I', i.object_names[1], i.object_names[2])
            FROM pg_catalog.pg_identify_object_as_address(
                'pg_catalog.pg_class'::pg_catalog.regclass::oid,
                %s::pg_catalog.text::pg_catalog.regclass::oid, 0) AS i
            """,
            [self.name],
        )
        return str(quoted)

    def _is_there(self, connection: Connection) -> bool:
        query = "SELECT pg_catalog.to_regclass(%s) IS NOT NULL"
        return bool(fetch_one(connection, query, [self.name])[0])

    def _create(self, connection: Connection) -> None:
        parts = fetch_one(connection, "SELECT pg_catalog.parse_ident(%s)", [self.name])
        values = [
            *self.asked.values(),
            "NULL::pg_catalog.int4",
            *(f"t.{key}" for key in self.source.keys),
            "NULL::pg_catalog.float8",
        ]
        columns = [f"{v} AS {n}" for v, n in zip(values, self.columns, strict=True)]
        connection.execute(
            sql.SQL(
                "CREATE TABLE {} AS SELECT {} FROM {} AS q, {} AS t LIMIT 0"
            ).format(
                sql.Identifier(*parts[0]),
                sql.SQL(", ".join(columns)),
                sql.SQL(self.asking),
                sql.SQL(self.source.target),
            )
        )


def _related(key: str) -> str:
    """Return the quoted name of the column for a related row's key column."""
    name = key[1:-1].replace('""', '"') if key.startswith('"') else key
    return sql.Identifier(f"related_{name}").as_string()
