"""Only the holder of the live lease, with the row as it was read, changes anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.sql_worker import (
    Claim,
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    job_table,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents

Finish = Callable[[SqlWorker, Claim], object]

MODES: dict[str, dict[str, object]] = {
    "column": {},
    "chunks": {"chunk_tokens": 8},
    "cleared": {"on_change": "clear"},
}


@pytest.fixture(params=MODES)
def name(request: pytest.FixtureRequest, scratch: Connection) -> str:
    """Return an embedding of three rows."""
    documents(scratch, "one", "two", "three four five")
    return declare(scratch, "docs", "body", **MODES[request.param])


def state(connection: Connection, name: str) -> list[tuple[object, ...]]:
    return rows(
        connection, f"SELECT * FROM {job_table(connection, name)} ORDER BY id"
    ) + rows(connection, "SELECT docs::text FROM docs ORDER BY id")


FINISH: dict[str, Finish] = {
    "complete": lambda worker, claim: worker.complete(claim),
    "fail": lambda worker, claim: worker.fail(claim, max_attempts=1),
    "release": lambda worker, claim: worker.release(claim),
    "renew": lambda worker, claim: worker.renew(claim),
}


@pytest.mark.parametrize("finish", FINISH)
@pytest.mark.parametrize("then", ["claimed again", "completed by another"])
def test_zombie_changes_nothing(
    scratch: Connection, scratch_worker: SqlWorker, name: str, finish: str, then: str
) -> None:
    scratch_worker.work()
    zombie = scratch_worker.claim(name, lease="0")
    holder = scratch_worker.claim(name)
    assert len(holder) == 3
    if then == "completed by another":
        scratch_worker.complete(holder)
    before = state(scratch, name)
    FINISH[finish](scratch_worker, zombie)
    assert state(scratch, name) == before
    expire(scratch, name)
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_lease_that_expired_but_was_not_taken_still_counts(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch_worker.work()
    claim = scratch_worker.claim(name, lease="0")
    assert scratch_worker.complete(claim) == claim.slots
    assert_converged(scratch, name)


CHANGES = [
    "UPDATE docs SET body = 'changed while it was embedded' WHERE id = 1",
    "UPDATE docs SET body = NULL WHERE id = 1",
    "UPDATE docs SET body = 'x'; UPDATE docs SET body = 'one' WHERE id = 1",
    "DELETE FROM docs WHERE id = 1",
    "DELETE FROM docs WHERE id = 1; INSERT INTO docs (id, body) VALUES (1, 'one')",
    "DELETE FROM docs WHERE id = 1; INSERT INTO docs (id, body) VALUES (1, 'new')",
    "UPDATE docs SET id = 9 WHERE id = 1",
    "UPDATE docs SET id = 9 WHERE id = 1; INSERT INTO docs (id, body) VALUES (1, 'n')",
    "TRUNCATE docs",
    "TRUNCATE docs; INSERT INTO docs (id, body) VALUES (1, 'one'), (2, 'n')",
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("finish", ["complete", "fail", "release"])
def test_rows_changed_while_they_are_embedded(
    scratch: Connection, scratch_worker: SqlWorker, name: str, change: str, finish: str
) -> None:
    scratch_worker.work()
    claim = scratch_worker.claim(name)
    scratch.execute(change.encode())
    if finish == "complete":
        assert scratch_worker.complete(claim) == claim.slots
    else:
        FINISH[finish](scratch_worker, claim)
    assert (
        rows(scratch, "SELECT * FROM pgembed.failures WHERE key = '{\"id\": 1}'") == []
    )
    expire(scratch, name)
    scratch_worker.drain()
    if finish != "fail":
        assert_converged(scratch, name)
    rows(scratch, "SELECT pgembed.retry_failed(%s)", name)
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_row_claimed_again_after_it_changed(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch_worker.work()
    first = scratch_worker.claim(name)
    scratch.execute("UPDATE docs SET body = 'new' WHERE id = 2")
    second = scratch_worker.claim(name)
    assert second.texts == ["new"]
    assert second.attempts == [1]
    # In either order: the late one writes what it still holds, and no more.
    assert scratch_worker.complete(first) == [1, 2, 3]
    assert scratch_worker.complete(second) == [1]
    assert_converged(scratch, name)


def test_row_changed_after_the_stale_ones_were_handed_back(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    # In the moment before the source rows are locked: only the version tells.
    scratch_worker.work()
    claim = scratch_worker.claim(name)
    scratch.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    end = (
        "_end_jobs(e, %s::bigint, %s::int[], %s::int[], %s::int[])"
        if value(scratch, "SELECT chunk_tokens FROM pgembed.embedding")
        else "_write_vectors(e, %s::bigint, %s::int[], %s::int[], "
        '\'{"[1,2,3]","[1,2,3]","[1,2,3]"}\', %s::int[])'
    )
    ended = value(
        scratch,
        f"SELECT pgembed.{end} FROM pgembed.embedding AS e",
        claim.lease,
        claim.slots,
        claim.versions,
        claim.slots,
    )
    changed = claim.slots[claim.texts.index("one")]
    assert sorted([*ended, changed]) == sorted(claim.slots)


def test_completing_twice(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch_worker.work()
    claim = scratch_worker.claim(name)
    assert scratch_worker.complete(claim) == claim.slots
    before = state(scratch, name)
    assert scratch_worker.complete(claim) == claim.slots
    assert state(scratch, name) == before


def test_completing_an_embedding_that_was_dropped(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch_worker.work()
    claim = scratch_worker.claim(name)
    call = (
        "_complete_chunks(%s, %s::bigint, NULL, '{1,2}', '{0,0}', '{}', '{}', '{}')"
        if value(scratch, "SELECT chunk_tokens FROM pgembed.embedding")
        else "_complete(%s, %s::bigint, NULL, '{1,2}', '{0,0}', '{NULL,NULL}')"
    )
    rows(scratch, "SELECT pgembed.drop_embedding(%s)", name)
    settled = value(scratch, f"SELECT pgembed.{call}", claim.embedding, claim.lease)
    assert settled == [1, 2]


def test_paused_work_can_still_be_written(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch_worker.work()
    claim = scratch_worker.claim(name)
    rows(scratch, "SELECT pgembed.pause_embedding(%s)", name)
    assert scratch_worker.complete(claim) == claim.slots
    scratch.execute("UPDATE docs SET body = 'while paused'")
    assert scratch_worker.work() == {}
    assert len(scratch_worker.claim(name)) == 0
    rows(scratch, "SELECT pgembed.resume_embedding(%s)", name)
    scratch_worker.drain()
    assert_converged(scratch, name)


@pytest.mark.parametrize(
    "call",
    [
        "_complete(%s, %s::bigint, NULL, '{1,2}', '{0,0}', '{}')",
        "_complete(%s, %s::bigint, NULL, '{1,2}', '{0}', '{NULL,NULL}')",
        "_complete_chunks(%s, %s::bigint, NULL, '{1}', '{}', '{}', '{}', '{}')",
        "_complete_chunks(%s, %s::bigint, NULL, '{1}', '{0}', '{1}', '{}', '{}')",
    ],
)
def test_arrays_of_different_lengths(
    scratch: Connection, scratch_worker: SqlWorker, call: str
) -> None:
    documents(scratch, "one", "two")
    name = declare(scratch, "docs", "body")
    scratch_worker.work()
    claim = scratch_worker.claim(name)
    with (
        pytest.raises(Exception, match="arrays that belong together"),
        scratch.transaction(),
    ):
        rows(scratch, f"SELECT pgembed.{call}", claim.embedding, claim.lease)
    assert scratch_worker.complete(claim) == [1, 2]
    assert_converged(scratch, name)
