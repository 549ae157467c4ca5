"""Batches posted from SQL: roles that may, tables of queries, how batches end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg import sql

from pgembed.postgres.connection import fetch_one
from tests.harness.roles import ordinary_role
from tests.integration.search.support import Connection
from tests.integration.worker.running import wait_until


@contextlib.contextmanager
def poster(dsn: str, connection: Connection) -> Iterator[tuple[str, str]]:
    """Create a role that may post batches; yield its name and its DSN."""
    with ordinary_role(dsn, may_create=False) as role:
        name = role.split("//")[1].split("@")[0]
        grant = sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}")
        connection.execute(grant.format(sql.Identifier(name)))
        connection.execute("SELECT pgembed.grant_batch(%s::text::regrole)", [name])
        yield name, role


def post(connection: Connection, call: str, *arguments: Any) -> int:
    """Call a function that posts a batch; return the batch's number."""
    (batch,) = fetch_one(connection, sql.SQL(f"SELECT pgembed.{call}"), arguments)
    return int(batch)


def batch_of(connection: Connection, batch: int) -> dict[str, Any]:
    """Return a row of pgembed.batches."""
    cursor = connection.execute("SELECT * FROM pgembed.batches WHERE id = %s", [batch])
    assert cursor.description is not None
    row = cursor.fetchone()
    assert row is not None
    return dict(zip((column.name for column in cursor.description), row, strict=True))


def ended(connection: Connection, batch: int) -> dict[str, Any]:
    """Wait until a batch has ended; return its row."""
    final = ("done", "failed", "cancelled")
    wait_until(lambda: batch_of(connection, batch)["state"] in final)
    return batch_of(connection, batch)


def waits_for_a_lock(connection: Connection) -> bool:
    """Whether a batch's session waits for a lock."""
    connection.execute("SELECT pg_stat_clear_snapshot()")
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'pgembed batch' AND wait_event_type = 'Lock'"
    )
    return bool(fetch_one(connection, query)[0])


def batch_processes() -> list[int]:
    """Return the ids of the processes that carry out batches for this process."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = place.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            line = place.joinpath("cmdline").read_bytes()
            if int(parent) == os.getpid() and b"pgembed.worker.posted_batch" in line:
                found.append(int(place.name))
    return found
