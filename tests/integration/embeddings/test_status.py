"""embedding_status and workers: numbers that are true."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from tests.conftest import Connect
from tests.harness.sql_worker import Connection, SqlWorker, rows, value
from tests.integration.embeddings.support import (
    declare,
    documents,
    status,
    wait_for_lock,
)


def numbers(connection: Connection, name: str) -> tuple[int, int, int, int]:
    found = status(connection, name)
    return found["rows"], found["embedded"], found["pending"], found["failed"]


@pytest.mark.parametrize("chunk_tokens", [None, 8])
def test_numbers(db: Connection, worker: SqlWorker, chunk_tokens: int | None) -> None:
    documents(db, "one two three", "four five six", None)
    name = declare(db, "docs", "body", chunk_tokens=chunk_tokens)
    assert numbers(db, name) == (3, 0, 3, 0)
    assert status(db, name)["oldest_pending"] > timedelta(0)
    claim = worker.claim(name)
    assert len(claim) == 0
    worker.work()
    claim = worker.claim(name)
    assert numbers(db, name) == (3, 0, 3, 0)
    assert status(db, name)["state"] == "embedding"
    worker.complete(claim)
    assert numbers(db, name) == (3, 2, 0, 0)
    found = status(db, name)
    assert found["oldest_pending"] is None
    assert found["rows_per_second"] > 0
    assert found["state"] == "current"
    assert found["index_state"] == "waiting"
    assert (found["source"], found["model"]) == ("public.docs", "tiny")
    db.execute("UPDATE docs SET body = 'x' WHERE id < 3")
    worker.fail(worker.claim(name, 1), max_attempts=1)
    assert numbers(db, name) == (3, 2, 1, 1)


def test_the_oldest_waits_since_its_first_change(
    db: Connection, worker: SqlWorker
) -> None:
    documents(db, "one", "two")
    declare(db, "docs", "body")
    worker.drain()
    db.execute("UPDATE docs SET body = 'x'")
    rows(
        db,
        "UPDATE pgembed.job_1 SET pgembed_available_at = now() - interval '1 hour' "
        "WHERE id = 1",
    )
    hour = timedelta(hours=1)

    def waits() -> timedelta:
        found = status(db, "docs_body")["oldest_pending"]
        assert isinstance(found, timedelta)
        return found

    assert hour < waits() < 2 * hour
    db.execute("UPDATE docs SET body = 'changed again'")
    assert hour < waits() < 2 * hour
    claim = worker.claim("docs_body")
    assert hour < waits() < 2 * hour
    worker.release(claim)
    assert hour < waits() < 2 * hour
    worker.fail(worker.claim("docs_body"))
    assert hour < waits() < 2 * hour
    rows(db, "UPDATE pgembed.job_1 SET pgembed_available_at = now()")
    worker.drain()
    db.execute("UPDATE docs SET body = 'new'")
    assert waits() < hour


def test_index_error_is_shown(scratch: Connection) -> None:
    documents(scratch)
    declare(scratch, "docs", "body")
    rows(
        scratch,
        "SELECT pgembed._set_index_state(id, 'failed', 'no space') "
        "FROM pgembed.embedding",
    )
    assert status(scratch, "docs_body")["index_state"] == "failed"
    assert status(scratch, "docs_body")["state"] == "current; index: no space"


def test_a_table_that_cannot_be_read_hides_no_other(
    scratch: Connection,
) -> None:
    documents(scratch, "one")
    declare(scratch, "docs", "body")
    scratch.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    declare(scratch, "other", "body")
    scratch.execute("CREATE ROLE watcher")
    scratch.execute("GRANT USAGE ON SCHEMA pgembed TO watcher")
    scratch.execute("GRANT SELECT ON ALL TABLES IN SCHEMA pgembed TO watcher")
    scratch.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgembed TO watcher")
    scratch.execute("GRANT SELECT ON docs TO watcher")
    scratch.execute("SET LOCAL ROLE watcher")
    assert numbers(scratch, "docs_body") == (1, 0, 1, 0)
    assert status(scratch, "other_body")["rows"] is None
    assert "permission denied" in status(scratch, "other_body")["state"]


def fail_twice(db: Connection, worker: SqlWorker) -> None:
    """Have two embeddings, first and second, each with a failure."""
    documents(db, "one")
    for name in ("first", "second"):
        declare(db, "docs", "body", name=name, chunk_tokens=8)
        worker.work()
        assert worker.fail(worker.claim(name), max_attempts=1) == 1


def test_failures_in_a_queue_that_is_locked_hide_no_others(
    dsn: str, db: Connection, worker: SqlWorker, connect: Connect
) -> None:
    fail_twice(db, worker)
    said: list[str] = []
    db.add_notice_handler(lambda d: said.append(d.message_primary or ""))
    with connect(dsn, autocommit=False) as blocker:
        blocker.execute("LOCK TABLE pgembed.job_1")
        db.execute("SET statement_timeout = '10s'")
        assert rows(db, "SELECT embedding FROM pgembed.failures") == [("second",)]
        blocker.rollback()
    left_out = "another transaction has locked its queue"
    assert said == [f"the failures of 'first' are left out: {left_out}"]
    assert len(rows(db, "SELECT embedding FROM pgembed.failures")) == 2


def test_failures_while_an_embedding_is_dropped_hide_no_others(
    dsn: str, db: Connection, worker: SqlWorker, connect: Connect
) -> None:
    fail_twice(db, worker)
    dropper = connect(dsn, autocommit=False)
    dropper.execute("SELECT pgembed.drop_embedding('first')")
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(rows, db, "SELECT embedding FROM pgembed.failures")
        with contextlib.suppress(AssertionError):  # It does not wait for long.
            wait_for_lock(dropper, db, shown)
        dropper.commit()
        assert shown.result() == [("second",)]


@pytest.mark.parametrize("lock", ["LOCK TABLE docs", "TRUNCATE docs"])
def test_a_table_that_is_locked_hides_no_other(
    dsn: str, db: Connection, connect: Connect, lock: str
) -> None:
    documents(db, "one")
    declare(db, "docs", "body")
    db.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    declare(db, "other", "body")
    db.execute("SELECT pgembed._work(); SET statement_timeout = '5s'")
    with connect(dsn, autocommit=False) as blocker:
        blocker.execute(lock.encode())
        found = status(db, "docs_body")
        assert (found["rows"], found["embedded"]) == (None, None)
        assert found["state"].endswith(
            "; not counted: another transaction has locked its tables"
        )
        assert numbers(db, "other_body") == (0, 0, 0, 0)
        depths = rows(db, "SELECT name, pending FROM pgembed._queue_depths()")
        assert ("other_body", 0) in depths
        assert ("docs_body", 0) not in depths
        blocker.rollback()
    assert numbers(db, "docs_body") == (1, 0, 1, 0)


def test_rows_that_are_not_enqueued_wait(scratch: Connection) -> None:
    documents(scratch, "one", "two")
    name = declare(scratch, "docs", "body")
    scratch.execute("SELECT pgembed.pause_embedding('docs_body')")
    assert numbers(scratch, name) == (2, 0, 2, 0)
    query = "SELECT pending, failed, age > 0 FROM pgembed._queue_depths()"
    scratch.execute(
        "UPDATE pgembed.embedding SET created_at = now() - interval '1 min'"
    )
    assert rows(scratch, query) == [(2, 0, True)]


def test_workers(scratch: Connection) -> None:
    worker = SqlWorker(scratch)
    ((role, idle, live),) = rows(
        scratch, "SELECT role, idle, live FROM pgembed.workers"
    )
    assert (role, idle, live) == ("embed", False, True)
    rows(scratch, "SELECT pgembed._set_idle(%s, true)", worker.id)
    assert value(scratch, "SELECT idle FROM pgembed.workers")
    scratch.execute("UPDATE pgembed.worker SET seen_at = now() - interval '2 min'")
    assert not value(scratch, "SELECT live FROM pgembed.workers")
    assert value(scratch, "SELECT pgembed._heartbeat(%s)", worker.id)
    assert value(scratch, "SELECT live FROM pgembed.workers")
    scratch.execute("UPDATE pgembed.worker SET seen_at = now() - interval '6 min'")
    other = SqlWorker(scratch)
    assert value(scratch, "SELECT pgembed._heartbeat(%s)", other.id)
    assert not value(scratch, "SELECT pgembed._heartbeat(%s)", worker.id)
    rows(scratch, "SELECT pgembed._unregister_worker(%s)", other.id)
    assert rows(scratch, "SELECT * FROM pgembed.workers") == []


def test_a_busy_worker_says_so_while_another_waits(
    db: Connection, worker: SqlWorker
) -> None:
    """Each version of its row is one more to read for every captured write."""

    def says_so() -> bool:
        version = "SELECT ctid::text FROM pgembed.worker WHERE id = %s"
        before = value(db, version, worker.id)
        rows(db, "SELECT pgembed._set_idle(%s, false)", worker.id)
        return bool(value(db, version, worker.id) != before)

    other = SqlWorker(db)
    rows(db, "SELECT pgembed._set_idle(%s, true)", worker.id)
    assert [says_so(), says_so()] == [True, False]
    rows(db, "SELECT pgembed._set_idle(%s, true)", other.id)
    assert [says_so(), says_so()] == [True, True]
    assert value(db, "SELECT pgembed._is_watched()")
    rows(db, "SELECT pgembed._set_idle(%s, false)", other.id)
    assert not says_so()


def test_only_a_worker_that_waits_is_notified(
    db: Connection, worker: SqlWorker
) -> None:
    documents(db, "one")
    declare(db, "docs", "body")
    db.execute("LISTEN pgembed_work")

    def notified(statement: str) -> int:
        db.execute(statement.encode())
        return len(list(db.notifies(timeout=0)))

    assert notified("INSERT INTO docs (id, body) VALUES (2, 'x')") == 0
    rows(db, "SELECT pgembed._set_idle(%s, true)", worker.id)
    assert notified("INSERT INTO docs (id, body) VALUES (3, 'x'), (4, 'y')") == 1
    assert notified("UPDATE docs SET body = 'y'") == 1
    assert notified("UPDATE docs SET price = 1") == 0
    assert notified("DELETE FROM docs WHERE id = 2") == 0
    db.execute("UPDATE pgembed.worker SET seen_at = now() - interval '1 hour'")
    assert notified("UPDATE docs SET body = 'z'") == 0
