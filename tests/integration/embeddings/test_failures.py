"""Rows that cannot be embedded: backoff, the last attempt, another chance."""

from __future__ import annotations

import psycopg
import pytest

from pgembed.postgres.connection import connect
from tests.harness.sql_worker import (
    Claim,
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    pending,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents, status


def seconds_to_wait(connection: Connection) -> float:
    return float(
        value(
            connection,
            "SELECT extract(epoch FROM min(pgembed_available_at) - now()) "
            "FROM pgembed.job_1",
        )
    )


def test_backoff_then_dead_letter(db: Connection, worker: SqlWorker) -> None:
    documents(db, "poison")
    declare(db, "docs", "body")
    worker.work()
    db.execute("INSERT INTO docs (id, body) VALUES (2, 'good')")
    for attempt in (1, 2, 3, 4):
        expire(db, "docs_body")
        claim = worker.claim("docs_body", 1, max_attempts=5)
        assert (claim.texts, claim.attempts) == (["poison"], [attempt])
        db.execute("BEGIN")
        assert worker.fail(claim, f"failure {attempt}", max_attempts=5) == 1
        wait = seconds_to_wait(db) if attempt == 1 else None
        db.execute("COMMIT")
        assert wait is None or wait <= 1.1
        others = worker.claim("docs_body", max_attempts=5)
        assert others.texts == (["good"] if attempt == 1 else [])
        worker.complete(others)
    assert rows(db, "SELECT * FROM pgembed.failures") == []
    assert 200 < seconds_to_wait(db) < 300
    expire(db, "docs_body")
    claim = worker.claim("docs_body", max_attempts=5)
    assert worker.fail(claim, "the last one", max_attempts=5) == 1
    assert rows(db, "SELECT embedding, key, attempts, error FROM pgembed.failures") == [
        ("docs_body", {"id": 1}, 5, "the last one")
    ]
    assert value(db, "SELECT now() - failed_at < '1 min' FROM pgembed.failures")
    assert status(db, "docs_body")["failed"] == 1
    assert status(db, "docs_body")["state"] == "current but for failures"
    assert worker.work() == {}
    assert_converged(db, "docs_body")


def test_waits_are_bounded(db: Connection, worker: SqlWorker) -> None:
    documents(db, "poison")
    declare(db, "docs", "body")
    worker.work()
    for _ in range(20):
        expire(db, "docs_body")
        worker.fail(worker.claim("docs_body", max_attempts=99), max_attempts=99)
    assert seconds_to_wait(db) <= 3600


def test_a_change_gives_all_attempts_again(db: Connection, worker: SqlWorker) -> None:
    documents(db, "poison")
    declare(db, "docs", "body", chunk_tokens=8)
    worker.work()
    worker.fail(worker.claim("docs_body"), max_attempts=1)
    db.execute("UPDATE docs SET price = 1")
    assert pending(db, "docs_body") == 0
    db.execute("UPDATE docs SET body = 'remedy'")
    assert rows(db, "SELECT * FROM pgembed.failures") == []
    # It waits since the change, not since the failure.
    found = status(db, "docs_body")
    assert found["oldest_pending"] < value(
        db, "SELECT now() - created_at FROM pgembed.embedding"
    )
    claim = worker.claim("docs_body")
    assert claim.attempts == [1]
    worker.complete(claim)
    assert_converged(db, "docs_body")


def test_a_deleted_row_is_no_failure(db: Connection, worker: SqlWorker) -> None:
    documents(db, "poison")
    declare(db, "docs", "body")
    worker.work()
    worker.fail(worker.claim("docs_body"), max_attempts=1)
    db.execute("DELETE FROM docs")
    assert rows(db, "SELECT * FROM pgembed.failures") == []
    assert_converged(db, "docs_body")


def test_errors_are_never_lost(db: Connection, worker: SqlWorker) -> None:
    documents(db, "poison", "poison")
    declare(db, "docs", "body")
    worker.work()
    worker.fail(worker.claim("docs_body", 1), None, max_attempts=1)
    worker.fail(worker.claim("docs_body", 1), "x" * 5000, max_attempts=1)
    errors = rows(db, "SELECT error FROM pgembed.failures ORDER BY error")
    assert errors == [("unknown error",), ("x" * 1000,)]
    assert value(db, "SELECT pgembed.retry_failed('docs_body')") == 2
    assert value(db, "SELECT pgembed.retry_failed('docs_body')") == 0
    worker.drain()
    assert_converged(db, "docs_body")


def test_keys_are_shown_as_they_are(db: Connection, worker: SqlWorker) -> None:
    db.execute(
        'CREATE TABLE docs ("a b" text, at date, n numeric, body text, '
        'PRIMARY KEY (n, "a b", at))'
    )
    db.execute("INSERT INTO docs VALUES ('k%', '2020-01-01', 1.50, 'x')")
    declare(db, "docs", "body")
    worker.work()
    worker.fail(worker.claim("docs_body"), max_attempts=1)
    key = value(db, "SELECT key::text FROM pgembed.failures")
    assert key == '{"n": 1.50, "at": "2020-01-01", "a b": "k%"}'


LEAVE_OUT = """
    CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RETURN NULL; END$$;
    CREATE TRIGGER leave_out BEFORE UPDATE ON docs FOR EACH ROW
        WHEN (OLD.id = 2) EXECUTE FUNCTION leave_out()
"""


@pytest.mark.parametrize("storage", ["vector", "halfvec", "bit"])
def test_a_vector_that_the_table_does_not_take(
    db: Connection, worker: SqlWorker, storage: str
) -> None:
    documents(db, "one", "two", " ")
    db.execute(LEAVE_OUT)
    declare(db, "docs", "body", storage=storage)
    worker.drain()
    ((key, error),) = rows(db, "SELECT key, error FROM pgembed.failures")
    assert key == {"id": 2}
    assert "a trigger left the row out" in error
    assert status(db, "docs_body")["embedded"] == 1
    assert value(db, "SELECT pgembed.reconcile('docs_body')") == 0
    db.execute("DROP TRIGGER leave_out ON docs")
    assert value(db, "SELECT pgembed.retry_failed('docs_body')") == 1
    worker.drain()
    assert rows(db, "SELECT * FROM pgembed.failures") == []
    assert_converged(db, "docs_body")


@pytest.mark.parametrize("storage", ["vector", "halfvec", "bit"])
def test_a_row_that_holds_its_vector_may_be_left_out(
    db: Connection, worker: SqlWorker, storage: str
) -> None:
    documents(db, "one", " ")
    declare(db, "docs", "body", storage=storage)
    worker.drain()
    db.execute(
        "CREATE TRIGGER same BEFORE UPDATE ON docs FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    )
    db.execute("UPDATE pgembed.job_1 SET pgembed_available_at = now()")
    worker.drain()
    assert rows(db, "SELECT * FROM pgembed.failures") == []
    assert_converged(db, "docs_body")


@pytest.mark.parametrize("condition", ["", " WHERE OLD.id = 1"])
def test_a_rule_that_takes_the_write_away_is_no_success(
    db: Connection, worker: SqlWorker, condition: str
) -> None:
    documents(db, "one")
    db.execute(f"CREATE RULE r AS ON UPDATE TO docs{condition} DO INSTEAD NOTHING")
    declare(db, "docs", "body")
    worker.work()
    claim = worker.claim("docs_body")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        worker.complete(claim)


def redeclared(db: Connection, worker: SqlWorker) -> Claim:
    """Claim row 2 of an embedding whose column holds the vectors of another."""
    documents(db, "one", "poison")
    declare(db, "docs", "body")
    worker.drain()
    db.execute("SELECT pgembed.drop_embedding('docs_body')")
    declare(db, "docs", "body")
    worker.work()
    claims = {str(c.texts): c for c in (worker.claim("docs_body", 1) for _ in "12")}
    worker.complete(claims["['one']"])
    return claims["['poison']"]


EMBEDDED = "SELECT id FROM docs WHERE body_embedding IS NOT NULL ORDER BY id"


def test_a_row_that_fails_loses_the_vector_of_another_model(
    db: Connection, worker: SqlWorker
) -> None:
    claim = redeclared(db, worker)
    worker.fail(claim, max_attempts=2)
    assert rows(db, EMBEDDED) == [(1,), (2,)]  # there is another attempt
    expire(db, "docs_body")
    worker.fail(worker.claim("docs_body"), max_attempts=2)
    assert rows(db, EMBEDDED) == [(1,)]
    # Its own old vector stays, as on_change has it.
    db.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    worker.fail(worker.claim("docs_body"), max_attempts=1)
    assert rows(db, EMBEDDED) == [(1,)]


def test_a_row_whose_workers_died_loses_the_vector_of_another_model(
    db: Connection, worker: SqlWorker
) -> None:
    redeclared(db, worker)
    for _ in range(2):
        assert rows(db, EMBEDDED) == [(1,), (2,)]
        expire(db, "docs_body")
        worker.claim("docs_body", max_attempts=2)
    assert "2 workers died" in value(db, "SELECT error FROM pgembed.failures")
    assert rows(db, EMBEDDED) == [(1,)]
    # Its own old vector stays, as on_change has it.
    db.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    for _ in range(3):
        expire(db, "docs_body")
        worker.claim("docs_body", max_attempts=2)
    assert len(rows(db, "SELECT * FROM pgembed.failures")) == 2
    assert rows(db, EMBEDDED) == [(1,)]


def test_a_row_that_cannot_be_read_loses_the_vector_of_another_model(
    db: Connection, worker: SqlWorker
) -> None:
    db.execute("""
        CREATE TYPE note AS (body text);
        CREATE FUNCTION text_of(n note) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            IF n.body = 'poison' THEN RAISE 'no text'; END IF;
            RETURN n.body;
        END$$;
        CREATE CAST (note AS text) WITH FUNCTION text_of(note);
        CREATE TABLE docs (id int PRIMARY KEY, body note);
        INSERT INTO docs VALUES (1, ROW('one')), (2, ROW('two'));
    """)
    declare(db, "docs", "body")
    worker.drain()
    db.execute("SELECT pgembed.drop_embedding('docs_body')")
    db.execute("UPDATE docs SET body = ROW('poison') WHERE id = 2")
    declare(db, "docs", "body")
    worker.drain()
    error = value(db, "SELECT error FROM pgembed.failures")
    assert error == "its content cannot be read: no text"
    assert rows(db, EMBEDDED) == [(1,)]


@pytest.mark.parametrize(
    "lock", ["SELECT FROM docs WHERE id = 2 FOR UPDATE", "LOCK docs IN SHARE MODE"]
)
def test_a_locked_row_loses_the_vector_of_another_model_later(
    dsn: str, db: Connection, worker: SqlWorker, lock: str
) -> None:
    claim = redeclared(db, worker)
    with connect(dsn, purpose="user", autocommit=False) as user:
        user.execute(lock.encode())
        assert worker.fail(claim, max_attempts=1) == 1
        assert len(worker.claim("docs_body", max_attempts=1)) == 0
        expire(db, "docs_body")
        assert len(worker.claim("docs_body", max_attempts=1)) == 0
        assert status(db, "docs_body")["pending"] == 1
        user.rollback()
    assert rows(db, EMBEDDED) == [(1,), (2,)]
    expire(db, "docs_body")
    assert len(worker.claim("docs_body", max_attempts=1)) == 0
    assert rows(db, EMBEDDED) == [(1,)]
    assert value(db, "SELECT error FROM pgembed.failures") == "poison"
    assert worker.work() == {}


def test_a_vector_that_cannot_be_taken_away_is_a_failure_all_the_same(
    db: Connection, worker: SqlWorker
) -> None:
    claim = redeclared(db, worker)
    db.execute(LEAVE_OUT.encode())
    assert worker.fail(claim, max_attempts=1) == 1
    assert worker.work() == {}
    db.execute("DROP FUNCTION leave_out CASCADE")
    db.execute(LEAVE_OUT.replace("RETURN NULL", "RAISE 'no'").encode())
    db.execute("SELECT pgembed.retry_failed('docs_body')")
    assert worker.fail(worker.claim("docs_body"), max_attempts=1) == 1
    assert worker.work() == {}
    assert len(rows(db, "SELECT * FROM pgembed.failures")) == 1
