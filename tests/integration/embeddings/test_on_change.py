"""What a row shows between its change and its new vector."""

from __future__ import annotations

import pytest

from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents


def vectors(connection: Connection, chunk_tokens: int | None) -> int:
    query = (
        "SELECT count(*) FROM docs_body_chunk WHERE id = 1"
        if chunk_tokens
        else "SELECT count(body_embedding) FROM docs WHERE id = 1"
    )
    return int(value(connection, query))


@pytest.mark.parametrize("chunk_tokens", [None, 8])
@pytest.mark.parametrize("on_change", ["keep", "clear"])
def test_after_a_change(
    scratch: Connection,
    scratch_worker: SqlWorker,
    on_change: str,
    chunk_tokens: int | None,
) -> None:
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body", chunk_tokens=chunk_tokens, on_change=on_change)
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET price = 1")
    assert vectors(scratch, chunk_tokens) == 1
    scratch.execute("UPDATE docs SET body = 'other' WHERE id = 1")
    assert vectors(scratch, chunk_tokens) == (on_change == "keep")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_a_new_key(scratch: Connection, scratch_worker: SqlWorker) -> None:
    documents(scratch, "one")
    declare(scratch, "docs", "body")
    declare(scratch, "docs", "body", name="c", target_column="c", on_change="clear")
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET id = 2, body = 'new'")
    assert rows(scratch, "SELECT count(body_embedding), count(c) FROM docs") == [(1, 0)]
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    assert_converged(scratch, "c")


@pytest.fixture
def partitioned(scratch: Connection, scratch_worker: SqlWorker) -> Connection:
    """Return a database with docs in two parts; one column is cleared, one not."""
    scratch.execute(
        """
        CREATE TABLE docs (id int, part int, body text, PRIMARY KEY (id, part))
            PARTITION BY LIST (part);
        CREATE TABLE docs_1 PARTITION OF docs FOR VALUES IN (1);
        CREATE TABLE docs_2 PARTITION OF docs FOR VALUES IN (2);
        INSERT INTO docs VALUES (1, 1, 'one'), (2, 1, 'two');
        """
    )
    declare(scratch, "docs", "body", target_column="kept")
    declare(
        scratch, "docs", "body", name="c", target_column="cleared", on_change="clear"
    )
    scratch_worker.drain()
    return scratch


@pytest.mark.parametrize(
    "move",
    [
        "UPDATE docs SET part = 2, body = 'other' WHERE id = 1",
        "MERGE INTO docs AS d USING (VALUES (1)) AS v (id) ON d.id = v.id "
        "WHEN MATCHED THEN UPDATE SET part = 2, body = 'other'",
        "DELETE FROM docs WHERE id = 1; "
        "INSERT INTO docs VALUES (1, 2, 'other', '[1,2,3]', '[1,2,3]')",
    ],
)
def test_a_row_that_moves_to_another_partition(
    partitioned: Connection, scratch_worker: SqlWorker, move: str
) -> None:
    partitioned.execute(move.encode())
    query = "SELECT body, kept IS NULL, cleared IS NULL FROM docs ORDER BY id"
    assert rows(partitioned, query) == [("other", False, True), ("two", False, False)]
    scratch_worker.drain()
    for name in ("docs_body", "c"):
        assert_converged(partitioned, name)


def test_a_row_that_moves_when_the_vectors_have_another_name(
    partitioned: Connection,
) -> None:
    partitioned.execute("ALTER TABLE docs RENAME COLUMN cleared TO other")
    partitioned.execute("UPDATE docs SET part = 2, body = 'x'")
    assert rows(partitioned, "SELECT other IS NULL FROM docs_2") == [(False,)] * 2


@pytest.mark.parametrize("table", ["docs", "plain"])
def test_a_row_that_is_inserted_with_a_vector(
    partitioned: Connection, scratch_worker: SqlWorker, table: str
) -> None:
    partitioned.execute("CREATE TABLE plain (LIKE docs INCLUDING ALL)")
    declare(
        partitioned,
        "plain",
        "body",
        name="p",
        target_column="cleared",
        on_change="clear",
    )
    rows(partitioned, f"INSERT INTO {table} VALUES (3, 2, 'x', NULL, '[1,2,3]')")
    query = f"SELECT cleared::text FROM {table} WHERE id = 3"
    assert rows(partitioned, query) == [("[1,2,3]",)]
    scratch_worker.drain()
    for name in ("c", "p"):
        assert_converged(partitioned, name)


def test_clearing_does_not_call_itself_for_ever(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one")
    declare(scratch, "docs", "body", on_change="clear")
    scratch_worker.drain()
    scratch.execute(
        """
        CREATE FUNCTION longer() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.body := NEW.body || '!';
            RETURN NEW;
        END $$;
        CREATE TRIGGER a BEFORE UPDATE ON docs FOR EACH ROW
            WHEN (length(OLD.body) < 99) EXECUTE FUNCTION longer();
        """
    )
    scratch.execute("UPDATE docs SET body = 'two'")
    assert rows(scratch, "SELECT body, body_embedding FROM docs") == [("two!!", None)]
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
