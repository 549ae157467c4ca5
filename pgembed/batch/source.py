"""Where the vectors of an embedding are, and the SQL to speak of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import psycopg
from psycopg.pq import Format, TransactionStatus

from pgembed.errors import EmbeddingError, PgembedError
from pgembed.postgres import connection as connections
from pgembed.postgres.connection import Connection, fetch_one


@dataclasses.dataclass(frozen=True)
class Source:
    """An embedding's tables and columns; names are quoted and qualified."""

    embedding: int
    name: str
    distance: str
    dimensions: int
    relation: str
    """The table that filters speak of."""
    alias: str
    """Its bare name, by which a compiled filter calls it."""
    target: str
    """The table that holds the vectors: the same, or one of chunks."""
    vector: str
    keys: tuple[str, ...]
    match: str | None
    """With chunks: the condition that joins source s and chunks v."""
    divided: bool
    """Whether its rows are in several tables: partitions or children."""
    key_texts: tuple[bool, ...]
    """Whether the type of each key column is one that psycopg does not know."""
    whole_key: bool
    """Whether the key is one column of integers."""
    storage: str
    """vector or halfvec, as which queries are then compared, too."""

    @property
    def chunked(self) -> bool:
        """Whether a row of the source has several vectors."""
        return self.match is not None

    @property
    def row(self) -> str:
        """The alias under which :meth:`rows` offers the rows with vectors."""
        return "v" if self.chunked else self.alias

    def rows(
        self, condition: str = "true", computed: Sequence[str] = (), joins: str = ""
    ) -> str:
        """FROM and WHERE: the rows that have a vector and meet *condition*.

        *computed* are expressions on the source, to be used by :meth:`computed`, and
        on its *joins*, which neither add nor remove rows.
        """
        if self.match is None:
            return (
                f"FROM {self.relation}{joins} "
                f"WHERE {self.alias}.{self.vector} IS NOT NULL AND ({condition}\n)"
            )
        extra = "".join(f", {e} AS pgembed_{i}" for i, e in enumerate(computed))
        return (
            f"FROM (SELECT {self.key_list(self.alias)}{extra} "  # noqa: S608 - quoted
            f"FROM {self.relation}{joins} "
            f"WHERE ({condition}\n)) AS s INNER JOIN {self.target} AS v ON {self.match}"
            f" WHERE v.{self.vector} IS NOT NULL"
        )

    def computed(self, number: int, expression: str) -> str:
        """How the expression that :meth:`rows` was given as *number* is called."""
        return f"s.pgembed_{number}" if self.chunked else f"({expression})"

    def key_values(self, alias: str) -> str:
        """The key as psycopg can read it: what it does not know, enums say, as text."""
        return ", ".join(
            f"{alias}.{key}" + ("::pg_catalog.text" if as_text else "")
            for key, as_text in zip(self.keys, self.key_texts, strict=True)
        )

    def key_list(self, alias: str) -> str:
        """The key columns under *alias*, separated by commas."""
        return ", ".join(f"{alias}.{key}" for key in self.keys)


_FIELDS = tuple(field.name for field in dataclasses.fields(Source))


@contextlib.contextmanager
def _misfits() -> Iterator[None]:
    """Raise EmbeddingError for an embedding that no longer fits its table."""
    try:
        yield
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        lines = [error.diag.message_primary, error.diag.message_hint]
        raise EmbeddingError("\n".join(line for line in lines if line)) from None


@_misfits()
def describe(connection: Connection, name: str) -> Source:
    """Look up an embedding.

    Raises EmbeddingError when its source was dropped, when its key or its vectors are
    not where they were, and when it stores bits.
    """
    row = fetch_one(
        connection,
        """
        SELECT e.id, e.name, e.distance, e.dimensions,
            pg_catalog.format('%%I.%%I', n.nspname, c.relname),
            pg_catalog.quote_ident(c.relname),
            pg_catalog.concat(
                pg_catalog.quote_ident(m.nspname), '.',
                pg_catalog.quote_ident(t.relname)),
            pg_catalog.quote_ident(e.target_column),
            ARRAY(SELECT pg_catalog.quote_ident(k)
                FROM pg_catalog.unnest(e.key_columns) AS k),
            CASE WHEN e.target::oid <> e.source::oid
                THEN pgembed._key_match(e.source, 's', 'v') END,
            t.relkind = 'p' OR t.relhassubclass,
            ARRAY(
                WITH RECURSIVE types (place, oid, base) AS (
                    SELECT k.place, y.oid, y.typbasetype
                    FROM pg_catalog.unnest(e.key_columns)
                        WITH ORDINALITY AS k (name, place)
                    INNER JOIN pg_catalog.pg_attribute AS a
                        ON a.attrelid = e.source::oid AND a.attname = k.name
                    INNER JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
                    UNION ALL
                    SELECT d.place, y.oid, y.typbasetype
                    FROM types AS d
                    INNER JOIN pg_catalog.pg_type AS y ON y.oid = d.base
                )
                SELECT y.oid::int8 FROM types AS y
                WHERE y.base = 0::oid ORDER BY y.place),
            (SELECT pg_catalog.cardinality(e.key_columns) = 1
                    AND a.atttypid IN (20::oid, 21::oid, 23::oid)
                FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = e.source::oid AND a.attname = e.key_columns[1]),
            e.storage,
            CASE WHEN t.oid IS NULL
                    OR e.target_column
                        OPERATOR(pg_catalog.<>) ALL (pgembed._columns(e.target))
                    OR NOT e.key_columns
                        OPERATOR(pg_catalog.<@) pgembed._columns(e.source)
                THEN pgembed._check_fits(e) END
        FROM pgembed._find_embedding(%s) AS e
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = e.source::oid
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        LEFT JOIN pg_catalog.pg_class AS t ON t.oid = e.target::oid
        LEFT JOIN pg_catalog.pg_namespace AS m ON m.oid = t.relnamespace
        """,
        [name],
    )
    if row is None:
        raise EmbeddingError(f"the source of embedding {name!r} was dropped")
    fields = dict(zip(_FIELDS, row[:-1], strict=True))
    if fields["storage"] == "bit":
        raise EmbeddingError(
            f"embedding {name!r} stores bits, which batches do not search yet: "
            "use pgembed.search for them"
        )
    loader = connection.adapters.get_loader
    texts = tuple(loader(oid, Format.BINARY) is None for oid in fields["key_texts"])
    return Source(**fields | {"keys": tuple(fields["keys"]), "key_texts": texts})


@contextlib.contextmanager
def one_snapshot(connection: Connection) -> Iterator[None]:
    """Run a block in which every statement sees the same rows.

    That is a new read-only transaction, or the open one, if it is REPEATABLE READ or
    SERIALIZABLE. Raises PgembedError otherwise.
    """
    if connection.info.transaction_status != TransactionStatus.INTRANS:
        with connections.snapshot(connection):
            yield
        return
    if not sees_one_snapshot(connection):
        raise PgembedError(
            "a batch needs one snapshot, and the open transaction is "
            f"{_isolation(connection)}: "
            "commit it first, or begin it with ISOLATION LEVEL REPEATABLE READ"
        )
    with connection.transaction():
        yield


def sees_one_snapshot(connection: Connection) -> bool:
    """Whether all statements of the open transaction see the same rows."""
    return _isolation(connection) in ("repeatable read", "serializable")


def _isolation(connection: Connection) -> str:
    (isolation,) = fetch_one(
        connection, "SELECT pg_catalog.current_setting('transaction_isolation')"
    )
    return str(isolation)
