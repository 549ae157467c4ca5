"""Vector indexes, built by a worker that keeps nobody waiting."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Literal, LiteralString, cast
from uuid import UUID

from psycopg import errors, sql

from pgembed.postgres.connection import Connection, fetch_all, fetch_one

State = Literal["waiting", "ready", "failed"]

SHORTEST_PATIENCE = 0.2
"""Seconds that a statement may hold up the writers of a partitioned table."""

_CONCURRENTLY = ("CREATE INDEX CONCURRENTLY ", "DROP INDEX CONCURRENTLY ")


@dataclasses.dataclass(frozen=True, slots=True)
class IndexJob:
    """An embedding whose index is to be built."""

    embedding: int
    name: str


def waiting(connection: Connection) -> list[IndexJob]:
    """Return the embeddings whose backfill is done and whose index is not."""
    query = "SELECT embedding, name FROM pgembed._index_work()"
    return [IndexJob(*row) for row in fetch_all(connection, query)]


def failed(connection: Connection) -> list[IndexJob]:
    """Return the embeddings whose index could not be built."""
    query = """
        SELECT id, name FROM pgembed.embedding
        WHERE index_state = 'failed' AND kind = 'kept' ORDER BY id
    """
    return [IndexJob(*row) for row in fetch_all(connection, query)]


def set_state(
    connection: Connection,
    job: IndexJob,
    state: State,
    error: str | None = None,
    worker: UUID | None = None,
) -> bool:
    """Record how the building ended, or that it is to be tried again.

    With *worker* only if it is still the one that builds. False while a user holds the
    embedding's row: nothing is recorded then.
    """
    query = "SELECT pgembed._set_index_state(%s::int, %s, %s, %s)"
    return bool(fetch_one(connection, query, (job.embedding, state, error, worker))[0])


def begin(connection: Connection, job: IndexJob, worker: UUID) -> bool:
    """Take on the building of an embedding's index; False when another worker does."""
    query = "SELECT pgembed._begin_index(%s::int, %s)"
    return bool(fetch_one(connection, query, (job.embedding, worker))[0])


def stranger_owner(connection: Connection, job: IndexJob) -> str | None:
    """Return the owner of the table, if this session may not build an index on it."""
    row = fetch_one(
        connection,
        """
        SELECT r.rolname
        FROM pgembed.embedding AS e
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = e.target::oid
        INNER JOIN pg_catalog.pg_roles AS r ON r.oid = c.relowner
        WHERE e.id = %s AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
        """,
        (job.embedding,),
    )
    return row and str(row[0])


def build(
    connection: Connection, job: IndexJob, patience: float = SHORTEST_PATIENCE
) -> bool:
    """Build the index of an embedding, whose building has begun.

    False when transactions that use the table left a statement no room for *patience*
    seconds: try again later, and what is done by then is left out. Needs an autocommit
    connection of its own, of a role that may. Raises psycopg.Error when a statement
    fails; the caller records that over another connection.
    """
    with _patient(connection):
        for statement in statements(connection, job):
            if statement.startswith(_CONCURRENTLY):
                connection.execute(statement)
            elif not _executed_soon(connection, statement, patience):
                return False
    return True


def _executed_soon(
    connection: Connection, statement: LiteralString, patience: float
) -> bool:
    # Who waits for such a lock holds up everybody who comes after: readers, too.
    try:
        with connection.transaction():
            connection.execute(
                "SELECT pg_catalog.set_config('lock_timeout', %s, true)",
                (f"{patience * 1000:.0f}ms",),
            )
            connection.execute(statement)
    except errors.LockNotAvailable:
        return False
    return True


@contextlib.contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    # Behind a transaction pooler, a setting would reach somebody else.
    limits = fetch_all(
        connection,
        "SELECT s.name FROM pg_catalog.pg_settings AS s WHERE s.setting <> '0' AND "
        "s.name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout')",
    )
    names = [sql.Identifier(name) for (name,) in limits]
    for name in names:
        connection.execute(sql.SQL("SET {} = 0").format(name))
    try:
        yield
    finally:
        for name in names:
            if not connection.broken:
                connection.execute(sql.SQL("RESET {}").format(name))


def statements(connection: Connection, job: IndexJob) -> list[LiteralString]:
    """Return what is to be done to build the index; nothing when it is there."""
    query = """
        SELECT statement FROM pgembed._index_statements(%s::int) ORDER BY ordinal
    """
    # Composed by the database from quoted names.
    rows = fetch_all(connection, query, (job.embedding,))
    return [cast("LiteralString", row[0]) for row in rows]
