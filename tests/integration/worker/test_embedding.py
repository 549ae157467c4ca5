"""From rows to vectors, by the loop in this process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgembed.embeddings.declare import embedding_status, failures, retry_failed
from pgembed.postgres.connection import fetch_one
from tests.conftest import Connect
from tests.harness import tiny_models
from tests.integration.worker.running import (
    Connection,
    add_good,
    add_tiny,
    answering,
    assert_current,
    create_docs,
    declare,
    embed_all,
    embedding,
    insert,
    is_drained,
    leased,
    status,
    vectors,
    wait_until,
)


def test_rows_get_their_vectors(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat", None, "the dog", "  ", "a man eats food")
    embed_all(dsn)
    assert_current(connection, model)
    assert sum(v is not None for v in vectors(connection).values()) == 3
    (row,) = embedding_status(connection)
    assert (row.rows, row.embedded, row.pending, row.failed) == (5, 3, 0, 0)


@pytest.mark.parametrize(
    "setting",
    [
        "datestyle = 'SQL, DMY'",
        "intervalstyle = iso_8601",
        "plpgsql.extra_errors = 'all'",
    ],
)
def test_rows_and_calls_whatever_the_database_has_set(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path, setting: str
) -> None:
    """To read times by, and to check functions with."""
    database = connection.info.dbname
    connection.execute(f"ALTER DATABASE {database} SET {setting}".encode())
    model = add_good(connection, tmp_path)
    with connect(dsn) as client:
        create_docs(client, "a cat", "the dog")
        client.execute("SELECT pgembed.reconcile('docs_body')")
        embed_all(dsn)
        assert_current(connection, model)
        with answering(dsn):
            (vector,) = fetch_one(client, "SELECT pgembed.embed('tiny', 'the dog')")
            found = fetch_one(
                client,
                "SELECT (item).id FROM pgembed.search(NULL::docs, 'the dog', k => 1)",
            )
    assert found == (2,)
    np.testing.assert_allclose(vector, model.embed(["the dog"])[0], atol=1e-4)


def test_many_rows_in_many_claims(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog eats {i}" for i in range(1500)])
    embed_all(dsn, claim_rows=100, batch_tokens=64)
    assert_current(connection, model)


def test_changes_are_followed(dsn: str, connection: Connection, tmp_path: Path) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    with embedding(dsn):
        wait_until(lambda: is_drained(connection))
        insert(connection, "a man", first=3)
        connection.execute("UPDATE docs SET body = 'red food' WHERE id = 1")
        connection.execute("UPDATE docs SET body = NULL WHERE id = 2")
        wait_until(lambda: is_drained(connection))
        assert_current(connection, model)


def test_a_row_that_changes_while_it_is_embedded(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_tiny(connection, tiny_models.slow_model(tmp_path / "slow"))
    create_docs(connection, "slow cat", "a dog")
    with embedding(dsn):
        wait_until(lambda: leased(connection))
        connection.execute("UPDATE docs SET body = 'red food' WHERE id = 1")
        connection.execute("DELETE FROM docs WHERE id = 2")
        wait_until(lambda: is_drained(connection))
    assert list(vectors(connection)) == [1]
    assert_current(connection, model)


def test_a_poison_row_fails_alone(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_tiny(connection, tiny_models.raising_model(tmp_path / "raising"))
    bodies = [f"the dog {i}" for i in range(50)]
    create_docs(connection, *bodies[:25], "a poison", *bodies[25:])
    embed_all(dsn, max_attempts=1)
    (failure,) = failures(connection)
    assert failure.key == {"id": 26}
    assert failure.attempts == 1
    assert "the model failed" in failure.error
    assert vectors(connection)[26] is None
    connection.execute("UPDATE docs SET body = 'cured' WHERE id = 26")
    embed_all(dsn)
    assert_current(connection, model)
    assert failures(connection) == []


@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 8}])
@pytest.mark.parametrize(
    ("write", "text", "message"),
    [
        (tiny_models.picky_model, "the 日本 dog", "[UNK]"),
        (tiny_models.panicking_model, tiny_models.PANIC_TEXT, "retry-limit"),
    ],
    ids=["picky", "panicking"],
)
def test_a_text_that_the_tokenizer_refuses_fails_alone(
    dsn: str,
    connection: Connection,
    tmp_path: Path,
    options: dict[str, Any],
    write: Callable[[Path], Path],
    text: str,
    message: str,
) -> None:
    add_tiny(connection, write(tmp_path / "tiny"))
    bodies = [f"the dog {i}" for i in range(20)]
    create_docs(connection, *bodies[:10], text, *bodies[10:], **options)
    embed_all(dsn, max_attempts=1)
    (failure,) = failures(connection)
    assert failure.key == {"id": 11}
    assert "tokenizer" in failure.error or "cut into chunks" in failure.error
    assert message in failure.error
    assert status(connection)["embedded"] == 20


def test_a_failed_row_is_tried_again(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_tiny(connection, tiny_models.raising_model(tmp_path / "raising"))
    create_docs(connection, "a poison")
    embed_all(dsn, max_attempts=2)  # the second attempt comes after a second
    assert [f.attempts for f in failures(connection)] == [2]
    assert retry_failed(connection, "docs_body") == 1
    assert status(connection)["pending"] == 1


def test_unusable_vectors_are_never_stored(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_tiny(connection, tiny_models.nan_model(tmp_path / "nan"))
    create_docs(connection, "a nan", "a cat", "an infinity", "zero", "the dog")
    embed_all(dsn, max_attempts=1)
    stored = [i for i, vector in vectors(connection).items() if vector is not None]
    assert stored == [2, 5]
    assert sorted(f.key["id"] for f in failures(connection)) == [1, 3, 4]


def test_a_row_that_a_user_holds_is_written_later(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog", "a man")
    user = connect(dsn, autocommit=False)
    user.execute("SELECT FROM docs WHERE id = 2 FOR UPDATE")
    with embedding(dsn):
        wait_until(lambda: status(connection)["embedded"] == 2)
        insert(connection, "red food", first=4)
        wait_until(lambda: status(connection)["embedded"] == 3)
        assert vectors(connection)[2] is None
        assert leased(connection) == 1
        user.execute("UPDATE docs SET extra = 1 WHERE id = 2")
        user.commit()
        wait_until(lambda: is_drained(connection))
    assert_current(connection, model)


def test_a_user_who_changes_a_held_row(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    user = connect(dsn, autocommit=False)
    user.execute("UPDATE docs SET body = 'blue food' WHERE id = 2")
    with embedding(dsn):
        wait_until(lambda: status(connection)["embedded"] == 1)
        user.commit()
        wait_until(lambda: is_drained(connection))
    assert_current(connection, model)


def test_a_model_that_cannot_be_loaded_blocks_no_other(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    add_tiny(connection, tiny_models.good_model(tmp_path / "b", seed=1), "other")
    create_docs(connection, "a cat", "the dog")
    connection.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO notes VALUES (1, 'a man')")
    declare(connection, "notes", model="other")
    corrupt(connection, "other")
    embed_all(dsn)
    assert_current(connection, model)
    row = status(connection, "notes_body")
    assert row["pending"] == 1
    assert "cannot be loaded" in row["state"]
    corrupt(connection, "other")  # the same bit once more: whole again
    embed_all(dsn)
    assert status(connection, "notes_body")["state"] == "current"


def corrupt(connection: Connection, model: str) -> None:
    """Flip a bit of a model's network."""
    connection.execute(
        """
        UPDATE pgembed.blob_chunk AS b
        SET data = set_bit(data, 1000, 1 - get_bit(data, 1000))
        FROM pgembed.model_file AS f
        WHERE f.model = %s AND f.path = 'model.onnx' AND b.sha256 = f.sha256
            AND b.ordinal = 0
        """,
        [model],
    )


def test_chunks_go_to_their_table(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    long = "the cat sleeps. the dog eats. a man eats red food. " * 5
    create_docs(connection, long, "a cat", None, chunk_tokens=12, chunk_overlap=3)
    embed_all(dsn)
    rows = connection.execute(
        "SELECT id, chunk, content, embedding FROM docs_body_chunk ORDER BY id, chunk"
    ).fetchall()
    assert [row[1] for row in rows if row[0] == 1] == list(range(len(rows) - 1))
    assert len(rows) > 5
    assert rows[-1][:3] == (2, 0, "a cat")
    assert all(chunk in long for _, _, chunk, _ in rows[:-1])
    assert all(model.lengths([row[2]])[0] <= 14 for row in rows)
    wanted = model.embed([row[2] for row in rows])
    np.testing.assert_allclose(np.array([row[3] for row in rows]), wanted, atol=1e-4)

    connection.execute("UPDATE docs SET body = 'the dog' WHERE id = 1")
    connection.execute("UPDATE docs SET body = NULL WHERE id = 2")
    embed_all(dsn)
    left = connection.execute("SELECT id, content FROM docs_body_chunk").fetchall()
    assert left == [(1, "the dog")]


def test_texts_that_the_tokenizer_drops_have_a_chunk(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, "\u200b", "\x01", "a cat", "\xad", "\x1f", chunk_tokens=8)
    embed_all(dsn)
    assert status(connection)["embedded"] == 5
    assert fetch_one(connection, "SELECT pgembed.reconcile('docs_body')") == (0,)


@pytest.mark.parametrize(
    "statement",
    [
        "RAISE 'not this one'",
        "RAISE 'not this one' USING ERRCODE = 'insufficient_privilege'",
        "INSERT INTO not_this_one VALUES (1)",
        "PERFORM not_this_one()",
    ],
)
@pytest.mark.parametrize(
    ("options", "event"),
    [({}, "UPDATE ON docs"), ({"chunk_tokens": 8}, "INSERT ON docs_body_chunk")],
)
def test_a_row_that_the_users_trigger_refuses_fails_alone(
    dsn: str,
    connection: Connection,
    tmp_path: Path,
    statement: str,
    options: dict[str, Any],
    event: str,
) -> None:
    """Whatever it raises: the worker has the rights that writing takes."""
    add_good(connection, tmp_path)
    connection.execute(
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN {statement}; RETURN NEW; END $$
        """.encode()
    )
    create_docs(connection, *[f"the dog {i}" for i in range(20)], **options)
    connection.execute(
        f"""
        CREATE TRIGGER refuse BEFORE {event} FOR EACH ROW WHEN (NEW.id = 7)
        EXECUTE FUNCTION refuse()
        """.encode()
    )
    embed_all(dsn, max_attempts=1)
    (failure,) = failures(connection)
    assert failure.key == {"id": 7}
    assert re.search("not.this.one", failure.error)
    assert status(connection)["embedded"] == 19


def test_a_source_that_is_locked_is_waited_for(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    user = connect(dsn, autocommit=False)
    user.execute("LOCK docs IN ACCESS EXCLUSIVE MODE")
    connection.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO notes VALUES (1, 'a man')")
    declare(connection, "notes")
    query = "SELECT count(body_embedding) FROM notes"
    with embedding(dsn):
        wait_until(lambda: fetch_one(connection, query) == (1,))
        user.commit()
        wait_until(lambda: is_drained(connection))
    assert_current(connection, model)


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_the_index_is_built_when_the_rows_are_done(
    dsn: str, connection: Connection, tmp_path: Path, method: str
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(20)], index=method)
    assert status(connection)["index_state"] == "waiting"
    embed_all(dsn)
    assert status(connection)["index_state"] == "ready"
    found = connection.execute(
        """
        SELECT a.amname, i.indisvalid
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_am AS a ON a.oid = c.relam
        WHERE i.indrelid = 'docs'::regclass AND a.amname <> 'btree'
        """
    ).fetchall()
    assert found == [(method, True)]


def test_a_worker_that_cannot_build_an_index_yet_stops_and_goes_on(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    connection.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)"
    )
    declare(connection, "docs", index="hnsw")

    def state() -> str:
        return str(status(connection)["index_state"])

    user = connect(dsn, purpose="user", autocommit=False)
    user.execute("LOCK TABLE docs IN ROW EXCLUSIVE MODE")
    with embedding(dsn):
        wait_until(lambda: "gave way" in status(connection)["state"])
    assert state() == "waiting"
    user.rollback()
    embed_all(dsn)
    assert state() == "ready"


def test_an_index_that_cannot_be_built_is_reported(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat", index="hnsw")
    connection.execute("CREATE TABLE blocker (id int)")
    connection.execute(
        """
        DO $$ BEGIN EXECUTE format('CREATE INDEX %I ON blocker (id)',
            (SELECT index_name FROM pgembed.embedding)); END $$
        """
    )
    embed_all(dsn)
    assert_current(connection, model)
    row = status(connection)
    assert row["index_state"] == "failed"
    assert "already exists" in row["state"]


def test_a_dropped_embedding_stops_nothing(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_tiny(connection, tiny_models.slow_model(tmp_path / "slow"), "slow")
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    connection.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO notes VALUES (1, 'slow man')")
    declare(connection, "notes", model="slow")
    with embedding(dsn):
        wait_until(lambda: leased(connection, 2))
        connection.execute("DROP TABLE notes")
        insert(connection, "the dog", first=2)
        wait_until(lambda: status(connection)["embedded"] == 2)
    assert_current(connection, model)
