"""Chunks of rows that row-level security hides are hidden as well."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgembed.postgres.connection import Connection
from pgembed.postgres.schema import verify
from tests.conftest import Connect
from tests.harness.models import register_model
from tests.harness.sql_worker import SqlWorker, assert_converged, rows, value
from tests.integration.roles.conftest import Roles

CHUNKS = "SELECT id, content FROM olga.docs_body_chunk ORDER BY id, chunk"
SEARCH = """
    SELECT (item).id FROM pgembed.search(NULL::olga.docs, '[1,2,3]'::vector, k => 10)
"""
POLICY = """
    ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
    CREATE POLICY mine ON docs USING (tenant = current_user);
    GRANT SELECT ON docs TO ursula
"""


@pytest.fixture
def docs(olga: Connection, connection: Connection) -> Connection:
    """Return olga's session, with a table of hers that two tenants share."""
    register_model(connection)
    olga.execute("CREATE TABLE docs (id int PRIMARY KEY, tenant name, body text)")
    olga.execute(
        "INSERT INTO docs VALUES (1, 'ursula', 'a cat'), (2, 'other', 'secret words')"
    )
    olga.execute("GRANT USAGE ON SCHEMA olga TO ursula")
    return olga


@pytest.fixture
def ursula(roles: Roles, connect: Connect, docs: Connection) -> Connection:
    """Return the session of a tenant, who may search."""
    session: Connection = connect(roles.dsn("ursula"), purpose="test")
    return session


def declare(owner: Connection) -> None:
    owner.execute(
        "SELECT pgembed.create_embedding('olga.docs', 'body', 'tiny', "
        "chunk_tokens => 8)"
    )
    owner.execute("GRANT SELECT ON olga.docs_body_chunk TO ursula")


def hidden_from_readers(connection: Connection) -> list[str]:
    """Return what the doctor says about chunks that can be read."""
    return [f.message for f in verify(connection) if "row-level" in f.message]


@pytest.mark.parametrize("declarer", ["olga", "superuser"])
def test_a_tenant_reads_the_chunks_of_its_own_rows(
    docs: Connection, ursula: Connection, connection: Connection, declarer: str
) -> None:
    docs.execute(POLICY)
    declare(docs if declarer == "olga" else connection)
    worker = SqlWorker(connection)
    worker.drain()
    assert rows(ursula, CHUNKS) == [(1, "a cat")]
    assert rows(ursula, SEARCH) == [(1,)]
    assert len(rows(docs, CHUNKS)) == 2
    assert hidden_from_readers(connection) == []
    docs.execute("REVOKE SELECT ON docs FROM ursula")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(ursula, CHUNKS)


def test_a_worker_of_the_owner_keeps_them(
    docs: Connection, ursula: Connection, walter: Connection, connection: Connection
) -> None:
    connection.execute("GRANT olga TO walter")
    docs.execute(POLICY)
    docs.execute("CREATE POLICY writes ON docs FOR UPDATE USING (true)")
    docs.execute("GRANT ALL ON docs TO ursula")
    declare(docs)
    worker = SqlWorker(walter)
    worker.drain()
    ursula.execute("INSERT INTO olga.docs VALUES (3, 'ursula', 'three words here')")
    ursula.execute("UPDATE olga.docs SET body = 'changed' WHERE id = 1")
    worker.drain()
    assert_converged(connection, "docs_body")
    ursula.execute("DELETE FROM olga.docs")
    assert_converged(connection, "docs_body")
    assert rows(docs, "SELECT DISTINCT id FROM docs_body_chunk") == [(2,)]


def test_security_that_comes_and_goes_is_followed(
    docs: Connection, ursula: Connection, walter: Connection, connection: Connection
) -> None:
    declare(docs)
    SqlWorker(walter).drain()
    docs.execute(POLICY)
    assert len(rows(ursula, CHUNKS)) == 2
    [message] = hidden_from_readers(connection)
    assert "table olga.docs has row-level security" in message
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    assert rows(ursula, CHUNKS) == [(1, "a cat")]
    assert hidden_from_readers(connection) == []

    docs.execute("ALTER TABLE docs DISABLE ROW LEVEL SECURITY")
    docs.execute("UPDATE docs SET body = 'changed'")
    worker = SqlWorker(walter)
    worker.work()
    assert len(worker.claim("docs_body")) == 0
    blocked = value(connection, "SELECT blocked FROM pgembed.embedding")
    assert "hides rows of table olga.docs_body_chunk from role walter" in blocked
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    docs.execute("SELECT pgembed.resume_embedding('docs_body')")
    worker.drain()
    assert_converged(connection, "docs_body")
    assert len(rows(ursula, CHUNKS)) == 2


def test_a_policy_that_was_dropped_comes_back(
    docs: Connection, ursula: Connection, connection: Connection
) -> None:
    """PostgreSQL has it dropped before a key column gets another type."""
    docs.execute(POLICY)
    declare(docs)
    SqlWorker(connection).drain()
    docs.execute("DROP POLICY pgembed_source ON docs_body_chunk")
    assert rows(ursula, SEARCH) == []
    [message] = hidden_from_readers(connection)
    assert "table olga.docs_body_chunk has no policy any more" in message
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    assert rows(ursula, SEARCH) == [(1,)]
    assert hidden_from_readers(connection) == []


def test_security_that_was_switched_off_comes_back(
    docs: Connection, ursula: Connection, connection: Connection
) -> None:
    docs.execute(POLICY)
    declare(docs)
    SqlWorker(connection).drain()
    docs.execute("ALTER TABLE docs_body_chunk DISABLE ROW LEVEL SECURITY")
    assert len(rows(ursula, CHUNKS)) == 2
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    assert rows(ursula, CHUNKS) == [(1, "a cat")]


@pytest.mark.parametrize("name", ["s", "s.id"])
def test_a_chunk_table_of_any_name(
    docs: Connection, ursula: Connection, connection: Connection, name: str
) -> None:
    """Its policy compares its key with the source's, not with itself."""
    declare(docs)
    SqlWorker(connection).drain()
    docs.execute(f'ALTER TABLE docs_body_chunk RENAME TO "{name}"'.encode())
    docs.execute(POLICY)
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    assert rows(ursula, f'SELECT id FROM olga."{name}"') == [(1,)]


def test_a_policy_of_the_owner_s_own_stays(docs: Connection) -> None:
    docs.execute(POLICY)
    declare(docs)
    docs.execute("DROP POLICY pgembed_source ON docs_body_chunk")
    docs.execute("CREATE POLICY own ON docs_body_chunk USING (id = 7)")
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    policies = "SELECT policyname FROM pg_policies WHERE tablename = 'docs_body_chunk'"
    assert rows(docs, policies) == [("own",)]


def test_a_policy_of_the_owner_s_own_is_not_switched_off(
    docs: Connection, ursula: Connection, connection: Connection
) -> None:
    docs.execute(POLICY)
    declare(docs)
    SqlWorker(connection).drain()
    docs.execute(
        "CREATE POLICY own ON docs_body_chunk AS RESTRICTIVE "
        "USING (content NOT LIKE 'secret%')"
    )
    docs.execute("ALTER TABLE docs DISABLE ROW LEVEL SECURITY")
    docs.execute("INSERT INTO docs VALUES (3, 'other', 'two')")
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    SqlWorker(connection).drain()
    assert rows(ursula, CHUNKS) == [(1, "a cat"), (3, "two")]
    docs.execute("DROP POLICY own ON docs_body_chunk")
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    assert len(rows(ursula, CHUNKS)) == 3
    policies = "SELECT FROM pg_policies WHERE tablename = 'docs_body_chunk'"
    assert rows(docs, policies) == []


SCAN = "SELECT id FROM olga.docs_body_chunk ORDER BY embedding <-> '[1,2,3]' LIMIT 10"
JOIN = """
    SELECT s.id FROM olga.docs AS s INNER JOIN olga.docs_body_chunk AS v USING (id)
    ORDER BY (v.embedding <-> '[1,2,3]') + 0 LIMIT 10
"""


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a plan's node and all below it."""
    return [plan, *(n for below in plan.get("Plans", []) for n in nodes(below))]


@pytest.mark.parametrize("key", ["int", "numeric"])
def test_no_chunk_has_the_whole_source_read(
    docs: Connection, ursula: Connection, connection: Connection, key: str
) -> None:
    """Nor does a search through an index, where a key may be looked up."""
    docs.execute(f"ALTER TABLE docs ALTER id TYPE {key}".encode())
    docs.execute(
        "INSERT INTO docs SELECT i, 'ursula', 'one two three' "
        "FROM generate_series(3, 2000) AS i"
    )
    docs.execute(POLICY)
    declare(docs)
    docs.execute(
        "INSERT INTO docs_body_chunk SELECT id, 0, body, ARRAY[id, 1, 1]::vector "
        "FROM docs"
    )
    docs.execute("CREATE INDEX ON docs_body_chunk USING hnsw (embedding vector_l2_ops)")
    docs.execute("ANALYZE docs, docs_body_chunk")
    for query in (SCAN, JOIN):
        [found] = value(ursula, f"EXPLAIN (ANALYZE, FORMAT json) {query}")
        scans = [n for n in nodes(found["Plan"]) if n["Node Type"] == "Seq Scan"]
        assert {n["Actual Loops"] for n in scans} <= {1}
        if key == "int" and query == SCAN:
            assert scans == []
