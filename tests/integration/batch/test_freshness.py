"""Waiting for the server's log, which a layout must not be ahead of."""

from __future__ import annotations

from pgembed.batch import freshness
from pgembed.postgres.connection import fetch_one
from tests.integration.search.support import Connection

_PAGE, _HEADER = 8192, 24


def test_a_log_that_ends_with_its_page_is_waited_for(connection: Connection) -> None:
    connection.execute("SET synchronous_commit = on")
    # More is taken by those that go on in a page after.
    overhead = min(log(connection, 300)[1] for _ in range(3))
    for _ in range(50):
        end, _ = log(connection, 300)
        rest = _PAGE - end % _PAGE - overhead
        if rest > 300:
            end, _ = log(connection, rest)
        if end % _PAGE == _HEADER:
            break
    assert end % _PAGE == _HEADER
    position = freshness.written_position(connection)
    freshness.await_flush(connection, position)


def log(connection: Connection, size: int) -> tuple[int, int]:
    """Log *size* bytes, which reach the disk.

    Return where the next record will be, and how many bytes more were taken.
    """
    query = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8"
    (before,) = fetch_one(connection, query)
    connection.execute(
        "SELECT pg_logical_emit_message(true, '', repeat('x', %s))", [size]
    )
    (after,) = fetch_one(connection, query)
    return after, after - before - size
