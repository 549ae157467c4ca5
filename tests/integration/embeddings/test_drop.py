"""drop_embedding, pause and resume, and the end of the source."""

from __future__ import annotations

import pytest

from pgembed.postgres.connection import connect
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    rows,
    value,
)
from tests.integration.embeddings.support import (
    catalog,
    declare,
    documents,
    refused,
    status,
)

MODES: dict[str, dict[str, object]] = {
    "column": {},
    "chunks": {"chunk_tokens": 8},
    "cleared": {"on_change": "clear"},
}


@pytest.mark.parametrize("mode", MODES)
def test_dropping_with_the_vectors_leaves_nothing_behind(
    scratch: Connection, scratch_worker: SqlWorker, mode: str
) -> None:
    documents(scratch, "one", "two")
    before = catalog(scratch)
    for _ in range(2):
        declare(scratch, "docs", "body", **MODES[mode])
        scratch_worker.drain()
        assert_converged(scratch, "docs_body")
        assert catalog(scratch) != before
        rows(scratch, "SELECT pgembed.drop_embedding('docs_body', true)")
        assert catalog(scratch) == before


@pytest.mark.parametrize("mode", MODES)
def test_dropping_without_the_vectors(
    scratch: Connection, scratch_worker: SqlWorker, mode: str
) -> None:
    documents(scratch, "one", "two")
    before = catalog(scratch)
    declare(scratch, "docs", "body", **MODES[mode])
    scratch_worker.drain()
    rows(scratch, "SELECT pgembed.drop_embedding('docs_body')")
    left = {row for row in catalog(scratch) if row not in before}
    kinds = {kind for kind, *_ in left}
    assert kinds == ({"relation", "column"} if mode == "chunks" else {"column"})
    scratch.execute("UPDATE docs SET body = 'nobody looks'")
    scratch.execute("DELETE FROM docs WHERE id = 1")
    table = "docs_body_chunk" if mode == "chunks" else "docs"
    column = "embedding" if mode == "chunks" else "body_embedding"
    found = value(scratch, f"SELECT count({column}) FROM {table}")
    assert found == (2 if mode == "chunks" else 1)


def test_dropping_one_of_several(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two")
    for number in range(12):
        declare(scratch, "docs", "body", name=f"e{number}", target_column=f"v{number}")
    scratch_worker.drain()
    rows(scratch, "SELECT pgembed.drop_embedding('e0', true)")
    scratch.execute("UPDATE docs SET body = 'changed'")
    scratch_worker.drain()
    for number in range(1, 12):
        assert_converged(scratch, f"e{number}")


def test_dropping_what_is_not_there(scratch: Connection) -> None:
    with refused(scratch, "42704", message="no embedding 'x'", hint="none yet"):
        rows(scratch, "SELECT pgembed.drop_embedding('x')")
    with refused(scratch, "42704", message="no embedding NULL", hint="none yet"):
        rows(scratch, "SELECT pgembed.drop_embedding(NULL)")


def test_dropping_a_model_in_use(scratch: Connection) -> None:
    documents(scratch)
    declare(scratch, "docs", "body")
    with refused(scratch, "2BP01", message="is in use", hint="drop_embedding"):
        rows(scratch, "SELECT pgembed.drop_model('tiny')")
    rows(scratch, "SELECT pgembed.drop_embedding('docs_body')")
    rows(scratch, "SELECT pgembed.drop_model('tiny')")


def declare_ghost(connection: Connection, number: str, **options: object) -> None:
    """Declare an embedding whose table is dropped; *number* is what has its number.

    As in a dump that was restored into another cluster.
    """
    connection.execute("CREATE TABLE gone (id int PRIMARY KEY, body text)")
    declare(connection, "gone", "body", name="ghost", **options)
    connection.execute("DROP TABLE gone CASCADE")
    rows(
        connection,
        "UPDATE pgembed.embedding SET source = %s::regclass, target = %s::regclass "
        "WHERE name = 'ghost'",
        number,
        number,
    )


NOT_ITS_TABLE = {
    "view": "seen",
    "sequence": "pgembed.lease_seq",
    "index": "other_pkey",
    "pgembed's": "pgembed.model",
    "other key": "other",
}


@pytest.mark.parametrize("number", NOT_ITS_TABLE.values(), ids=list(NOT_ITS_TABLE))
def test_a_number_that_is_another_relation_s(
    scratch: Connection, scratch_worker: SqlWorker, number: str
) -> None:
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body")
    scratch.execute("CREATE VIEW seen AS SELECT id, body FROM docs")
    scratch.execute("CREATE TABLE other (name text PRIMARY KEY, body_embedding text)")
    scratch_worker.drain()
    before = catalog(scratch)
    declare_ghost(scratch, number)
    query = "SELECT state FROM pgembed.embedding_status WHERE name = 'ghost'"
    assert value(scratch, query) == "source dropped"
    with refused(scratch, "42P01", message="was dropped", hint="drop_embedding"):
        rows(scratch, "SELECT pgembed.reconcile('ghost')")
    scratch_worker.work()
    assert catalog(scratch) == before
    assert_converged(scratch, "docs_body")


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("by", ["worker", "hand"])
def test_a_number_that_is_another_embedding_s_table(
    scratch: Connection, scratch_worker: SqlWorker, by: str, adopted: bool
) -> None:
    documents(scratch, "one", "two")
    if adopted:
        scratch.execute("ALTER TABLE docs ADD body_embedding public.vector(3)")
        rows(scratch, "SELECT pgembed.adopt_vectors('docs', 'body_embedding')")
    else:
        declare(scratch, "docs", "body")
        scratch_worker.drain()
    before = catalog(scratch)
    declare_ghost(scratch, "docs")
    search = "SELECT count(*) FROM pgembed.search(NULL::docs, '[1,0,0]'::vector)"
    assert value(scratch, search) == (0 if adopted else 2)
    if by == "worker":
        scratch_worker.work()
    else:
        rows(scratch, "SELECT pgembed.drop_embedding('ghost', true)")
    assert catalog(scratch) == before
    if not adopted:
        declare_ghost(scratch, "docs")
        rows(scratch, "SELECT pgembed.drop_embedding('docs_body', true)")
        query = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'docs'::regclass"
        assert value(scratch, f"{query} AND attname = 'body_embedding'") == 0


def test_chunks_whose_number_is_another_table_s(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body", chunk_tokens=8)
    scratch.execute("CREATE TABLE plain (id int PRIMARY KEY, embedding text)")
    before = catalog(scratch)
    for number in ("plain", "docs_body_chunk"):
        declare_ghost(scratch, number, chunk_tokens=8)
        rows(scratch, "UPDATE pgembed.embedding SET source = 0 WHERE name = 'ghost'")
        scratch.execute("DROP TABLE ghost_chunk")
        scratch_worker.work()
        assert catalog(scratch) == before


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("chunk_tokens", [None, 8])
def test_dropping_the_source(
    scratch: Connection,
    scratch_worker: SqlWorker,
    chunk_tokens: int | None,
    paused: bool,
) -> None:
    scratch.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    scratch.execute("INSERT INTO other VALUES (1, 'x')")
    declare(scratch, "other", "body")
    before = catalog(scratch)
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body", chunk_tokens=chunk_tokens)
    scratch_worker.work()
    claim = scratch_worker.claim("docs_body")
    if paused:
        rows(scratch, "SELECT pgembed.pause_embedding('docs_body')")
    scratch.execute("DROP TABLE docs")
    assert status(scratch, "docs_body")["state"] == "source dropped"
    assert_settled_without_effect(scratch, claim.embedding, claim.lease)
    # The next worker that looks for work forgets it; others are unaffected.
    scratch_worker.drain()
    assert catalog(scratch) == before
    assert_converged(scratch, "other_body")


def two_tables(connection: Connection) -> None:
    """Declare an embedding with chunks of docs, which is dropped; other keeps its."""
    documents(connection, "one two three")
    declare(connection, "docs", "body", chunk_tokens=8)
    connection.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO other VALUES (1, 'x')")
    declare(connection, "other", "body")


@pytest.mark.parametrize(
    "user",
    [
        "CREATE VIEW parts AS SELECT id, content FROM docs_body_chunk",
        "CREATE TABLE note (id int, chunk int, FOREIGN KEY (id, chunk) "
        "REFERENCES docs_body_chunk (id, chunk))",
    ],
    ids=["view", "foreign key"],
)
def test_dropping_the_source_of_chunks_that_are_needed(
    scratch: Connection, scratch_worker: SqlWorker, user: str
) -> None:
    """Their table stays; the embedding is forgotten, and no other has to wait."""
    two_tables(scratch)
    scratch_worker.drain()
    rows(scratch, user)
    scratch.execute("DROP TABLE docs; UPDATE other SET body = 'changed'")
    scratch_worker.drain()
    assert_converged(scratch, "other_body")
    assert rows(scratch, "SELECT name FROM pgembed.embedding") == [("other_body",)]
    assert value(scratch, "SELECT count(*) FROM docs_body_chunk") == 2


def test_a_name_whose_chunks_are_needed(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    two_tables(scratch)
    scratch.execute("CREATE VIEW parts AS SELECT id, content FROM docs_body_chunk")
    scratch.execute("DROP TABLE docs")
    documents(scratch, "anew")
    with refused(scratch, "42P07", message="docs_body_chunk", hint="another name"):
        declare(scratch, "docs", "body", chunk_tokens=8)
    declare(scratch, "docs", "body")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_an_embedding_that_cannot_be_forgotten(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    """It says why, and stops no other."""
    two_tables(scratch)
    scratch.execute("DROP TABLE docs")
    scratch.execute(
        """
        CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'no drops in working hours'; END $$;
        CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('DROP TABLE')
            EXECUTE FUNCTION refuse()
        """
    )
    for _ in range(2):
        scratch_worker.drain()
    assert_converged(scratch, "other_body")
    state = status(scratch, "docs_body")["state"]
    assert state == "source dropped; blocked: no drops in working hours"
    scratch.execute("DROP EVENT TRIGGER refuse")
    scratch_worker.drain()
    assert rows(scratch, "SELECT name FROM pgembed.embedding") == [("other_body",)]


def assert_settled_without_effect(
    connection: Connection, embedding: int, lease: int
) -> None:
    settled = value(
        connection,
        "SELECT pgembed._complete(%s, %s::bigint, NULL, '{1}', '{0}', '{NULL}')",
        embedding,
        lease,
    )
    assert settled == [1]


def test_dropping_the_source_when_the_worker_is_not_the_owner(
    db: Connection, role_dsn: str
) -> None:
    documents(db, "one")
    db.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    db.execute("INSERT INTO other VALUES (1, 'x')")
    declare(db, "docs", "body", chunk_tokens=8)
    declare(db, "other", "body")
    db.execute("DROP TABLE docs")
    with connect(role_dsn) as connection:
        grant_worker_rights(db, connection.info.user)
        worker = SqlWorker(connection)
        worker.drain()
        worker.drain()
    assert_converged(db, "other_body")
    gone = "SELECT count(*) FROM pgembed.embedding WHERE name = 'docs_body'"
    assert value(db, gone) == 0
    assert value(db, "SELECT to_regclass('pgembed.job_1') IS NULL")
    # The chunks are not the worker's to drop.
    assert value(db, "SELECT to_regclass('docs_body_chunk') IS NOT NULL")


def grant_worker_rights(db: Connection, role: str) -> None:
    for grant in (
        "USAGE ON SCHEMA pgembed",
        "ALL ON ALL TABLES IN SCHEMA pgembed",
        "ALL ON ALL SEQUENCES IN SCHEMA pgembed",
        "ALL ON ALL FUNCTIONS IN SCHEMA pgembed",
        "SELECT, UPDATE ON ALL TABLES IN SCHEMA public",
    ):
        db.execute(f"GRANT {grant} TO {role}".encode())


def test_a_worker_without_rights_on_one_table_works_on_the_others(
    db: Connection, role_dsn: str
) -> None:
    for table in ("unseen", "readable", "docs"):
        db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)".encode())
        db.execute(f"INSERT INTO {table} VALUES (1, 'x')".encode())
        declare(db, table, "body")
    with connect(role_dsn) as connection:
        grant_worker_rights(db, connection.info.user)
        db.execute(f"REVOKE ALL ON unseen FROM {connection.info.user}".encode())
        db.execute(f"REVOKE UPDATE ON readable FROM {connection.info.user}".encode())
        worker = SqlWorker(connection)
        for _ in range(5):
            for name, ready in worker.work().items():
                claim = worker.claim(name) if ready else None
                if claim is not None and len(claim):
                    worker.complete(claim)
    assert_converged(db, "docs_body")
    for name in ("unseen_body", "readable_body"):
        assert "blocked: permission denied for table" in status(db, name)["state"]


def test_pause_and_resume(scratch: Connection, scratch_worker: SqlWorker) -> None:
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body")
    rows(scratch, "SELECT pgembed.pause_embedding('docs_body')")
    assert status(scratch, "docs_body")["state"] == "paused"
    scratch.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    assert scratch_worker.work() == {}
    assert rows(scratch, "SELECT * FROM pgembed._index_work()") == []
    rows(scratch, "SELECT pgembed.resume_embedding('docs_body')")
    assert status(scratch, "docs_body")["state"] == "embedding"
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_blocked(scratch: Connection, scratch_worker: SqlWorker) -> None:
    documents(scratch, "one")
    declare(scratch, "docs", "body")
    number = value(scratch, "SELECT id FROM pgembed.embedding")
    rows(scratch, "SELECT pgembed._block(%s, 'its model is corrupt')", number)
    assert status(scratch, "docs_body")["state"] == "blocked: its model is corrupt"
    assert scratch_worker.work() == {}
    rows(scratch, "SELECT pgembed._unblock(%s)", number)
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
