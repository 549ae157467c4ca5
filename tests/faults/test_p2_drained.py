"""P2: once the queue is drained, every row is current, or its failure is known."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import psycopg

from pgembed.postgres.connection import connect, fetch_one
from pgembed.worker.supervisor import run_worker
from tests.harness import tiny_models
from tests.harness.oracle import assert_converged
from tests.harness.own_server import OwnServer
from tests.harness.processes import worker_process
from tests.integration.worker.running import (
    Connection,
    add_good,
    add_tiny,
    create_docs,
    embedding,
    is_drained,
    settings_for,
    wait_until,
)


class Writer(threading.Thread):
    """A user who writes row after row and survives restarts of the server."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self.dsn = dsn
        self.written = 0
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True) as connection:
                    self._write(connection)
            except psycopg.OperationalError:
                self.enough.wait(0.05)

    def _write(self, connection: psycopg.Connection) -> None:
        while not self.enough.is_set():
            connection.execute(
                "INSERT INTO docs (id, body) VALUES (%s, 'the dog ' || random()) "
                "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                [self.written % 50],
            )
            self.written += 1


def has_advanced(writer: Writer, beyond: int) -> bool:
    return writer.written > beyond


def test_a_server_restarted_under_load(
    rough_server: OwnServer, rough_dsn: str, tmp_path: Path
) -> None:
    """Stopped immediately, three times, while users write and a worker embeds."""
    with connect(rough_dsn) as connection:
        model = add_good(connection, tmp_path)
        create_docs(connection)
    writer = Writer(rough_dsn)
    with embedding(rough_dsn, lease_seconds=1.0, claim_rows=8):
        writer.start()
        try:
            for _ in range(3):
                goal = writer.written + 100
                wait_until(functools.partial(has_advanced, writer, goal))
                rough_server.restart_immediately()
        finally:
            writer.enough.set()
            writer.join()
        with connect(rough_dsn) as connection:
            wait_until(lambda: is_drained(connection))
            assert_converged(connection, model)


def test_failures_are_known_whatever_kills_the_worker(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """A row whose worker dies each time ends in the failures; the others do not."""
    model = add_tiny(connection, tiny_models.raising_model(tmp_path / "tiny"))
    create_docs(connection, "a cat", "poison", "the dog")
    for _ in range(2):
        with worker_process(
            dsn, tmp_path, stop_at="read", lease_seconds=1.0, max_attempts=2
        ) as worker:
            worker.wait_stopped()
            worker.kill()
    run_worker(settings_for(dsn, max_attempts=2), once=True, quiet=True)
    died = "workers died or stalled"
    query = "SELECT count(*) FROM pgembed.failures WHERE error LIKE %s"
    assert fetch_one(connection, query, (f"%{died}%",)) == (3,)
    # Given new attempts, only what the model refuses stays.
    connection.execute("SELECT pgembed.retry_failed('docs_body')")
    run_worker(settings_for(dsn, max_attempts=1), once=True, quiet=True)
    assert_converged(connection, model, failed={2: "out of data bounds"})
