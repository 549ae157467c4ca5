"""Vector indexes: the statements that build them, and who builds."""

from __future__ import annotations

import psycopg
import pytest

from pgembed.embeddings import indexing
from pgembed.postgres.connection import connect
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    embedding_id,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents

PARTITIONED = """
    CREATE TABLE docs (id int, year int, body text, PRIMARY KEY (id, year))
        PARTITION BY RANGE (year);
    CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (10);
    CREATE SCHEMA "Far away";
    CREATE TABLE "Far away"."Docs 2" PARTITION OF docs FOR VALUES FROM (10) TO (20)
        PARTITION BY RANGE (year);
    CREATE TABLE docs_21 PARTITION OF "Far away"."Docs 2"
        FOR VALUES FROM (10) TO (15);
"""


def statements(db: Connection, number: int = 1) -> list[str]:
    query = "SELECT statement FROM pgembed._index_statements(%s) ORDER BY ordinal"
    return [statement for (statement,) in rows(db, query, number)]


def build(db: Connection, number: int = 1) -> list[str]:
    done = statements(db, number)
    for statement in done:
        rows(db, statement)
    return done


def vector_indexes(db: Connection) -> list[tuple[str, bool]]:
    return rows(
        db,
        "SELECT i.indrelid::regclass::text, i.indisvalid FROM pg_index AS i "
        "JOIN pg_class AS c ON c.oid = i.indexrelid "
        "JOIN pg_am AS m ON m.oid = c.relam "
        "WHERE m.amname IN ('hnsw', 'ivfflat') ORDER BY 1",
    )


@pytest.mark.parametrize("index", ["hnsw", "ivfflat"])
@pytest.mark.parametrize("chunk_tokens", [None, 8])
def test_plain_table(
    db: Connection, worker: SqlWorker, index: str, chunk_tokens: int | None
) -> None:
    documents(db, "one", "two")
    for storage in ("vector", "halfvec", "bit"):
        name = declare(
            db, "docs", "body", storage=storage, index=index, chunk_tokens=chunk_tokens
        )
        rows(db, "UPDATE pgembed.embedding SET index_state = 'none'")
        worker.drain()
        number = embedding_id(db, name)
        query = "SELECT statement FROM pgembed._index_statements(%s)"
        ((statement,),) = rows(db, query, number)
        rows(db, statement)
        assert vector_indexes(db) == [
            ("docs_body_chunk" if chunk_tokens else "docs", True)
        ]
        assert rows(db, query, number) == []
        rows(db, "SELECT pgembed.drop_embedding(%s, true)", name)
        assert vector_indexes(db) == []


@pytest.mark.parametrize("index", ["hnsw", "ivfflat"])
def test_partitioned_table(db: Connection, worker: SqlWorker, index: str) -> None:
    db.execute(PARTITIONED)
    declare(db, "docs", "body", index=index)
    db.execute("INSERT INTO docs VALUES (1, 1, 'one'), (2, 12, 'two')")
    worker.drain()
    assert all(
        "CONCURRENTLY" in s or " ON ONLY " in s or "ATTACH" in s for s in build(db)
    )
    assert vector_indexes(db) == [
        ('"Far away"."Docs 2"', True),
        ("docs", True),
        ("docs_1", True),
        ("docs_21", True),
    ]
    assert build(db) == []
    # Later partitions get theirs from PostgreSQL, under a name of its own.
    db.execute("CREATE TABLE docs_3 PARTITION OF docs FOR VALUES FROM (20) TO (30)")
    assert build(db) == []
    assert len(vector_indexes(db)) == 5


@pytest.mark.parametrize("stopped_after", range(7))
def test_a_build_that_was_interrupted_goes_on(
    db: Connection, worker: SqlWorker, stopped_after: int
) -> None:
    db.execute(PARTITIONED)
    declare(db, "docs", "body")
    for statement in statements(db)[:stopped_after]:
        rows(db, statement)
    db.execute("CREATE TABLE docs_3 PARTITION OF docs FOR VALUES FROM (20) TO (30)")
    build(db)
    assert build(db) == []
    assert [valid for _, valid in vector_indexes(db)] == [True] * 5


def test_an_invalid_left_over_is_dropped(db: Connection, worker: SqlWorker) -> None:
    documents(db, "one", "two")
    declare(db, "docs", "body")
    worker.drain()
    (create,) = statements(db)
    # As a CREATE INDEX CONCURRENTLY leaves it that was killed.
    rows(db, create)
    db.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = "
        "(SELECT index_name FROM pgembed.embedding)::regclass"
    )
    assert [s.split()[:3] for s in build(db)] == [
        ["DROP", "INDEX", "CONCURRENTLY"],
        ["CREATE", "INDEX", "CONCURRENTLY"],
    ]
    assert vector_indexes(db) == [("docs", True)]
    assert build(db) == []


@pytest.mark.parametrize(
    ("setup", "chunk_tokens"),
    [(None, None), (None, 8), (PARTITIONED, None)],
    ids=["plain", "chunks", "partitioned"],
)
def test_an_unfinished_index_goes_with_its_embedding(
    db: Connection, worker: SqlWorker, setup: str | None, chunk_tokens: int | None
) -> None:
    rows(db, setup) if setup else documents(db, "one", "two")
    declare(db, "docs", "body", chunk_tokens=chunk_tokens)
    worker.drain()
    for statement in statements(db)[: 2 if setup else 1]:
        rows(db, statement)
    # As a CREATE INDEX CONCURRENTLY leaves it that was killed.
    db.execute(
        "UPDATE pg_index SET indisvalid = false FROM pg_class AS c "
        "JOIN pg_am AS m ON m.oid = c.relam WHERE c.oid = indexrelid "
        "AND c.relkind = 'i' AND m.amname = 'hnsw'"
    )
    left = [("docs", False)] if setup else []
    assert vector_indexes(db) != left
    rows(db, "SELECT pgembed.drop_embedding('docs_body')")
    # The parent's holds nothing.
    assert vector_indexes(db) == left


@pytest.mark.parametrize("setup", [None, PARTITIONED], ids=["plain", "partitioned"])
def test_an_index_of_another_method_is_replaced(
    db: Connection, worker: SqlWorker, setup: str | None
) -> None:
    if setup:
        db.execute(setup.encode())
    else:
        documents(db)
    declare(db, "docs", "body")
    build(db)
    rows(db, "SELECT pgembed.drop_embedding('docs_body')")
    declare(db, "docs", "body", index="ivfflat")
    rows(db, "UPDATE pgembed.embedding SET id = DEFAULT")
    number = value(db, "SELECT id FROM pgembed.embedding")
    query = "SELECT statement FROM pgembed._index_statements(%s)"
    for (statement,) in rows(db, query, number):
        rows(db, statement)
    assert rows(db, query, number) == []
    methods = rows(
        db,
        "SELECT DISTINCT m.amname FROM pg_class AS c "
        "JOIN pg_am AS m ON m.oid = c.relam WHERE m.amname IN ('hnsw', 'ivfflat')",
    )
    assert methods == [("ivfflat",)]
    assert all(valid for _, valid in vector_indexes(db))


@pytest.mark.parametrize("is_built", [True, False])
def test_a_table_that_takes_the_name_of_another(db: Connection, is_built: bool) -> None:
    """The other keeps its index, or is still to get it."""
    documents(db)
    declare(db, "docs", "body", name="former")
    if is_built:
        build(db)
    db.execute("ALTER TABLE docs RENAME TO former")
    documents(db)
    declare(db, "docs", "body")
    assert len(build(db, 1)) == (0 if is_built else 1)
    assert len(build(db, 2)) == 1
    assert vector_indexes(db) == [("docs", True), ("former", True)]


def test_lists_of_ivfflat(db: Connection) -> None:
    documents(db)
    db.execute("ALTER TABLE docs ADD COLUMN body_embedding vector(3)")
    db.execute(
        "INSERT INTO docs (id, body, body_embedding) "
        "SELECT i, 'x', '[1,2,3]' FROM generate_series(1, 5000) AS i"
    )
    declare(db, "docs", "body", index="ivfflat")
    assert statements(db)[0].endswith(" WITH (lists = 5)")


def test_statements_of_an_embedding_that_was_dropped(db: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedObject, match="no embedding number 1"):
        statements(db)


def test_statements_while_paused(db: Connection) -> None:
    documents(db)
    declare(db, "docs", "body")
    rows(db, "SELECT pgembed.pause_embedding('docs_body')")
    assert len(statements(db)) == 1


def index_work(db: Connection) -> list[str]:
    return [name for _, name in rows(db, "SELECT * FROM pgembed._index_work()")]


def test_when_it_is_time(db: Connection, worker: SqlWorker) -> None:
    documents(db)
    db.execute(
        "INSERT INTO docs (id, body) SELECT i, 'x' FROM generate_series(1, 500) AS i"
    )
    declare(db, "docs", "body")
    declare(db, "docs", "title", index="none")
    assert index_work(db) == []
    worker.work()
    assert index_work(db) == []
    worker.drain()
    assert index_work(db) == ["docs_body"]
    # A few rows that wait do not put it off for ever.
    db.execute("ANALYZE pgembed.job_1")
    db.execute("UPDATE docs SET body = 'y' WHERE id <= 5")
    assert index_work(db) == ["docs_body"]
    db.execute("UPDATE docs SET body = 'z' WHERE id <= 6")
    assert index_work(db) == []


def test_one_worker_builds(db: Connection, worker: SqlWorker) -> None:
    documents(db)
    declare(db, "docs", "body")
    worker.drain()
    other = SqlWorker(db)

    def begin(who: SqlWorker) -> bool:
        return bool(value(db, "SELECT pgembed._begin_index(1, %s)", who.id))

    assert [begin(worker), begin(other), begin(worker)] == [True, False, False]
    assert index_work(db) == []
    # It died: another takes over.
    rows(
        db,
        "UPDATE pgembed.worker SET seen_at = now() - interval '2 min' WHERE id = %s",
        worker.id,
    )
    assert index_work(db) == ["docs_body"]
    assert [begin(other), begin(other)] == [True, False]
    rows(db, "SELECT pgembed._unregister_worker(%s)", other.id)
    third = SqlWorker(db)
    assert begin(third)
    rows(db, "SELECT pgembed._set_index_state(1, 'ready', NULL)")
    assert not begin(third)
    assert index_work(db) == []


@pytest.mark.parametrize("wanted", ["waiting", "none"])
def test_another_index_is_wanted_meanwhile(
    db: Connection, worker: SqlWorker, wanted: str
) -> None:
    """The end of the former build is not taken for that of the new one."""
    documents(db)
    declare(db, "docs", "body")
    worker.drain()
    assert value(db, "SELECT pgembed._begin_index(1, %s)", worker.id)
    # As op.alter_embedding does.
    rows(
        db,
        "UPDATE pgembed.embedding SET index_method = %s, index_state = %s",
        "none" if wanted == "none" else "ivfflat",
        wanted,
    )
    rows(db, "SELECT pgembed._set_index_state(1, 'ready', NULL)")
    state = "SELECT index_state FROM pgembed.embedding"
    assert value(db, state) == wanted
    assert index_work(db) == (["docs_body"] if wanted == "waiting" else [])
    # Nor when the worker stops before its end.
    rows(db, "SELECT pgembed._set_index_state(1, 'waiting', NULL)")
    assert value(db, state) == wanted


def test_the_end_of_a_build_while_a_user_holds_the_row(
    db: Connection, worker: SqlWorker, dsn: str
) -> None:
    documents(db)
    declare(db, "docs", "body")
    worker.drain()

    def record(state: str, builder: SqlWorker | None = None) -> bool:
        call = "SELECT pgembed._set_index_state(1, %s, NULL, %s)"
        return bool(value(db, call, state, builder and builder.id))

    state = "SELECT index_state FROM pgembed.embedding"
    assert value(db, "SELECT pgembed._begin_index(1, %s)", worker.id)
    with connect(dsn, purpose="user", autocommit=False) as user:
        user.execute("SELECT pgembed.pause_embedding('docs_body')")
        assert not record("ready", worker)
        assert value(db, state) == "building"
        user.commit()
    # Another has begun to build since then: its end is to come.
    assert record("ready", SqlWorker(db))
    assert value(db, state) == "building"
    assert record("ready", worker)
    assert value(db, state) == "ready"
    assert record("ready", worker)
    rows(db, "SELECT pgembed.drop_embedding('docs_body')")
    assert record("ready")


def test_transactions_may_take_no_time(db: Connection, worker: SqlWorker) -> None:
    """An index build takes longer than an application's transactions may."""
    if db.info.server_version < 170000:
        pytest.skip("transaction_timeout came with PostgreSQL 17")
    rows(db, "CREATE TABLE docs (id int PRIMARY KEY, body text)")
    rows(db, "INSERT INTO docs SELECT i, i FROM generate_series(1, 3000) AS i")
    number = embedding_id(db, declare(db, "docs", "body", index="hnsw"))
    worker.drain()
    db.execute("SET transaction_timeout = '20ms'")
    indexing.build(db, indexing.IndexJob(number, "docs_body"))
    assert vector_indexes(db) == [("docs", True)]


@pytest.mark.parametrize(
    ("done", "use"),
    [
        (0, "INSERT INTO docs VALUES (3, 3, 'theirs')"),
        # The partition has its index by then, which readers of it hold.
        (2, "SELECT FROM docs_1"),
    ],
)
def test_a_partitioned_table_that_is_in_use(
    db: Connection, worker: SqlWorker, dsn: str, done: int, use: str
) -> None:
    """Nobody queues up behind a build that waits for a transaction of a user's."""
    db.execute(PARTITIONED)
    job = indexing.IndexJob(
        embedding_id(db, declare(db, "docs", "body", index="hnsw")), "docs_body"
    )
    for statement in statements(db)[:done]:
        rows(db, statement)
    with (
        connect(dsn, purpose="user", autocommit=False) as user,
        connect(dsn, purpose="other") as other,
    ):
        # A build that waits for the user outlasts it.
        user.execute("SET idle_in_transaction_session_timeout = '5s'")
        user.execute(use.encode())
        assert not indexing.build(db, job)
        other.execute("SET lock_timeout = '1s'")
        other.execute("INSERT INTO docs VALUES (4, 4, 'another')")
        user.commit()
    assert indexing.build(db, job)
    assert statements(db) == []
