"""reconcile: whatever escaped the triggers is found, and nothing else is touched."""

from __future__ import annotations

import pytest

from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    job_table,
    pending,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents, refused


@pytest.fixture(params=[None, 8], ids=["column", "chunks"])
def name(
    request: pytest.FixtureRequest, scratch: Connection, scratch_worker: SqlWorker
) -> str:
    """Return an embedding that is current."""
    documents(scratch, "one", "two", "three four five", None)
    declared = declare(scratch, "docs", "body", chunk_tokens=request.param)
    scratch_worker.drain()
    return declared


def reconcile(connection: Connection, name: str) -> int:
    return int(value(connection, "SELECT pgembed.reconcile(%s)", name))


def test_nothing_to_do(scratch: Connection, name: str) -> None:
    assert reconcile(scratch, name) == 0
    assert pending(scratch, name) == 0
    assert_converged(scratch, name)


HOLES = {
    "UPDATE docs SET body = 'changed' WHERE id = 1": 1,
    "UPDATE docs SET body = NULL WHERE id = 1": 1,
    "UPDATE docs SET body = 'now it has one' WHERE id = 4": 1,
    "UPDATE docs SET price = 3": 0,
    "INSERT INTO docs (id, body) VALUES (5, 'new'), (6, NULL)": 2,
    "DELETE FROM docs WHERE id < 3": 0,
    "DELETE FROM docs": 0,
    "TRUNCATE docs": 0,
    "UPDATE docs SET id = id + 10 WHERE id = 1": 1,
    "UPDATE docs SET id = 5 - id": 4,
}


@pytest.mark.parametrize("change", HOLES)
def test_changes_while_the_triggers_were_disabled(
    scratch: Connection, scratch_worker: SqlWorker, name: str, change: str
) -> None:
    if "5 - id" in change:
        scratch.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey")
        scratch.execute("ALTER TABLE docs ADD PRIMARY KEY (id) DEFERRABLE")
    scratch.execute("ALTER TABLE docs DISABLE TRIGGER ALL")
    scratch.execute(change.encode())
    scratch.execute("ALTER TABLE docs ENABLE TRIGGER ALL")
    assert reconcile(scratch, name) == HOLES[change]
    scratch_worker.drain()
    assert_converged(scratch, name)
    # The triggers fire always again, not only for ordinary sessions.
    scratch.execute("SET LOCAL session_replication_role = replica")
    scratch.execute("INSERT INTO docs (id, body) VALUES (50, 'replicated')")
    assert pending(scratch, name) == 1
    scratch_worker.drain()
    assert_converged(scratch, name)


@pytest.mark.parametrize("event", ["insert", "update", "delete", "truncate", "wake"])
def test_missing_triggers(
    scratch: Connection, scratch_worker: SqlWorker, name: str, event: str
) -> None:
    triggers = (
        "SELECT tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger "
        "WHERE tgrelid = 'docs'::regclass ORDER BY tgname"
    )
    before = rows(scratch, triggers)
    number = value(scratch, "SELECT id FROM pgembed.embedding")
    scratch.execute(f"DROP TRIGGER pgembed_{number}_{event} ON docs".encode())
    assert reconcile(scratch, name) == 0
    assert rows(scratch, triggers) == before


def test_repairing_locks_writers_out_only_when_it_must(
    scratch: Connection, name: str
) -> None:
    strong = (
        "SELECT mode FROM pg_locks WHERE relation = 'docs'::regclass "
        "AND pid = pg_backend_pid() AND mode LIKE '%Exclusive%'"
    )
    scratch.execute("COMMIT")
    scratch.execute("BEGIN")
    try:
        reconcile(scratch, name)
        assert set(rows(scratch, strong)) <= {("RowExclusiveLock",)}
    finally:
        rows(scratch, "SELECT pgembed.drop_embedding(%s, true)", name)
        scratch.execute("DROP TABLE docs")
        scratch.execute("COMMIT")
        scratch.execute("BEGIN")


def test_left_over_and_duplicated_jobs(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    number = value(scratch, "SELECT id FROM pgembed.embedding")
    claim_before = scratch_worker.claim(name)
    assert len(claim_before) == 0
    rows(
        scratch,
        f"INSERT INTO pgembed.job_{number} (id, pgembed_available_at) "
        "VALUES (1, NULL), (2, now()), (98, NULL), (99, now())",
    )
    reconcile(scratch, name)
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_jobs_that_are_done_twice(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    job = job_table(scratch, name)
    rows(scratch, f"INSERT INTO {job} SELECT * FROM {job}")
    reconcile(scratch, name)
    assert value(scratch, f"SELECT count(*) FROM {job}") == 4
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_twin_that_a_worker_holds(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    number = value(scratch, "SELECT id FROM pgembed.embedding")
    scratch.execute("UPDATE docs SET body = 'old' WHERE id = 1")
    claim = scratch_worker.claim(name)
    scratch.execute("ALTER TABLE docs DISABLE TRIGGER ALL")
    scratch.execute("UPDATE docs SET body = 'new' WHERE id = 1")
    rows(scratch, f"INSERT INTO pgembed.job_{number} (id) VALUES (1)")
    reconcile(scratch, name)
    assert scratch_worker.complete(claim) == claim.slots
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_vectors_lost_or_left(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    if value(scratch, "SELECT chunk_tokens FROM pgembed.embedding"):
        scratch.execute("DELETE FROM docs_body_chunk WHERE id = 1")
        scratch.execute(
            "INSERT INTO docs_body_chunk SELECT 4, chunk, content, embedding "
            "FROM docs_body_chunk WHERE id = 2"
        )
        scratch.execute(
            "INSERT INTO docs_body_chunk SELECT 44, chunk, content, embedding "
            "FROM docs_body_chunk WHERE id = 2"
        )
    else:
        scratch.execute("UPDATE docs SET body_embedding = NULL WHERE id = 1")
        scratch.execute("UPDATE docs SET body_embedding = '[1,2,3]' WHERE id = 4")
    assert reconcile(scratch, name) == 2
    scratch_worker.drain()
    assert_converged(scratch, name)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE made ALTER g SET EXPRESSION AS (word || '!')",
        "ALTER TYPE mood RENAME VALUE 'calm' TO 'quiet'",
    ],
)
def test_changes_that_fire_no_trigger(
    scratch: Connection, scratch_worker: SqlWorker, change: str
) -> None:
    if "EXPRESSION" in change and scratch.info.server_version < 170000:
        pytest.skip("this server has no SET EXPRESSION")
    scratch.execute(
        """
        CREATE TYPE mood AS ENUM ('calm', 'wild');
        CREATE TABLE made (id int PRIMARY KEY, word text, m mood,
            g text GENERATED ALWAYS AS (upper(word)) STORED);
        INSERT INTO made VALUES (1, 'one', 'calm'), (2, NULL, 'calm');
        """
    )
    name = declare(scratch, "made", "{m} {g}")
    scratch_worker.drain()
    scratch.execute(change.encode())
    assert reconcile(scratch, name) == (1 if "EXPRESSION" in change else 2)
    scratch_worker.drain()
    assert_converged(scratch, name)
    scratch.execute("UPDATE made SET word = 'two'")
    assert pending(scratch, name) == 2
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_failed_rows_stay_failed(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch.execute("UPDATE docs SET body = 'poison' WHERE id = 1")
    scratch_worker.fail(scratch_worker.claim(name), max_attempts=1)
    assert reconcile(scratch, name) == 0
    assert value(scratch, "SELECT count(*) FROM pgembed.failures") == 1
    assert_converged(scratch, name)


def test_before_the_backfill(scratch: Connection, scratch_worker: SqlWorker) -> None:
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body")
    assert reconcile(scratch, "docs_body") == 2
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_replaced_functions(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    # As an upgrade does that changes what the triggers do.
    function = value(
        scratch,
        "SELECT pgembed._trigger_function(e, 'wake') FROM pgembed.embedding AS e",
    )
    scratch.execute(
        f"CREATE OR REPLACE FUNCTION pgembed.{function}() "
        "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$".encode()
    )
    scratch.execute("INSERT INTO docs (id, body) VALUES (7, 'unseen')")
    assert reconcile(scratch, name) == 1
    scratch.execute("INSERT INTO docs (id, body) VALUES (8, 'seen')")
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_an_index_that_is_missing_is_built_again(
    scratch: Connection, name: str
) -> None:
    scratch.execute("UPDATE pgembed.embedding SET index_state = 'ready'")
    reconcile(scratch, name)
    assert value(scratch, "SELECT index_state FROM pgembed.embedding") == "waiting"


def test_errors(scratch: Connection) -> None:
    with refused(scratch, "42704", message="no embedding 'x'", hint="none yet"):
        reconcile(scratch, "x")
    documents(scratch)
    declare(scratch, "docs", "body")
    with refused(scratch, "42704", message="no embedding 'x'", hint="docs_body"):
        reconcile(scratch, "x")
    scratch.execute("ALTER TABLE docs ADD COLUMN v vector(3)")
    rows(scratch, "SELECT pgembed.adopt_vectors('docs', 'v')")
    for function in ("reconcile", "retry_failed"):
        with refused(
            scratch, "42809", message="by the application", hint="create_embedding"
        ):
            rows(scratch, f"SELECT pgembed.{function}('docs_v')")
    scratch.execute("DROP TABLE docs CASCADE")
    with refused(scratch, "42P01", message="was dropped", hint="drop_embedding"):
        reconcile(scratch, "docs_body")


KINDS = {
    "plain": "id int PRIMARY KEY, body varchar(9))",
    "partitioned": "id int PRIMARY KEY, body varchar(9)) PARTITION BY RANGE (id)",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_guarded", [False, True])
def test_columns_that_get_another_type(
    db: Connection, worker: SqlWorker, kind: str, is_guarded: bool
) -> None:
    """In one transaction with reconcile, as the README says; jobs may wait."""
    db.execute(f"CREATE TABLE docs ({KINDS[kind]}".encode())
    if kind == "partitioned":
        db.execute("CREATE TABLE part PARTITION OF docs DEFAULT")
    db.execute("INSERT INTO docs VALUES (1, 'one'), (2, 'two'), (3, 'three')")
    if is_guarded:
        db.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    names = (declare(db, "docs", "body"), declare(db, "docs", "{body}", chunk_tokens=8))
    worker.drain()
    db.execute("UPDATE docs SET body = 'waits' WHERE id = 3")
    with db.transaction():
        db.execute("DROP TRIGGER pgembed_1_update ON docs")
        db.execute("DROP TRIGGER pgembed_2_update ON docs")
        if is_guarded:
            db.execute("DROP POLICY pgembed_source ON docs_content_chunk")
            db.execute("ALTER TABLE docs_content_chunk DISABLE ROW LEVEL SECURITY")
        db.execute("ALTER TABLE docs ALTER body TYPE text")
        if kind == "plain":  # the key of a partition cannot be altered anyhow
            db.execute("ALTER TABLE docs ALTER id TYPE bigint")
        assert [reconcile(db, name) for name in names] == [0, 0]
    if is_guarded:
        policies = "SELECT tablename FROM pg_policies WHERE policyname ~ '^pgembed'"
        assert rows(db, policies) == [("docs_content_chunk",)]
    worker.drain()
    db.execute("UPDATE docs SET body = 'longer than nine' WHERE id = 1")
    far = 5_000_000_000 if kind == "plain" else 5
    db.execute("UPDATE docs SET id = %s WHERE id = 2", (far,))
    worker.drain()
    for name in names:
        assert_converged(db, name)
    db.execute("TRUNCATE docs")
    for name in names:
        assert_converged(db, name)
