"""P1: a change to a row and its job commit together, or neither does.

What triggers capture is tested in tests/integration/embeddings/test_capture.py; here
are the ways by which changes come that no session of the application makes, and crashes
of the server in the middle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgembed.postgres.connection import connect, fetch_all, fetch_one
from pgembed.postgres.schema import install
from tests.harness.oracle import assert_converged
from tests.harness.own_server import OwnServer
from tests.harness.server import Databases
from tests.integration.worker.running import (
    Connection,
    add_good,
    create_docs,
    embed_all,
    insert,
    wait_until,
)


@pytest.fixture
def publisher(server: Databases) -> Iterator[Connection]:
    """Return a database without pgembed that publishes table docs."""
    with (
        server.database() as name,
        psycopg.connect(server.dsn(name), autocommit=True) as connection,
    ):
        connection.execute(
            "CREATE TABLE docs (id int PRIMARY KEY, body text, extra int)"
        )
        connection.execute("CREATE PUBLICATION changes FOR TABLE docs")
        yield connection


@contextlib.contextmanager
def subscription(subscriber: Connection, publisher: Connection) -> Iterator[None]:
    """Subscribe during the block."""
    # Both databases are of one server: the slot has to be made beforehand.
    publisher.execute(
        "SELECT pg_create_logical_replication_slot('changes', 'pgoutput')"
    )
    source = publisher.info
    place = f"host={source.host} port={source.port} dbname={source.dbname}"
    subscriber.execute(
        f"CREATE SUBSCRIPTION changes CONNECTION '{place} user=postgres' "
        "PUBLICATION changes WITH (create_slot = false, slot_name = 'changes')"
    )
    try:
        yield
    finally:
        subscriber.execute("ALTER SUBSCRIPTION changes DISABLE")
        subscriber.execute("ALTER SUBSCRIPTION changes SET (slot_name = NONE)")
        subscriber.execute("DROP SUBSCRIPTION changes")
        dropped = """
            SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
            WHERE slot_name = 'changes' AND NOT active
        """
        wait_until(lambda: publisher.execute(dropped).fetchall())


def test_logical_replication(
    dsn: str, connection: Connection, publisher: Connection, tmp_path: Path
) -> None:
    """Rows of the initial copy, and every applied change, truncation included."""
    model = add_good(connection, tmp_path)
    create_docs(connection)

    def same() -> bool:
        query = "SELECT id, body FROM docs ORDER BY id"
        return fetch_all(connection, query) == fetch_all(publisher, query)

    insert(publisher, "a cat", "the dog", None)
    with subscription(connection, publisher):
        wait_until(same)
        embed_all(dsn)
        assert_converged(connection, model)
        publisher.execute("UPDATE docs SET body = 'red' WHERE id = 1")
        publisher.execute("UPDATE docs SET body = NULL WHERE id = 2")
        publisher.execute("UPDATE docs SET id = 30, body = 'blue' WHERE id = 3")
        publisher.execute("UPDATE docs SET extra = 1")
        publisher.execute("INSERT INTO docs (id, body) VALUES (4, 'food'), (5, 'x')")
        publisher.execute("DELETE FROM docs WHERE id = 5")
        wait_until(same)
        embed_all(dsn)
        assert_converged(connection, model)
        publisher.execute("TRUNCATE docs")
        publisher.execute("INSERT INTO docs (id, body) VALUES (1, 'the man')")
        wait_until(same)
        embed_all(dsn)
        assert_converged(connection, model)


def test_a_server_that_dies_between_change_and_commit(
    rough_server: OwnServer, rough_dsn: str, tmp_path: Path
) -> None:
    """Committed changes have their jobs afterwards, the others have left nothing."""
    with connect(rough_dsn) as connection:
        model = add_good(connection, tmp_path)
        create_docs(connection, "a cat", "the dog")
        embed_all(rough_dsn)
        connection.execute("UPDATE docs SET body = 'committed' WHERE id = 1")
    with contextlib.suppress(psycopg.OperationalError), connect(rough_dsn) as lost:
        lost.autocommit = False
        lost.execute("UPDATE docs SET body = 'lost'")
        lost.execute("DELETE FROM docs WHERE id = 1")
        rough_server.restart_immediately()
        lost.commit()
    with connect(rough_dsn) as connection:
        waiting = "SELECT id FROM pgembed.job_1 WHERE pgembed_available_at IS NOT NULL"
        assert fetch_all(connection, waiting) == [(1,)]
        assert fetch_one(connection, "SELECT body FROM docs WHERE id = 1") == (
            "committed",
        )
        embed_all(rough_dsn)
        assert_converged(connection, model)


def test_a_prepared_transaction(rough_server: OwnServer, tmp_path: Path) -> None:
    """Two-phase commit outlives a crash, and the job with it."""
    rough_server.stop_immediately()
    settings = rough_server.folder / "postgresql.auto.conf"
    before = settings.read_text(encoding="utf-8")
    settings.write_text(before + "max_prepared_transactions = 4\n", encoding="utf-8")
    rough_server.start()
    with rough_server.database() as name:
        dsn = rough_server.dsn(name)
        with connect(dsn) as connection:
            install(connection)
        with connect(dsn) as connection:
            model = add_good(connection, tmp_path)
            create_docs(connection, "a cat", "the dog")
            embed_all(dsn)
            connection.execute("BEGIN; UPDATE docs SET body = 'red' WHERE id = 1")
            connection.execute("PREPARE TRANSACTION 'one'")
            connection.execute("BEGIN; UPDATE docs SET body = 'blue' WHERE id = 2")
            connection.execute("PREPARE TRANSACTION 'two'")
        rough_server.restart_immediately()
        with connect(dsn) as connection:
            connection.execute("COMMIT PREPARED 'one'")
            connection.execute("ROLLBACK PREPARED 'two'")
            embed_all(dsn)
            assert_converged(connection, model)
