"""What pgembed made in a database: embeddings, columns, tables, indexes."""

from __future__ import annotations

import dataclasses

from sqlalchemy import Connection, text

from pgembed.sqlalchemy.declaration import EmbeddingSpec

Place = tuple[str | None, str]
"""Schema, None for the default one, and name."""

_KEPT = text(
    """
    SELECT e.name, s.nspname AS schema, c.relname AS table, e.content, e.model,
        CASE WHEN e.target::oid = e.source::oid
            THEN e.target_column END AS target_column,
        e.chunk_tokens, e.chunk_overlap, e.storage, e.index_method AS index,
        e.on_change, t.relname AS target, e.index_name
    FROM pgembed.embedding AS e
    JOIN pg_catalog.pg_class AS c ON c.oid = e.source::oid
    JOIN pg_catalog.pg_class AS t ON t.oid = e.target::oid
    JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace
    WHERE e.kind = 'kept'
    ORDER BY e.id
    """
)

_OF_PARTITIONS = text(
    """
    SELECT s.nspname AS schema, c.relname AS table, e.target_column AS column
    FROM pgembed.embedding AS e
    CROSS JOIN pg_catalog.pg_partition_tree(e.source) AS t
    JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
    JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace
    WHERE e.kind = 'kept' AND e.target::oid = e.source::oid AND t.level > 0
    """
)

_INDEXES = text(
    """
    SELECT s.nspname AS schema, c.relname AS name
    FROM pgembed.embedding AS e
    JOIN pg_catalog.pg_index AS i ON i.indrelid = e.target::oid OR i.indrelid IN (
        SELECT t.relid FROM pg_catalog.pg_partition_tree(e.target) AS t)
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace
    WHERE EXISTS (
        SELECT FROM pg_catalog.pg_class AS r
        WHERE (r.oid = c.oid OR r.oid IN (
                SELECT a.relid FROM pg_catalog.pg_partition_ancestors(c.oid) AS a))
          AND (starts_with(r.relname, format('pgembed_%s_', e.id)) OR e.kind = 'kept'
            -- Those of partitions, before they are attached, end with a number.
            AND (r.relname = e.index_name
              OR i.indrelid <> e.target::oid
                AND starts_with(r.relname, e.index_name || '_'))))
    """
)


@dataclasses.dataclass(frozen=True)
class Inventory:
    """The embeddings in a database, and what belongs to them."""

    installed: bool
    embeddings: dict[str, EmbeddingSpec]
    columns: frozenset[tuple[Place, str]]
    tables: frozenset[Place]
    indexes: frozenset[Place]

    @classmethod
    def of(cls, connection: Connection) -> Inventory:
        """Read the registry; it is empty when pgembed is not installed."""
        known = text("SELECT pg_catalog.to_regclass('pgembed.embedding') IS NOT NULL")
        if not connection.scalar(known):
            return cls(False, {}, frozenset(), frozenset(), frozenset())
        default = connection.dialect.default_schema_name
        rows = [row._mapping for row in connection.execute(_KEPT)]
        specs: dict[str, EmbeddingSpec] = {}
        columns, tables, indexes = set(), set(), set()
        for row in rows:
            schema = None if row["schema"] == default else row["schema"]
            fields = {f.name: row[f.name] for f in dataclasses.fields(EmbeddingSpec)}
            specs[row["name"]] = EmbeddingSpec(**{**fields, "schema": schema})
            if row["target_column"] is not None:
                columns.add(((schema, row["table"]), row["target_column"]))
            else:
                tables.add((schema, row["target"]))
            indexes.add((schema, row["index_name"]))
        for schema, table, column in connection.execute(_OF_PARTITIONS):
            columns.add(((None if schema == default else schema, table), column))
        for schema, name in connection.execute(_INDEXES):
            indexes.add((None if schema == default else schema, name))
        return cls(
            True, specs, frozenset(columns), frozenset(tables), frozenset(indexes)
        )
