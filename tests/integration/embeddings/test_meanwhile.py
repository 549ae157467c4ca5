"""What another transaction drops or declares while a statement waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy.engine import make_url

from pgembed.alembic.alter import AlterEmbedding
from pgembed.postgres.connection import connect
from tests.harness.roles import ordinary_role
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents, wait_for_lock

While = Callable[[str, str], psycopg.errors.Diagnostic | None]


@pytest.fixture
def other(dsn: str) -> Iterator[Connection]:
    """Return a second session."""
    with connect(dsn, purpose="other") as session:
        session.execute("SET statement_timeout = '20s'")
        yield session


@pytest.fixture
def after(db: Connection, other: Connection) -> While:
    """Return what runs a statement that has to wait for one of a transaction.

    And then returns the error it ends in, if it does.
    """

    def run(first: str, second: str) -> psycopg.errors.Diagnostic | None:
        with ThreadPoolExecutor(1) as pool:
            with db.transaction():
                rows(db, first)
                future = pool.submit(rows, other, second)
                wait_for_lock(db, other, future)
            try:
                future.result()
            except psycopg.Error as error:
                return error.diag
        return None

    return run


def altered(name: str, **changes: str) -> str:
    """Return what op.alter_embedding executes."""
    dialect = make_url("postgresql+psycopg://").get_dialect()()
    return str(AlterEmbedding(name, changes).compile(dialect=dialect)).replace(
        "%%", "%"
    )


UPGRADE = (
    "SELECT pgembed.drop_embedding('docs_body', true);"
    "SELECT pgembed.create_embedding('docs', 'body', 'tiny')"
)


@pytest.mark.parametrize(
    "statement",
    [
        "drop_embedding('docs_body', true)",
        "pause_embedding('docs_body')",
        "resume_embedding('docs_body')",
        "reconcile('docs_body')",
        "retry_failed('docs_body')",
    ],
)
def test_an_embedding_that_is_declared_anew(
    db: Connection, worker: SqlWorker, after: While, statement: str
) -> None:
    """What was meant for the old one does nothing to the new one, and says so."""
    documents(db, "one", "two")
    declare(db, "docs", "body")
    worker.drain()
    error = after(UPGRADE, f"SELECT pgembed.{statement}")
    assert error is not None
    assert error.sqlstate == "42704"
    assert error.message_primary == "the embedding 'docs_body' was dropped meanwhile"
    assert "repeat this" in (error.message_hint or "")
    worker.drain()
    assert_converged(db, "docs_body")
    assert not value(db, "SELECT paused FROM pgembed.embedding")


@pytest.mark.parametrize("index", ["ivfflat", "none"])
def test_altering_an_embedding_that_is_declared_anew(
    db: Connection, worker: SqlWorker, after: While, index: str
) -> None:
    documents(db, "one")
    declare(db, "docs", "body")
    error = after(UPGRADE, altered("docs_body", index=index))
    assert error is not None
    assert error.message_primary == "the embedding 'docs_body' was dropped meanwhile"


def test_vectors_that_are_adopted_anew(db: Connection, after: While) -> None:
    rows(db, "CREATE TABLE docs (id int PRIMARY KEY, v vector(3))")
    rows(db, "SELECT pgembed.adopt_vectors('docs', 'v')")
    error = after(
        "SELECT pgembed.drop_embedding('docs_v');"
        "SELECT pgembed.adopt_vectors('docs', 'v')",
        "SELECT pgembed.drop_embedding('docs_v')",
    )
    assert error is not None
    assert error.message_primary == "the embedding 'docs_v' was dropped meanwhile"
    assert value(db, "SELECT count(*) FROM pgembed.embedding") == 1


def test_dropping_twice_at_once(db: Connection, after: While) -> None:
    documents(db, "one")
    declare(db, "docs", "body")
    drop = "SELECT pgembed.drop_embedding('docs_body', true)"
    error = after(drop, drop)
    assert error is not None
    assert error.message_primary == "the embedding 'docs_body' was dropped meanwhile"


@pytest.fixture
def _granted(dsn: str, db: Connection, worker: SqlWorker) -> Iterator[None]:
    """Declare two embeddings of a table, on which a role of workers has its rights."""
    documents(db, "one")
    declare(db, "docs", "body")
    declare(db, "docs", "title")
    with ordinary_role(dsn, may_create=False) as role_dsn:
        rows(db, f"SELECT pgembed.grant_worker('{make_url(role_dsn).username}')")
        yield


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("second", ["docs_body", "docs_title"])
def test_reconciling_twice_at_once(
    db: Connection, worker: SqlWorker, after: While, second: str
) -> None:
    reconcile = "SELECT pgembed.reconcile('{}')"
    assert after(reconcile.format("docs_body"), reconcile.format(second)) is None
    worker.drain()
    assert_converged(db, second)


@pytest.mark.usefixtures("_granted")
def test_reconciling_and_declaring_at_once(
    db: Connection, worker: SqlWorker, other: Connection
) -> None:
    """What workers are granted already is not granted anew: neither waits."""
    reconcile = "SELECT pgembed.reconcile('docs_body')"
    other.execute("SET lock_timeout = '5s'")
    with db.transaction():
        rows(db, reconcile)
        declare(other, "docs", "price", name="first", chunk_tokens=8)
    with db.transaction():
        declare(db, "docs", "price", name="second", chunk_tokens=8)
        rows(other, reconcile)
    worker.drain()
    assert_converged(db, "docs_body")


@pytest.mark.parametrize("options", ["", ", chunk_tokens => 8"])
def test_one_name_at_once(
    db: Connection, worker: SqlWorker, after: While, options: str
) -> None:
    documents(db, "one")
    create = f"SELECT pgembed.create_embedding('docs', 'body', 'tiny'{options})"
    error = after(create, create)
    assert error is not None
    assert error.sqlstate == "42710"
    assert error.message_primary == "there is already an embedding 'docs_body'"
    worker.drain()
    assert_converged(db, "docs_body")


@pytest.mark.parametrize(
    "second",
    [
        "create_embedding('docs', 'title', 'tiny', target_column => 'v')",
        "create_embedding('part', 'title', 'tiny', target_column => 'v')",
        "adopt_vectors('docs', 'v')",
        "adopt_vectors('part', 'v')",
    ],
)
def test_one_column_at_once(
    db: Connection, worker: SqlWorker, after: While, second: str
) -> None:
    rows(
        db,
        "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, v vector(3)) "
        "PARTITION BY LIST (id);"
        "CREATE TABLE part PARTITION OF docs DEFAULT;"
        "INSERT INTO docs VALUES (1, 'one', 'two')",
    )
    error = after(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', target_column => 'v')",
        f"SELECT pgembed.{second}",
    )
    assert error is not None
    assert error.sqlstate == "42710"
    assert error.message_primary == (
        "column v of table public.docs already belongs to the embedding 'docs_body'"
    )
    worker.drain()
    assert_converged(db, "docs_body")


ELSEWHERE = [
    "SELECT pgembed.create_embedding('docs', 'body', 'tiny')",
    "SELECT pgembed.create_embedding('docs', 'body', 'tiny', target_column => 'v')",
    "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8)",
    "SELECT pgembed.adopt_vectors('docs', 'v')",
    altered("former", content="title"),
]


@pytest.mark.parametrize(
    ("declared_first", "second"),
    # Adopting waits for no table.
    [(True, s) for s in ELSEWHERE]
    + [(False, s) for s in ELSEWHERE if "adopt" not in s],
)
def test_a_declaration_elsewhere(
    db: Connection,
    worker: SqlWorker,
    other: Connection,
    declared_first: bool,
    second: str,
) -> None:
    """Declaring and changing another table, while something is declared for that."""
    rows(
        db,
        "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, v vector(3));"
        "CREATE TABLE notes (id int PRIMARY KEY, body text)",
    )
    declare(db, "docs", "body", name="former", target_column="former")
    steps = [
        "SELECT pgembed.create_embedding('notes', 'body', 'tiny')",
        "ALTER TABLE docs ADD COLUMN price int",
    ]
    with ThreadPoolExecutor(1) as pool:
        with db.transaction():
            rows(db, steps[0 if declared_first else 1])
            future = pool.submit(rows, other, second)
            wait_for_lock(db, other, future)
            rows(db, steps[1 if declared_first else 0])
        future.result()
    assert value(db, "SELECT count(*) FROM pgembed.embedding") == (
        2 if "former" in second else 3
    )


def test_many_declarations_at_once(dsn: str, db: Connection, worker: SqlWorker) -> None:
    """Each has its turn: they do not take it from one another for ever."""
    tables = [f"t{number}" for number in range(12)]
    for table in ("first", *tables):
        db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)".encode())
    call = "SELECT pgembed.create_embedding(%s::regclass, 'body', 'tiny')"
    transaction = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(connect(dsn, purpose="other")) for _ in tables]
        pool = stack.enter_context(ThreadPoolExecutor(len(tables)))
        with db.transaction():
            value(db, call, "first")
            before = value(sessions[0], transaction)
            futures = [
                pool.submit(rows, session, call, table)
                for session, table in zip(sessions, tables, strict=True)
            ]
            for session, future in zip(sessions, futures, strict=True):
                wait_for_lock(db, session, future)
        for future in futures:
            future.result()
    assert value(db, transaction) - before < 10 * len(tables)


def test_rights_that_are_granted_meanwhile(
    db: Connection, worker: SqlWorker, after: While
) -> None:
    """A trigger's function cannot be replaced then: that is for the next look."""
    documents(db, "one")
    name = declare(db, "docs", "body")
    worker.drain()
    db.execute("ALTER TABLE docs DROP body CASCADE")
    db.execute("ALTER TABLE docs ADD body text DEFAULT 'two'")
    grant = "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgembed TO CURRENT_USER"
    assert after(grant, "SELECT FROM pgembed._work()") is None
    assert value(db, "SELECT blocked FROM pgembed.embedding") is None
    worker.drain()
    assert_converged(db, name)
