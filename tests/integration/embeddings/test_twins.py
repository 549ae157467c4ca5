"""The backfill against users: a row that gets two jobs is still embedded rightly."""

from __future__ import annotations

import pytest

from pgembed.postgres.connection import connect
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents


@pytest.fixture(params=[None, 8], ids=["column", "chunks"])
def name(request: pytest.FixtureRequest, db: Connection) -> str:
    """Return an embedding whose rows have no jobs yet."""
    documents(db, "one", "two", "three")
    return declare(db, "docs", "body", chunk_tokens=request.param)


CHANGES = [
    "UPDATE docs SET body = 'theirs' WHERE id = 1",
    "UPDATE docs SET id = 9 WHERE id = 1",
    "DELETE FROM docs WHERE id = 1",
    "DELETE FROM docs WHERE id = 1; INSERT INTO docs (id, body) VALUES (1, 'new')",
]


@pytest.mark.parametrize("late", ["backfill", "change"])
def test_change_during_the_backfill(
    db: Connection, worker: SqlWorker, dsn: str, name: str, late: str
) -> None:
    for change in CHANGES:
        db.execute("TRUNCATE docs")
        db.execute("ALTER TABLE docs DISABLE TRIGGER ALL")
        db.execute("INSERT INTO docs (id, body) VALUES (1, 'one'), (2, 'two')")
        db.execute("ALTER TABLE docs ENABLE TRIGGER ALL")
        db.execute("UPDATE pgembed.embedding SET enqueued = false")
        with connect(dsn, autocommit=False) as user:
            # The change is not committed when the backfill reads the table.
            user.execute(change.encode())
            worker.work()
            claim = worker.claim(name)
            assert "one" in claim.texts
            user.commit()
        if late == "backfill":
            worker.complete(worker.claim(name))
        worker.complete(claim)
        expire(db, name)
        worker.drain()
        assert_converged(db, name)


def test_twins_under_one_lease(db: Connection, worker: SqlWorker, name: str) -> None:
    worker.work()
    rows(db, "INSERT INTO pgembed.job_1 (id) VALUES (1), (1), (2)")
    claim = worker.claim(name)
    assert len(claim) == 6
    db.execute("UPDATE docs SET body = 'changed' WHERE id = 2")
    settled = worker.complete(claim)
    assert len(settled) == 6
    worker.drain()
    assert_converged(db, name)


def test_twin_left_by_a_delete_that_was_not_seen(
    db: Connection, worker: SqlWorker, name: str
) -> None:
    worker.drain()
    db.execute("ALTER TABLE docs DISABLE TRIGGER ALL")
    db.execute("DELETE FROM docs WHERE id = 1")
    db.execute("ALTER TABLE docs ENABLE TRIGGER ALL")
    db.execute("SELECT pgembed._enable_capture(e) FROM pgembed.embedding AS e")
    db.execute("INSERT INTO docs (id, body) VALUES (1, 'a new row')")
    assert value(db, "SELECT count(*) FROM pgembed.job_1 WHERE id = 1") == 2
    worker.drain()
    assert_converged(db, name)
