"""Processes that die, are killed or told to stop; connections that are lost."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pgembed.errors import ConnectError, WorkerError
from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.worker.supervisor import run_worker
from tests.harness import tiny_models
from tests.harness.proxy import proxy
from tests.integration.worker.running import (
    DEADLINE,
    Connection,
    add_good,
    add_tiny,
    answering,
    assert_current,
    child_process,
    create_docs,
    embed_all,
    embedding,
    insert,
    is_drained,
    leased,
    settings_for,
    wait_until,
)


def workers(connection: Connection, role: str = "embed") -> list[int]:
    query = "SELECT pid FROM pgembed.workers WHERE role = %s"
    return [pid for (pid,) in fetch_all(connection, query, (role,))]


def test_a_killed_process_leaves_its_rows_to_others(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_tiny(connection, tiny_models.slow_model(tmp_path / "slow"))
    create_docs(connection, "slow cat", "a dog", "a man")
    with child_process("embed", dsn, lease_seconds=1.0) as process:
        wait_until(lambda: leased(connection) == 3)
        process.kill()
        process.wait()
    assert leased(connection) == 3
    embed_all(dsn)
    assert_current(connection, model)


def test_a_process_told_to_stop_hands_back_what_it_holds(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    folder = tiny_models.slow_model(tmp_path / "slow", steps=200_000)
    add_tiny(connection, folder)
    create_docs(connection, *[f"slow {i}" for i in range(9)])
    with child_process(
        "embed", dsn, drain_seconds=0.5, claim_rows=3, batch_tokens=8
    ) as process:
        wait_until(lambda: leased(connection))
        process.terminate()
        # A batch in the model cannot be interrupted; its lease expires by itself.
        assert process.wait(30) in (0, -signal.SIGKILL)
    assert leased(connection) <= 3


def test_a_process_told_to_stop_ends_what_it_began(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_tiny(connection, tiny_models.slow_model(tmp_path / "slow", steps=1000))
    create_docs(connection, *[f"slow {i}" for i in range(64)])
    with child_process("embed", dsn, claim_rows=8, batch_tokens=8) as process:
        wait_until(lambda: leased(connection))
        process.terminate()
        assert process.wait(30) == 0
    assert leased(connection) == 0
    assert workers(connection) == []
    ready = fetch_one(
        connection,
        """
        SELECT bool_and(pgembed_attempts = 0 AND pgembed_available_at <= now()
            OR pgembed_available_at IS NULL)
        FROM pgembed.job_1
        """,
    )
    assert ready == (True,)


@pytest.mark.parametrize("role", ["calls", "batches"])
def test_a_process_told_to_stop_before_it_could_register(
    role: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with child_process(role, "host=/nonexistent dbname=x") as process:
        wait_until(lambda: "did not answer" in capfd.readouterr().err)
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("role", [embedding, answering])
def test_an_idle_worker_ends_at_once_when_the_database_is_gone(
    dsn: str,
    connection: Connection,
    caplog: pytest.LogCaptureFixture,
    role: Callable[..., contextlib.AbstractContextManager[None]],
) -> None:
    beats = """
        SELECT 1 FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'pgembed heartbeat'
    """
    with proxy(dsn) as between, contextlib.ExitStack() as stack:
        given = {"lease_seconds": 1.0, "drain_seconds": 4 * DEADLINE}
        stack.enter_context(role(between.dsn, **given))
        wait_until(lambda: fetch_one(connection, beats))
        between.refuse()
        wait_until(lambda: "heartbeat" in {each.threadName for each in caplog.records})


def test_children_end_with_their_supervisor(dsn: str, connection: Connection) -> None:
    with child_process("embed", dsn) as process:
        wait_until(lambda: workers(connection))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) in (0, 1)


def test_the_supervisor_replaces_a_process_that_dies(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    stop = threading.Event()
    settings = settings_for(dsn)
    thread = threading.Thread(
        target=run_worker, args=(settings,), kwargs={"stop": stop}
    )
    thread.start()
    try:
        wait_until(lambda: is_drained(connection) and workers(connection, "calls"))
        (first,) = workers(connection)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: set(workers(connection)) - {first})
        insert(connection, "the dog", first=2)
        wait_until(lambda: is_drained(connection))
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert_current(connection, model)
    assert set(workers(connection)) <= {first}
    assert workers(connection, "calls") == []


def test_once_with_several_processes(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(200)], index="hnsw")
    run_worker(settings_for(dsn, processes=2, claim_rows=10), once=True)
    assert_current(connection, model)
    assert workers(connection) == []


def test_once_says_what_it_had_to_leave(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    connection.execute("ALTER TABLE docs RENAME body TO words")
    with pytest.raises(WorkerError, match=r"'docs_body' \(column body"):
        run_worker(settings_for(dsn), once=True)


def test_two_workers_share_the_rows(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(300)])
    with embedding(dsn, claim_rows=10), embedding(dsn, claim_rows=10):
        wait_until(lambda: is_drained(connection))
    assert_current(connection, model)
    assert fetch_one(connection, "SELECT sum(rows) FROM pgembed.progress") == (300,)


def test_lost_connections_are_replaced(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(400)])
    query = """
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    with embedding(dsn, claim_rows=8, batch_tokens=16):
        for embedded in (20, 100, 200):
            wait_until(functools.partial(has_embedded, connection, embedded))
            connection.execute(query)
        wait_until(lambda: is_drained(connection))
    assert_current(connection, model)
    burned = "SELECT count(*) FROM pgembed.failures"
    assert fetch_one(connection, burned) == (0,)


def has_embedded(connection: Connection, rows: int) -> bool:
    query = "SELECT count(body_embedding) FROM docs"
    return int(fetch_one(connection, query)[0]) >= rows


def test_statement_and_lock_timeouts_are_waited_out(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    connection.execute(
        """
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = 10',
            current_database()); END $$
        """
    )
    with embedding(dsn):
        wait_until(lambda: is_drained(connection))
        with connection.transaction():
            connection.execute("LOCK pgembed.job_1 IN ACCESS EXCLUSIVE MODE")
            insert(connection, "the dog", first=2)
            connection.execute("SELECT pg_sleep(0.5)")
        wait_until(lambda: is_drained(connection))
    assert_current(connection, model)


def test_polling_finds_what_no_notification_announced(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    idle = "SELECT count(*) FROM pgembed.worker WHERE idle"
    with embedding(dsn):
        wait_until(lambda: fetch_one(connection, idle) == (1,))
        connection.execute("UPDATE pgembed.worker SET idle = false")
        insert(connection, "the dog", first=2)
        wait_until(lambda: is_drained(connection))
    assert_current(connection, model)


def test_a_worker_without_pgembed_says_so(empty_dsn: str) -> None:
    with pytest.raises(WorkerError, match="pgembed install"):
        run_worker(settings_for(empty_dsn))


def test_a_worker_without_a_server_says_so() -> None:
    with pytest.raises(ConnectError, match="cannot connect"):
        run_worker(settings_for("host=/nonexistent dbname=x"))
