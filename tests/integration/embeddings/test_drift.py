"""Tables that change under an embedding: blocked with the reason, writers unharmed."""

from __future__ import annotations

import psycopg
import pytest

from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, refused, status

MODES: dict[str, dict[str, object]] = {
    "column": {},
    "cleared": {"on_change": "clear"},
    "chunks": {"chunk_tokens": 8},
    "cleared chunks": {"chunk_tokens": 8, "on_change": "clear"},
}


@pytest.fixture(params=MODES)
def name(
    request: pytest.FixtureRequest, scratch: Connection, scratch_worker: SqlWorker
) -> str:
    """Return an embedding that is current; another table has one, too."""
    for table in ("docs", "other"):
        scratch.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, body text, n int)".encode()
        )
        scratch.execute(f"INSERT INTO {table} VALUES (1, 'x y z'), (2, 'b')".encode())
        declare(scratch, table, "body", **MODES[request.param])
    scratch_worker.drain()
    return "docs_body"


def write_everything(connection: Connection, table: str, body: str) -> None:
    rows(connection, f"INSERT INTO {table} (id, {body}) VALUES (8, 'new'), (9, 'n')")
    rows(connection, f"UPDATE {table} SET {body} = 'changed' WHERE id = 1")
    rows(connection, f"UPDATE {table} SET id = 7, {body} = 'c' WHERE id = 2")
    rows(connection, f"DELETE FROM {table} WHERE id = 9")


def goes_on_elsewhere(connection: Connection, worker: SqlWorker) -> None:
    connection.execute("UPDATE other SET body = 'changed'")
    worker.drain()
    assert_converged(connection, "other_body")
    rows(connection, "SELECT * FROM pgembed.failures")


def test_content_column_renamed(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch.execute("ALTER TABLE docs RENAME COLUMN body TO text")
    write_everything(scratch, "docs", "text")
    goes_on_elsewhere(scratch, scratch_worker)
    assert status(scratch, name)["state"] == (
        "blocked: column body of table public.docs was dropped or renamed"
    )
    with refused(scratch, "55000", message="was dropped or renamed", hint="Undo that"):
        rows(scratch, "SELECT pgembed.reconcile(%s)", name)
    scratch.execute("ALTER TABLE docs RENAME COLUMN text TO body")
    rows(scratch, "SELECT pgembed.resume_embedding(%s)", name)
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_content_column_dropped(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    # PostgreSQL names what depends on the column.
    with (
        pytest.raises(psycopg.errors.DependentObjectsStillExist) as caught,
        scratch.transaction(),
    ):
        scratch.execute("ALTER TABLE docs DROP COLUMN body")
    assert "trigger pgembed_" in (caught.value.diag.message_detail or "")
    scratch.execute("ALTER TABLE docs DROP COLUMN body CASCADE")
    rows(scratch, "INSERT INTO docs (id) VALUES (8)")
    rows(scratch, "UPDATE docs SET n = 1, id = id + 20")
    rows(scratch, "DELETE FROM docs WHERE id = 28")
    goes_on_elsewhere(scratch, scratch_worker)
    assert "column body of table" in status(scratch, name)["state"]
    rows(scratch, "SELECT pgembed.drop_embedding(%s, true)", name)
    goes_on_elsewhere(scratch, scratch_worker)


@pytest.mark.parametrize("change", ["RENAME COLUMN {0} TO moved", "DROP COLUMN {0}"])
def test_target_column(
    scratch: Connection, scratch_worker: SqlWorker, name: str, change: str
) -> None:
    table, column = rows(
        scratch,
        "SELECT target::text, target_column FROM pgembed.embedding WHERE name = %s",
        name,
    )[0]
    scratch.execute(f"ALTER TABLE {table} {change.format(column)}".encode())
    write_everything(scratch, "docs", "body")
    goes_on_elsewhere(scratch, scratch_worker)
    found = status(scratch, name)
    assert found["state"] == (
        f"blocked: column {column} of table public.{table} was dropped or renamed"
    )
    assert found["embedded"] is None
    rows(scratch, "SELECT pgembed.drop_embedding(%s, true)", name)


RETYPES = {
    "public.halfvec(3)": "halfvec(3)",
    "text": "text USING {0}::text",
    "public.vector(4)": "vector(4) USING '[1,2,3,4]'",
    "public.vector": "vector",
}


@pytest.mark.parametrize("found", RETYPES)
def test_target_column_of_another_type(
    scratch: Connection, scratch_worker: SqlWorker, name: str, found: str
) -> None:
    table, column = rows(
        scratch,
        "SELECT target::text, target_column FROM pgembed.embedding WHERE name = %s",
        name,
    )[0]
    retype = f"ALTER TABLE {table} ALTER {column} TYPE "
    rows(scratch, retype + RETYPES[found].format(column))
    write_everything(scratch, "docs", "body")
    goes_on_elsewhere(scratch, scratch_worker)
    assert status(scratch, name)["state"] == (
        f"blocked: column {column} of table public.{table} is of type {found}, "
        "not public.vector(3)"
    )
    message = f"is of type {found}, not public.vector"
    with refused(scratch, "55000", message=message, hint="Undo that, or drop"):
        rows(scratch, "SELECT pgembed.reconcile(%s)", name)
    rows(scratch, retype + "vector(3) USING '[1,2,3]'")
    rows(scratch, "SELECT pgembed.resume_embedding(%s)", name)
    scratch_worker.drain()
    assert status(scratch, name)["state"] == "current"


def test_source_renamed_and_moved(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch.execute("CREATE SCHEMA elsewhere")
    scratch.execute("ALTER TABLE docs RENAME TO papers")
    scratch.execute("ALTER TABLE papers SET SCHEMA elsewhere")
    # A new table of the old name must not be mistaken for the source.
    scratch.execute("CREATE TABLE docs (id int, body text, body_embedding vector(3))")
    scratch.execute("INSERT INTO docs VALUES (1, 'not ours', '[1,2,3]')")
    write_everything(scratch, "elsewhere.papers", "body")
    scratch_worker.drain()
    assert_converged(scratch, name)
    assert value(scratch, "SELECT count(body_embedding) FROM docs") == 1
    assert status(scratch, name)["source"] == "elsewhere.papers"
    rows(scratch, "SELECT pgembed.reconcile(%s)", name)
    scratch.execute("TRUNCATE elsewhere.papers")
    assert_converged(scratch, name)
    rows(scratch, "SELECT pgembed.drop_embedding(%s, true)", name)


def test_chunk_table_renamed(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    if not value(scratch, "SELECT max(chunk_tokens) FROM pgembed.embedding"):
        pytest.skip("it has no chunk table")
    scratch.execute("ALTER TABLE docs_body_chunk RENAME TO parts")
    scratch.execute("CREATE TABLE docs_body_chunk (id int)")
    scratch.execute("INSERT INTO docs_body_chunk VALUES (1), (2)")
    write_everything(scratch, "docs", "body")
    scratch_worker.drain()
    assert_converged(scratch, name)
    assert value(scratch, "SELECT count(*) FROM docs_body_chunk") == 2
    scratch.execute("TRUNCATE docs")
    assert value(scratch, "SELECT count(*) FROM parts") == 0


def test_chunk_table_dropped(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    if not value(scratch, "SELECT max(chunk_tokens) FROM pgembed.embedding"):
        pytest.skip("it has no chunk table")
    scratch.execute("DROP TABLE docs_body_chunk")
    write_everything(scratch, "docs", "body")
    goes_on_elsewhere(scratch, scratch_worker)
    assert status(scratch, name)["state"] == (
        "blocked: the chunk table docs_body_chunk was dropped"
    )
    scratch.execute("TRUNCATE docs")
    rows(scratch, "SELECT pgembed.drop_embedding(%s, true)", name)


def test_primary_key_replaced(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey")
    write_everything(scratch, "docs", "body")
    goes_on_elsewhere(scratch, scratch_worker)
    assert (
        "primary key of table public.docs is not (id)"
        in (status(scratch, name)["state"])
    )
    scratch.execute("UPDATE docs SET n = id")
    scratch.execute("ALTER TABLE docs ADD PRIMARY KEY (n)")
    scratch.execute("INSERT INTO docs VALUES (30, 'x', 30)")
    scratch.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey")
    scratch.execute("ALTER TABLE docs ADD PRIMARY KEY (id)")
    rows(scratch, "SELECT pgembed.resume_embedding(%s)", name)
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_key_column_renamed(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch.execute("UPDATE docs SET body = 'waiting' WHERE id = 1")
    scratch.execute("ALTER TABLE docs RENAME COLUMN id TO number")
    goes_on_elsewhere(scratch, scratch_worker)
    assert "column id of table" in status(scratch, name)["state"]
    rows(scratch, "SELECT pgembed.reconcile(%s)", name)
    scratch.execute("INSERT INTO docs (number, body) VALUES (8, 'new')")
    scratch.execute("UPDATE docs SET number = 9 WHERE number = 2")
    scratch_worker.drain()
    assert_converged(scratch, name)


NEW_KEYS = {
    "swapped": "ALTER TABLE docs RENAME a TO c; ALTER TABLE docs RENAME b TO a;"
    "ALTER TABLE docs RENAME c TO b",
    "chained": "ALTER TABLE docs RENAME b TO c; ALTER TABLE docs RENAME a TO b",
    "reordered": "ALTER TABLE docs DROP CONSTRAINT docs_pkey;"
    "ALTER TABLE docs ADD PRIMARY KEY (b, a)",
}


@pytest.mark.parametrize("change", NEW_KEYS)
@pytest.mark.parametrize("kind", ["int", "text"])
@pytest.mark.parametrize("mode", MODES)
def test_key_columns_that_change_places(
    scratch: Connection, scratch_worker: SqlWorker, change: str, kind: str, mode: str
) -> None:
    scratch.execute(
        f"CREATE TABLE docs (a int, b {kind}, body text, PRIMARY KEY (a, b));"
        "INSERT INTO docs VALUES (1, '2', 'x y z'), (2, '1', 'b'), (3, '4', 'c d')"
        "".encode()
    )
    name = declare(scratch, "docs", "body", **MODES[mode])
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET body = 'claimed' WHERE a = 1")
    claim = scratch_worker.claim(name)
    scratch.execute(NEW_KEYS[change].encode())
    queued = value(scratch, "SELECT pgembed.reconcile(%s)", name)
    assert queued == 0 or (change, kind) == ("swapped", "int")
    scratch_worker.complete(claim)
    scratch_worker.drain()
    assert_converged(scratch, name)
    write = "INSERT INTO docs VALUES (8, '9', 'new'); DELETE FROM docs WHERE body = 'b'"
    scratch.execute(write)
    scratch_worker.drain()
    assert_converged(scratch, name)


@pytest.mark.parametrize("reserved", ["content", "pgembed_slot"])
def test_key_column_renamed_to_what_cannot_be(
    scratch: Connection, name: str, reserved: str
) -> None:
    scratch.execute(f"ALTER TABLE docs RENAME COLUMN id TO {reserved}".encode())
    chunked = value(scratch, "SELECT max(chunk_tokens) FROM pgembed.embedding")
    reconcile = f"SELECT pgembed.reconcile('{name}')"
    if reserved == "pgembed_slot":
        with refused(scratch, "42939", message="reserved name", hint="pgembed_"):
            rows(scratch, reconcile)
    elif chunked:
        said = "content of table public.docs has the name of another column of its"
        with refused(scratch, "42701", message=said, hint="RENAME COLUMN content"):
            rows(scratch, reconcile)
    else:
        rows(scratch, reconcile)


def test_columns_added_and_dropped(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch.execute("ALTER TABLE docs DROP COLUMN n, ADD COLUMN more text DEFAULT 'm'")
    write_everything(scratch, "docs", "body")
    scratch_worker.drain()
    assert_converged(scratch, name)


def test_inheritance_children_added(
    scratch: Connection, scratch_worker: SqlWorker, name: str
) -> None:
    scratch.execute("CREATE TABLE more () INHERITS (docs)")
    scratch.execute("INSERT INTO more (id, body) VALUES (1, 'the same key')")
    write_everything(scratch, "docs", "body")
    goes_on_elsewhere(scratch, scratch_worker)
    assert status(scratch, name)["state"] == (
        "blocked: table public.docs has inheritance children now"
    )
    scratch.execute("DROP TABLE more")
    rows(scratch, "SELECT pgembed.resume_embedding(%s)", name)
    scratch_worker.drain()
    assert_converged(scratch, name)
