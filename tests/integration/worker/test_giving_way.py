"""Index builds give way to whoever waits for their locks."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgembed.embeddings.indexing import IndexJob
from pgembed.errors import ConnectError
from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.worker import index_builder, link
from pgembed.worker.giving_way import PURPOSE, giving_way, waiting
from pgembed.worker.lifetime import Lifetime
from tests.conftest import Connect
from tests.harness.server import Databases
from tests.integration.worker.running import (
    DEADLINE,
    Connection,
    add_good,
    create_docs,
    declare,
    embed_all,
    embedding,
    in_thread,
    status,
    wait_until,
)

PARTITIONED = """
    CREATE TABLE docs (id int PRIMARY KEY, body text, extra int)
        PARTITION BY RANGE (id);
    CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (10);
    CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (10) TO (20);
"""


@pytest.fixture
def embedded(dsn: str, connection: Connection, tmp_path: Path) -> None:
    """Have a table embedded whose index is not built yet."""
    add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(9)], index="hnsw")
    set_state(connection, "none")
    embed_all(dsn)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_builder, "_SHORTEST_DELAY", 0.05)


@pytest.fixture
def user(dsn: str, connect: Connect) -> Iterator[Connection]:
    """Return a session that would fail if it had to wait for long."""
    session = connect(dsn, autocommit=False)
    session.execute("SET lock_timeout = '10s'")
    session.commit()
    yield session
    session.rollback()


@pytest.fixture
def old(dsn: str, connect: Connect) -> Iterator[Connection]:
    """Return a session with an old snapshot, for whose end every build waits."""
    session = connect(dsn, autocommit=False)
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    session.execute("SELECT FROM pg_class")
    yield session
    session.rollback()


def set_state(connection: Connection, state: str) -> None:
    connection.execute("UPDATE pgembed.embedding SET index_state = %s", [state])


def lock(session: Connection, mode: str = "ACCESS EXCLUSIVE") -> None:
    with session.transaction():
        session.execute(f"LOCK pgembed.model IN {mode} MODE".encode())


def builds(connection: Connection, event: str = "virtualxid") -> list[int]:
    """Return the sessions of builds that wait: for a snapshot, or a relation."""
    query = """
        SELECT a.pid FROM pg_stat_activity AS a
        WHERE a.application_name = %s AND a.wait_event = %s
            AND a.datname = current_database()
    """
    found = connection.execute(query, [f"pgembed {PURPOSE}", event])
    return [pid for (pid,) in found]


@pytest.mark.parametrize(
    "statement", ["ALTER TABLE docs ADD COLUMN more int", "VACUUM docs"]
)
@pytest.mark.usefixtures("embedded")
def test_a_build_that_waits_for_a_snapshot_gives_way(
    dsn: str,
    connection: Connection,
    user: Connection,
    old: Connection,
    caplog: pytest.LogCaptureFixture,
    statement: str,
) -> None:
    caplog.set_level(logging.INFO, "pgembed")
    set_state(connection, "waiting")
    user.autocommit = True
    with embedding(dsn):
        for _ in range(2):
            before = set(wait_until(lambda: builds(connection)))
            user.execute(statement.replace("more", f"more_{min(before)}").encode())
            wait_until(lambda: set(builds(connection)) - before)  # noqa: B023
        assert "gave way to session" in caplog.text
        assert status(connection)["index_state"] == "building"
        old.rollback()
        wait_until(lambda: status(connection)["index_state"] == "ready")


@pytest.mark.parametrize(
    "statement",
    ["DROP TABLE docs", "SELECT pgembed.drop_embedding('docs_body', true)"],
)
@pytest.mark.usefixtures("embedded")
def test_what_is_built_is_dropped(
    dsn: str, connection: Connection, user: Connection, old: Connection, statement: str
) -> None:
    set_state(connection, "waiting")
    with embedding(dsn):
        wait_until(lambda: builds(connection))
        user.execute(statement.encode())
        user.commit()
        wait_until(lambda: not builds(connection))


@pytest.mark.usefixtures("embedded")
def test_a_migration_is_not_deadlocked(
    dsn: str, connection: Connection, user: Connection
) -> None:
    """It has written to the table before the build began, and alters it after."""
    user.execute("UPDATE docs SET extra = 1 WHERE id = 1")
    set_state(connection, "waiting")
    with embedding(dsn):
        wait_until(lambda: builds(connection))
        user.execute("ALTER TABLE docs ADD COLUMN more int")
        user.commit()
        wait_until(lambda: status(connection)["index_state"] == "ready")


def test_a_partition_is_altered(
    dsn: str, connection: Connection, user: Connection, old: Connection, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    connection.execute(PARTITIONED.encode())
    create = "SELECT pgembed.create_embedding('docs', 'body', 'tiny')"
    connection.execute(create.encode())
    with embedding(dsn):
        wait_until(lambda: builds(connection))
        user.execute("ALTER TABLE docs ADD COLUMN more int")
        user.commit()
        wait_until(lambda: builds(connection))
        old.rollback()
        wait_until(lambda: status(connection)["index_state"] == "ready")


@pytest.mark.usefixtures("embedded")
def test_the_end_of_a_build_waits_for_no_user(
    dsn: str, connection: Connection, user: Connection, old: Connection
) -> None:
    """One who holds the embedding's row: another index is built meanwhile."""
    connection.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    set_state(connection, "waiting")

    def states() -> list[str]:
        query = "SELECT index_state FROM pgembed.embedding ORDER BY id"
        return [state for (state,) in fetch_all(connection, query)]

    with embedding(dsn):
        wait_until(lambda: builds(connection))
        user.execute("SELECT pgembed.pause_embedding('docs_body')")
        declare(connection, "other", index="hnsw")
        old.rollback()
        wait_until(lambda: states() == ["building", "ready"])
        user.commit()
        wait_until(lambda: states() == ["ready", "ready"])


@pytest.mark.usefixtures("embedded")
def test_a_worker_told_to_stop_waits_for_no_user(
    dsn: str, connection: Connection, user: Connection, old: Connection
) -> None:
    set_state(connection, "waiting")
    with embedding(dsn):
        wait_until(lambda: builds(connection))
        user.execute("SELECT pgembed.pause_embedding('docs_body')")
        told = time.monotonic()
    assert time.monotonic() - told < 5
    user.rollback()
    old.rollback()
    embed_all(dsn)
    assert status(connection)["index_state"] == "ready"


def test_a_partitioned_table_that_is_in_use_keeps_no_other_waiting(
    dsn: str, connection: Connection, user: Connection, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    connection.execute(PARTITIONED.encode())
    connection.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    for table in ("docs", "other"):
        declare(connection, table, index="hnsw")
    user.execute("LOCK TABLE docs IN ROW EXCLUSIVE MODE")
    with embedding(dsn):
        wait_until(lambda: status(connection, "other_body")["index_state"] == "ready")
        reason = "index: its building gave way to transactions that use the table"
        wait_until(lambda: reason in status(connection)["state"])
        user.rollback()
        wait_until(lambda: status(connection)["index_state"] == "ready")


def test_a_partitioned_table_whose_writers_overlap(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    """In the end a build is more patient than their transactions are long."""
    add_good(connection, tmp_path)
    connection.execute(PARTITIONED.encode())
    declare(connection, "docs", index="hnsw")
    built = threading.Event()

    def write() -> None:
        session = connect(dsn, autocommit=False)
        while not built.is_set():
            session.execute("LOCK TABLE ONLY docs IN ROW EXCLUSIVE MODE")
            time.sleep(1.2)
            session.commit()

    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(in_thread(write, Lifetime(0)))
            time.sleep(0.6)
        stack.callback(built.set)
        stack.enter_context(embedding(dsn))
        wait_until(lambda: status(connection)["index_state"] == "ready")


@pytest.mark.usefixtures("embedded")
def test_builds_do_not_give_way_to_each_other(
    dsn: str, connection: Connection, user: Connection, old: Connection
) -> None:
    connection.execute("ALTER TABLE docs ADD COLUMN by_hand vector(8)")
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', name => 'second', "
        "target_column => 'by_hand')"
    )
    set_state(connection, "none")
    embed_all(dsn)
    set_state(connection, "waiting")
    (table,) = fetch_one(connection, "SELECT 'docs'::regclass::oid")
    with embedding(dsn), embedding(dsn):
        wait_until(lambda: builds(connection) and builds(connection, "relation"))
        assert waiting(connection, [table]) is None
        old.rollback()
        query = "SELECT bool_and(index_state = 'ready') FROM pgembed.embedding"
        wait_until(lambda: fetch_one(connection, query)[0])


def test_who_waits_in_another_database_is_left_out(
    server: Databases, connect: Connect
) -> None:
    """Copies of one database have tables of the same numbers."""
    template = server.installed_template()
    with server.database(template) as here, server.database(template) as there:
        watch = connect(server.dsn(here))
        build = connect(server.dsn(there), purpose=PURPOSE, autocommit=False)
        build.execute("LOCK pgembed.model")
        user = connect(server.dsn(there))
        other = connect(server.dsn(there))
        relation = fetch_one(user, "SELECT 'pgembed.model'::regclass::oid")
        same = fetch_one(watch, "SELECT 'pgembed.model'::regclass::oid")
        assert relation == same
        with in_thread(lambda: lock(user), Lifetime(0)):
            try:
                wait_until(lambda: waiting(other, list(relation)))
                assert waiting(watch, list(same)) is None
            finally:
                build.rollback()


@pytest.mark.parametrize(
    ("held", "asked", "wanted", "found"),
    [
        ("ROW EXCLUSIVE", "SHARE", "ROW EXCLUSIVE", False),
        ("SHARE", "SHARE UPDATE EXCLUSIVE", "SHARE", True),
    ],
    ids=["with a timeout", "without end"],
)
def test_who_waits_behind_the_request_of_a_build(
    dsn: str, connection: Connection, connect: Connect, held: str, asked: str,
    wanted: str, found: bool,
) -> None:  # fmt: skip
    """Only behind one that nothing else would end."""
    holder = connect(dsn, autocommit=False)
    build = connect(dsn, purpose=PURPOSE)
    writer = connect(dsn)
    (relation,) = fetch_one(connection, "SELECT 'pgembed.model'::regclass::oid")
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s"

    def queued(count: int) -> bool:
        return bool(fetch_one(connection, query, [relation])[0] == count)

    with contextlib.ExitStack() as stack:
        holder.execute(f"LOCK pgembed.model IN {held} MODE".encode())
        stack.enter_context(in_thread(lambda: lock(build, asked), Lifetime(0)))
        stack.callback(holder.rollback)
        wait_until(lambda: queued(1))
        stack.enter_context(in_thread(lambda: lock(writer, wanted), Lifetime(0)))
        stack.callback(holder.rollback)
        wait_until(lambda: queued(2))
        assert (waiting(connection, [relation]) is not None) == found


@pytest.mark.usefixtures("embedded")
def test_the_end_of_a_build_waits_for_no_connection(
    dsn: str, connection: Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the watch, which was cut off and does not come in again."""
    refused = threading.Event()

    def refuse(*_: object, **__: object) -> Connection:
        refused.set()
        raise ConnectError("too many connections already")

    end = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'pgembed index watch' AND datname = current_database()
    """
    build, lifetime = connect(dsn, purpose=PURPOSE), Lifetime(0)
    with giving_way(dsn, lifetime, build, IndexJob(1, "docs_body")):
        monkeypatch.setattr(link, "connect", refuse)
        connection.execute(end)
        assert refused.wait(DEADLINE)
        late = threading.Timer(5, lifetime.stop)
        late.start()
    late.cancel()
    assert not lifetime.stopping
