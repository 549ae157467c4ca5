"""Claims: how many rows, how much text, and what a crash costs."""

from __future__ import annotations

import pytest

from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    embedding_id,
    expire,
    job_table,
    pending,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents


def hundred_rows(db: Connection, worker: SqlWorker) -> None:
    documents(db)
    db.execute(
        "INSERT INTO docs (id, body) SELECT i, repeat('x', 10) "
        "FROM generate_series(1, 100) AS i"
    )
    declare(db, "docs", "body")
    worker.work()


def test_a_claim_has_at_most_so_many_rows(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    hundred_rows(scratch, scratch_worker)
    claims = [scratch_worker.claim("docs_body", 40) for _ in range(4)]
    assert [len(claim) for claim in claims] == [40, 40, 20, 0]
    assert len({claim.lease for claim in claims[:3]}) == 3
    for claim in claims[:3]:
        assert sorted(claim.slots) == list(range(1, len(claim) + 1))
        assert claim.attempts == [1] * len(claim)
        scratch_worker.complete(claim)
    assert_converged(scratch, "docs_body")


@pytest.mark.parametrize(
    ("max_characters", "taken"), [(1, 1), (10, 1), (11, 2), (45, 5), (100_000, 100)]
)
def test_a_claim_has_at_most_so_many_characters(
    scratch: Connection, scratch_worker: SqlWorker, max_characters: int, taken: int
) -> None:
    hundred_rows(scratch, scratch_worker)
    claim = scratch_worker.claim("docs_body", max_characters=max_characters)
    assert len(claim) == taken
    # What did not fit is free at once, and no attempt was counted.
    rest = scratch_worker.claim("docs_body")
    assert len(rest) == 100 - taken
    assert set(rest.attempts) <= {1}


def test_nulls_cost_no_characters(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch)
    declare(scratch, "docs", "body")
    scratch.execute(
        "INSERT INTO docs (id, body) VALUES "
        "(1, NULL), (2, ''), (3, repeat('x', 500)), (4, NULL), (5, 'more')"
    )
    scratch_worker.work()
    texts = scratch_worker.claim("docs_body", max_characters=1).texts
    assert texts == [None, None, "x" * 500]


def test_crashes_make_claims_smaller_and_end_in_failures(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    hundred_rows(scratch, scratch_worker)
    for most, attempts in ((64, 1), (8, 2), (1, 3)):
        claim = scratch_worker.claim("docs_body", 64, max_attempts=3)
        assert len(claim) == most
        assert set(claim.attempts) == {attempts}
        # The worker dies, and its lease ends before anybody takes the others.
        rows(
            scratch,
            f"UPDATE {job_table(scratch, 'docs_body')} SET pgembed_available_at = CASE "
            "WHEN pgembed_lease = %s THEN now() - interval '1 hour' "
            "WHEN pgembed_lease IS NULL THEN now() ELSE now() + interval '1 h' END",
            claim.lease,
        )
    rest = scratch_worker.claim("docs_body", 64, max_attempts=3)
    assert len(rest) == 36
    ((key, attempts, error),) = rows(
        scratch, "SELECT key, attempts, error FROM pgembed.failures"
    )
    assert attempts == 3
    assert error == "3 workers died or stalled while they held this row"
    scratch_worker.complete(rest)
    expire(scratch, "docs_body")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    assert value(scratch, "SELECT pgembed.retry_failed('docs_body')") == 1
    scratch_worker.drain()
    assert rows(scratch, "SELECT * FROM pgembed.failures") == []
    assert_converged(scratch, "docs_body")
    assert key in [{"id": i} for i in range(1, 101)]


def test_release_gives_the_attempt_back(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body")
    scratch_worker.work()
    for _ in range(10):
        claim = scratch_worker.claim("docs_body")
        assert claim.attempts == [1, 1]
        assert scratch_worker.release(claim) == 2
    claim = scratch_worker.claim("docs_body")
    assert scratch_worker.release(claim, "1 hour") == 2
    assert len(scratch_worker.claim("docs_body")) == 0
    expire(scratch, "docs_body")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_renew(scratch: Connection, scratch_worker: SqlWorker) -> None:
    documents(scratch, "one", "two", "three")
    declare(scratch, "docs", "body")
    scratch_worker.work()
    claim = scratch_worker.claim("docs_body", lease="0")
    assert scratch_worker.renew(claim) == 3
    assert len(scratch_worker.claim("docs_body")) == 0
    scratch_worker.complete(claim)
    assert scratch_worker.renew(claim) == 0
    assert_converged(scratch, "docs_body")


def test_rows_deleted_before_they_are_claimed(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two", "three")
    declare(scratch, "docs", "body", chunk_tokens=8)
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET body = 'x'")
    number = embedding_id(scratch, "docs_body")
    rows(scratch, f"ALTER TABLE docs DISABLE TRIGGER pgembed_{number}_delete")
    scratch.execute("DELETE FROM docs WHERE id < 3")
    claim = scratch_worker.claim("docs_body", 10)
    assert len(claim) == 1
    scratch_worker.complete(claim)
    # The chunks of the deleted rows went with their jobs.
    assert_converged(scratch, "docs_body")


def test_poison_that_cannot_even_be_read(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    if scratch.info.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    documents(scratch, "one", "two", "three")
    scratch.execute("UPDATE docs SET price = id")
    scratch.execute(
        "ALTER TABLE docs ADD COLUMN share int "
        "GENERATED ALWAYS AS (100 / (price - 2)) VIRTUAL"
    )
    declare(scratch, "docs", "{body} {share}")
    scratch_worker.work()
    claim = scratch_worker.claim("docs_content")
    assert sorted(text or "" for text in claim.texts) == ["one -100", "three 100"]
    assert scratch_worker.complete(claim) == claim.slots
    assert pending(scratch, "docs_content") == 0
    ((key, error),) = rows(scratch, "SELECT key, error FROM pgembed.failures")
    assert key == {"id": 2}
    assert error == "its content cannot be read: division by zero"
