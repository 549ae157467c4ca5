"""What the tests of kept embeddings share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from tests.harness.sql_worker import Connection, rows, value


def declare(
    connection: Connection, source: str, content: str, **options: object
) -> str:
    """Declare an embedding of model tiny; return its name."""
    named = "".join(f", {option} => %s" for option in options)
    query = f"SELECT pgembed.create_embedding(%s::regclass, %s, 'tiny'{named})"
    return str(value(connection, query, source, content, *options.values()))


def documents(connection: Connection, *bodies: str | None) -> str:
    """Create table docs (id, title, body, price) with these bodies; return its name."""
    connection.execute(
        "CREATE TABLE docs ("
        "id int PRIMARY KEY, title text, body text, price int NOT NULL DEFAULT 0)"
    )
    for number, body in enumerate(bodies, start=1):
        connection.execute(
            "INSERT INTO docs (id, body) VALUES (%s, %s)", (number, body)
        )
    return "docs"


def catalog(connection: Connection) -> list[tuple[Any, ...]]:
    """Return everything that a declaration could leave behind."""
    return rows(
        connection,
        """
        SELECT 'relation', oid::regclass::text, relkind::text FROM pg_class
        WHERE relnamespace::regnamespace::text NOT IN ('pg_catalog', 'pg_toast')
        UNION ALL SELECT 'column', attrelid::regclass::text, attname::text
        FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped
          AND attrelid::regclass::text !~ '^pg_toast'
        UNION ALL SELECT 'routine', oid::regprocedure::text, '' FROM pg_proc
        UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname::text
        FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT 'embedding', name, '' FROM pgembed.embedding
        ORDER BY 1, 2, 3
        """,
    )


@contextlib.contextmanager
def refused(
    connection: Connection, state: str, *, message: str, hint: str
) -> Iterator[None]:
    """Expect an error with this SQLSTATE, message and hint; and nothing changed."""
    before = catalog(connection)
    with pytest.raises(psycopg.Error) as caught, connection.transaction():
        yield
    assert caught.value.sqlstate == state, caught.value
    assert message in (caught.value.diag.message_primary or "")
    assert hint in (caught.value.diag.message_hint or "")
    assert catalog(connection) == before


def status(connection: Connection, name: str) -> dict[str, Any]:
    """Return the row of pgembed.embedding_status by column."""
    cursor = connection.execute(
        "SELECT * FROM pgembed.embedding_status WHERE name = %s", (name,)
    )
    names = [column.name for column in cursor.description or ()]
    return dict(zip(names, cursor.fetchall()[0], strict=True))


def wait_for_lock(
    connection: Connection, other: Connection, future: Future[Any]
) -> None:
    """Wait until another session, in which the future runs, waits for a lock."""
    waiting = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
    for _ in range(2000):
        if rows(connection, waiting, other.info.backend_pid):
            return
        assert not future.done(), future
        time.sleep(0.01)
    raise AssertionError("it does not wait")


def create_blind_collation(connection: Connection) -> None:
    """Create collation blind, for which upper and lower case are equal, or skip."""
    try:
        with connection.transaction():
            connection.execute(
                "CREATE COLLATION blind "
                "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server was built without ICU")
