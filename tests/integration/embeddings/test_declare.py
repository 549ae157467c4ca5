"""create_embedding: names, columns, storage, indexes."""

from __future__ import annotations

import pytest

from tests.harness.models import register_model
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    embedding_id,
    pending,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents, status


def column_type(db: Connection, table: str, column: str) -> str:
    query = (
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attname = %s"
    )
    return str(value(db, query, table, column))


def test_existing_rows_are_embedded(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two", None, "", " \n\t")
    assert declare(scratch, "docs", "body") == "docs_body"
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    assert column_type(scratch, "docs", "body_embedding") == "vector(3)"
    assert status(scratch, "docs_body")["embedded"] == 2


def test_given_names(scratch: Connection, scratch_worker: SqlWorker) -> None:
    documents(scratch, "one")
    declare(scratch, "docs", "body", name="Mine; DROP", target_column='v"%')
    scratch_worker.drain()
    assert_converged(scratch, "Mine; DROP")


def test_target_column_of_the_right_type_is_accepted(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one")
    scratch.execute("ALTER TABLE docs ADD COLUMN body_embedding vector(3)")
    declare(scratch, "docs", "body")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_long_names_are_shortened_to_what_postgresql_takes(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    content = "é" * 30 + "abc"
    table = "t" * 60
    scratch.execute(
        f'CREATE TABLE {table} (id int PRIMARY KEY, "{content}" text)'.encode()
    )
    declare(scratch, table, content, name="long")
    scratch.execute(f"INSERT INTO {table} VALUES (1, 'x')".encode())
    scratch_worker.drain()
    assert_converged(scratch, "long")
    ((target, index),) = rows(
        scratch, "SELECT target_column, index_name FROM pgembed.embedding"
    )
    assert len(target.encode()) <= 63
    assert len(index.encode()) + len("_4294967295") <= 63


@pytest.mark.parametrize("storage", ["vector", "halfvec", "bit"])
@pytest.mark.parametrize("index", ["hnsw", "ivfflat", "none"])
@pytest.mark.parametrize("chunk_tokens", [None, 16])
def test_storage_and_index(
    scratch: Connection,
    scratch_worker: SqlWorker,
    storage: str,
    index: str,
    chunk_tokens: int | None,
) -> None:
    documents(scratch, "one two three", "four")
    declare(
        scratch, "docs", "body", storage=storage, index=index, chunk_tokens=chunk_tokens
    )
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    table, column = (
        ("docs_body_chunk", "embedding")
        if chunk_tokens
        else (
            "docs",
            "body_embedding",
        )
    )
    expected = {"bit": "bit(3)"}.get(storage, f"{storage}(3)")
    assert column_type(scratch, table, column) == expected
    number = embedding_id(scratch, "docs_body")
    statements = rows(scratch, "SELECT pgembed._index_statements(%s)", number)
    assert len(statements) == (index != "none")


@pytest.mark.parametrize(
    ("dimensions", "storage", "index"),
    [
        (2000, "vector", "hnsw"),
        (2001, "vector", "none"),
        (2001, "halfvec", "ivfflat"),
        (4001, "bit", "hnsw"),
        (16000, "halfvec", "none"),
    ],
)
def test_dimensions_within_the_limits(
    scratch: Connection,
    scratch_worker: SqlWorker,
    dimensions: int,
    storage: str,
    index: str,
) -> None:
    documents(scratch, "one")
    register_model(scratch, "wide", dimensions=dimensions)
    rows(
        scratch,
        "SELECT pgembed.create_embedding('docs', 'body', 'wide', "
        "storage => %s, index => %s)",
        storage,
        index,
    )
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_several_embeddings_of_one_table(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two")
    names = [
        declare(scratch, "docs", "body"),
        declare(scratch, "docs", "title"),
        declare(scratch, "docs", "{title} {body}"),
        declare(scratch, "docs", "body", name="cut", chunk_tokens=8, chunk_overlap=2),
        declare(
            scratch, "docs", "body", name="half", target_column="h", storage="halfvec"
        ),
    ]
    assert names[:3] == ["docs_body", "docs_title", "docs_content"]
    scratch.execute("UPDATE docs SET title = 'new' WHERE id = 1")
    scratch.execute("INSERT INTO docs (id, body) VALUES (3, 'a b c d e')")
    scratch_worker.drain()
    scratch.execute("DELETE FROM docs WHERE id = 3")
    for name in names:
        assert_converged(scratch, name)


def test_name_of_an_embedding_whose_source_was_dropped_is_free(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    for _ in range(2):
        documents(scratch, "one two three")
        declare(scratch, "docs", "body", chunk_tokens=8)
        scratch_worker.drain()
        assert_converged(scratch, "docs_body")
        scratch.execute("DROP TABLE docs")


def test_declaring_does_not_read_the_table(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two")
    declare(scratch, "docs", "body")
    assert pending(scratch, "docs_body") == 0
    assert status(scratch, "docs_body")["pending"] == 2
    assert scratch_worker.work() == {"docs_body": 2}


def test_a_declaration_is_silent(db: Connection) -> None:
    """It tells nobody of tables that are not there yet."""
    documents(db)
    said: list[str | None] = []
    db.add_notice_handler(lambda notice: said.append(notice.message_primary))
    declare(db, "docs", "body")
    assert said == []
