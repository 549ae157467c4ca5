"""Many writers on few rows, beside workers: what must hold however fast it goes.

The rates are those of ``python -m tests.benchmarks.write_load``.
"""

from __future__ import annotations

from pathlib import Path

from pgembed.postgres.connection import fetch_one
from tests.benchmarks.write_load import Load, embedded, prepare, working, write
from tests.harness.oracle import assert_converged
from tests.harness.server import Databases
from tests.harness.sql_worker import SqlWorker
from tests.integration.worker.running import (
    Connection,
    add_good,
    create_docs,
    is_drained,
    wait_until,
)

WRITERS = 16
ROWS = 50
TRANSACTIONS = 1500  # of each writer


def test_writers_on_hot_rows(
    dsn: str, connection: Connection, server: Databases, tmp_path: Path
) -> None:
    """No deadlock and no failed transaction; no more jobs than rows; it converges."""
    model = add_good(connection, tmp_path)
    prepare(connection, dsn, ROWS)
    load = Load(
        server.programs / "pgbench", WRITERS, ROWS, f"--transactions={TRANSACTIONS}"
    )
    with working(dsn, 4, tmp_path / "cache"):
        found = write(connection, dsn, load)
        wait_until(lambda: is_drained(connection))
        assert embedded(connection) > ROWS  # those that prepare has embedded
    assert found.failed == 0
    assert 0 < found.jobs <= ROWS
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert fetch_one(connection, query) == (0,)
    assert_converged(connection, model)


def test_busy_workers_are_not_notified(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """NOTIFY lets one transaction commit at a time: it is for workers that wait."""
    add_good(connection, tmp_path)
    prepare(connection, dsn, 2)
    connection.execute("SELECT pgembed._register_worker('embed', 'here', 1, '0')")
    connection.execute("SELECT pgembed._register_worker('embed', 'there', 2, '0')")
    idle = "SELECT pgembed._set_idle(id, %s) FROM pgembed.worker WHERE pid = %s"
    connection.execute("LISTEN pgembed_work")
    for first, second, notified in ((True, True, 2), (True, False, 0)):
        connection.execute(idle, (first, 1))
        connection.execute(idle, (second, 2))
        connection.execute("UPDATE docs SET body = 'red ' || body WHERE id = 1")
        connection.execute("INSERT INTO docs SELECT max(id) + 1, 'new' FROM docs")
        assert len(list(connection.notifies(timeout=0))) == notified


def test_workers_do_not_wait_for_the_disk(
    connection: Connection, tmp_path: Path
) -> None:
    """Users wait for the rows that they lock; sessions of a pooler stay as they are."""
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    worker = SqlWorker(connection)
    worker.work()
    connection.execute("SET synchronous_commit = on")
    with connection.transaction():
        claim = worker.claim("docs_body")
        assert commit_mode(connection) == "off"
    for end in (worker.renew, worker.release):
        with connection.transaction():
            end(claim)
            assert commit_mode(connection) == "off"
        assert commit_mode(connection) == "on"
    claim = worker.claim("docs_body")
    vectors = ["[1,0,0,0,0,0,0,0]", "[0,1,0,0,0,0,0,0]"]
    columns = (claim.slots, claim.versions, vectors)
    with connection.transaction():
        written = fetch_one(
            connection,
            "SELECT pgembed._complete(%s, %s, %s, %s, %s, %s::vector[])",
            [claim.embedding, claim.lease, worker.id, *columns],
        )
        assert (written, commit_mode(connection)) == (([1, 2],), "off")


def commit_mode(connection: Connection) -> str:
    return str(fetch_one(connection, "SHOW synchronous_commit")[0])
