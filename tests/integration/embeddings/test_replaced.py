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
