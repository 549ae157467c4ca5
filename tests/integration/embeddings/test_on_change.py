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
