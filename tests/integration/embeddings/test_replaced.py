"""Columns replaced under an embedding: what took their names is captured instead."""

from __future__ import annotations

import pytest

from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    job_table,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, refused, status

MODES: dict[str, dict[str, object]] = {"column": {}, "chunks": {"chunk_tokens": 8}}


@pytest.fixture(params=MODES)
def name(
    request: pytest.FixtureRequest, scratch: Connection, scratch_worker: SqlWorker
) -> str:
    """Return an embedding that is current."""
    scratch.execute("CREATE TABLE docs (id int PRIMARY KEY, body varchar(20))")
    scratch.execute("INSERT INTO docs VALUES (1, 'one two three'), (2, 'four')")
    declared = declare(scratch, "docs", "body", **MODES[request.param])
    scratch_worker.drain()
    return declared


SWAPS = {
    "renamed": "ALTER TABLE docs ADD fresh text; UPDATE docs SET fresh = body || '!';"
    "ALTER TABLE docs RENAME body TO former; ALTER TABLE docs RENAME fresh TO body",
    "dropped": "ALTER TABLE docs DROP body CASCADE; ALTER TABLE docs ADD body text;"
    "UPDATE docs SET body = 'anew'",
}


@pytest.mark.parametrize("swap", SWAPS)
def test_content_column(
    scratch: Connection, scratch_worker: SqlWorker, name: str, swap: str
) -> None:
    scratch.execute(SWAPS[swap].encode())
    scratch.execute("UPDATE docs SET body = 'changed unseen' WHERE id = 1")
    scratch_worker.drain()
    assert_converged(scratch, name)
    scratch.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    scratch.execute("SET LOCAL session_replication_role = replica")
    scratch.execute("UPDATE docs SET body = 'replicated' WHERE id = 2")
    assert set(scratch_worker.claim(name).texts) == {"changed", "replicated"}


def test_reconcile_follows_the_columns(scratch: Connection, name: str) -> None:
    scratch.execute(SWAPS["renamed"].encode())
    assert value(scratch, "SELECT pgembed.reconcile(%s)", name) == 2
    watched = "SELECT pgembed._captures_wrongly(e) FROM pgembed.embedding AS e"
    assert not value(scratch, watched)


def test_nothing_is_watched_wrongly(scratch: Connection) -> None:
    scratch.execute(
        """
        CREATE TABLE docs (id int, "B ""b" text, part int, PRIMARY KEY (id, part),
            g text GENERATED ALWAYS AS (upper("B ""b")) STORED, tags text[], v point)
            PARTITION BY LIST (part);
        CREATE TABLE docs_1 PARTITION OF docs FOR VALUES IN (1);
        """
    )
    declare(scratch, "docs", '{g} {B "b} {tags} {v}')
    declare(scratch, "docs_1", "g", chunk_tokens=8)
    watched = "SELECT DISTINCT pgembed._captures_wrongly(e) FROM pgembed.embedding AS e"
    assert rows(scratch, watched) == [(False,)]


KEY_SWAP = """
    ALTER TABLE docs ADD fresh {0};
    UPDATE docs SET fresh = id;
    ALTER TABLE docs DROP CONSTRAINT docs_pkey;
    ALTER TABLE docs RENAME id TO former;
    ALTER TABLE docs ALTER former DROP NOT NULL;
    ALTER TABLE docs RENAME fresh TO id;
    ALTER TABLE docs ADD PRIMARY KEY (id);
"""


def test_key_column_of_another_type(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    before = vectors(scratch, name)
    scratch.execute(KEY_SWAP.format("bigint").encode())
    assert (
        "key column id is of type bigint in table public.docs and of type integer in "
        f"{job_table(scratch, name)}: SELECT pgembed.reconcile('docs_body')"
    ) in status(scratch, name)["state"]
    assert len(scratch_worker.claim(name)) == 0
    assert value(scratch, "SELECT pgembed.reconcile(%s)", name) == 0
    assert status(scratch, name)["state"] == "current"
    assert vectors(scratch, name) == before
    scratch.execute("INSERT INTO docs (id, body) VALUES (5000000000, 'far away')")
    scratch.execute("UPDATE docs SET id = 6000000000 WHERE id = 1")
    scratch.execute("DELETE FROM docs WHERE id = 2")
    scratch_worker.drain()
    assert_converged(scratch, name)


def vectors(connection: Connection, name: str) -> object:
    query = "SELECT target::text, target_column FROM pgembed.embedding WHERE name = %s"
    ((table, column),) = rows(connection, query, name)
    return rows(connection, f"SELECT {column}::text FROM {table} ORDER BY 1")


def test_key_column_of_a_type_of_the_user_s(scratch: Connection, name: str) -> None:
    """Its casts are not run: they could be anybody's code."""
    scratch.execute("CREATE DOMAIN number AS bigint CHECK (VALUE > 0)")
    scratch.execute(KEY_SWAP.format("number").encode())
    with refused(scratch, "55000", message="of type public.number", hint="drop the"):
        rows(scratch, "SELECT pgembed.reconcile(%s)", name)


FORMER = r"""
    SELECT format('ALTER FUNCTION %s RENAME TO %I', p.oid::regprocedure,
        regexp_replace(p.proname, '_[0-9a-f]+$', ''))
    FROM pg_proc AS p WHERE p.proname ~ '^_capture_[0-9]+_[a-z]+_[0-9a-f]+$'
"""
NAMES = "SELECT count(*) FROM pg_proc WHERE proname ~ '^_capture_[0-9]+_[a-z]+$'"


@pytest.fixture
def former(scratch: Connection, scratch_worker: SqlWorker) -> Connection:
    """Return a database whose capture functions have the names of before."""
    scratch.execute(
        """
        CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
        CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (10);
        CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (10) TO (20);
        CREATE TABLE plain (id int PRIMARY KEY, body text);
        INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(1, 19) AS i;
        INSERT INTO plain SELECT d.* FROM docs AS d;
        """
    )
    declare(scratch, "docs", "body", chunk_tokens=8)
    declare(scratch, "plain", "body")
    scratch_worker.drain()
    for (statement,) in rows(scratch, FORMER):
        scratch.execute(statement.encode())
    assert value(scratch, NAMES) == 10
    return scratch


@pytest.mark.parametrize("by", ["worker", "reconcile"])
def test_functions_of_an_earlier_release(
    former: Connection, scratch_worker: SqlWorker, by: str
) -> None:
    former.execute("UPDATE docs SET body = 'changed' WHERE id IN (3, 13)")
    former.execute("DELETE FROM plain WHERE id = 4")
    if by == "reconcile":
        for name in ("docs_body", "plain_body"):
            rows(former, "SELECT pgembed.reconcile(%s)", name)
    scratch_worker.drain()
    assert value(former, NAMES) == 0
    former.execute("UPDATE docs SET body = 'again' WHERE id IN (3, 14)")
    former.execute("INSERT INTO plain VALUES (30, 'new')")
    former.execute("TRUNCATE docs_1")
    scratch_worker.drain()
    for name in ("docs_body", "plain_body"):
        assert_converged(former, name)


def test_an_embedding_of_an_earlier_release_is_dropped(former: Connection) -> None:
    for name in ("docs_body", "plain_body"):
        rows(former, "SELECT pgembed.drop_embedding(%s, true)", name)
    assert value(former, NAMES) == 0
    former.execute("UPDATE docs SET body = 'free'; TRUNCATE plain")


def test_the_copy_of_a_table_does_not_keep_former_functions(former: Connection) -> None:
    former.execute("CREATE TABLE copy (id int PRIMARY KEY, body text)")
    ((function,),) = rows(
        former,
        "SELECT tgfoid::regproc::text FROM pg_trigger "
        "WHERE tgrelid = 'plain'::regclass AND tgname ~ '_delete$'",
    )
    former.execute(
        f"CREATE TRIGGER pgembed_1_delete AFTER DELETE ON copy FOR EACH ROW "
        f"EXECUTE FUNCTION {function}()".encode()
    )
    rows(former, "SELECT pgembed.reconcile('plain_body')")
    former.execute("INSERT INTO copy VALUES (1); DELETE FROM copy")
    assert value(former, "SELECT count(*) FROM pgembed.failures") == 0
