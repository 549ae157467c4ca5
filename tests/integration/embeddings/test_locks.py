"""Workers never wait for users: they do what can be done and come back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from pgembed.postgres.connection import connect
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    pending,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents

MODES = {"column": None, "chunks": 8}


@pytest.fixture
def user(dsn: str) -> Iterator[Connection]:
    """Return a second session, in which a user has a transaction open."""
    with connect(dsn, purpose="user", autocommit=False) as session:
        session.execute("SET lock_timeout = '5s'")
        session.commit()
        yield session


@pytest.fixture(autouse=True)
def _impatient(db: Connection, user: Connection) -> None:
    # A worker that waits for the user would wait for ever: it fails instead.
    db.execute("SET statement_timeout = '5s'")


@pytest.fixture(params=MODES)
def name(request: pytest.FixtureRequest, db: Connection, worker: SqlWorker) -> str:
    """Return an embedding of three rows that are to be embedded anew."""
    documents(db, "one", "two", "three four five")
    declare(db, "docs", "body", chunk_tokens=MODES[request.param])
    worker.drain()
    db.execute("UPDATE docs SET body = body || ' again'")
    return "docs_body"


def begin_again(db: Connection, worker: SqlWorker) -> None:
    """Three rows that are to be embedded anew."""
    db.execute("TRUNCATE docs")
    db.execute(
        "INSERT INTO docs (id, body) VALUES "
        "(1, 'one'), (2, 'two'), (3, 'three four five')"
    )
    worker.drain()
    db.execute("UPDATE docs SET body = body || ' again'")


CHANGES = [
    "UPDATE docs SET body = 'theirs' WHERE id = 1",
    "UPDATE docs SET price = 5 WHERE id = 1",
    "SELECT FROM docs WHERE id = 1 FOR UPDATE",
    "DELETE FROM docs WHERE id = 1",
    "UPDATE docs SET id = 7 WHERE id = 1",
]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_rows_that_a_user_holds(
    db: Connection, worker: SqlWorker, user: Connection, name: str, end: str
) -> None:
    for change in CHANGES:
        begin_again(db, worker)
        claim = worker.claim(name)
        user.execute(change.encode())
        held = claim.slots[claim.texts.index("one again")]
        others = [slot for slot in claim.slots if slot != held]
        assert worker.complete(claim) == others
        assert worker.complete(claim) == others
        assert worker.renew(claim) == 1
        getattr(user, end)()
        assert worker.complete(claim) == claim.slots
        worker.drain()
        assert_converged(db, name)


def test_ending_a_claim_of_rows_that_a_user_holds(
    db: Connection, worker: SqlWorker, user: Connection, name: str
) -> None:
    for finish, done in {"fail": 2, "release": 2, "renew": 3}.items():
        begin_again(db, worker)
        claim = worker.claim(name)
        user.execute("UPDATE docs SET body = 'theirs' WHERE id = 1")
        assert getattr(worker, finish)(claim) == done
        user.commit()
        expire(db, name)
        worker.drain()
        assert_converged(db, name)


def test_second_change_of_a_row_that_is_stale_already(
    db: Connection, worker: SqlWorker, user: Connection, name: str
) -> None:
    claim = worker.claim(name)
    db.execute("UPDATE docs SET body = 'first' WHERE id = 1")
    user.execute("UPDATE docs SET body = 'second' WHERE id = 1")
    assert len(worker.complete(claim)) == 2
    user.commit()
    assert worker.complete(claim) == claim.slots
    worker.drain()
    assert_converged(db, name)


def test_a_held_row_does_not_stop_those_behind_it(
    db: Connection, worker: SqlWorker, user: Connection, name: str
) -> None:
    worker.fail(worker.claim(name, 1))
    expire(db, name)
    rows(
        db,
        "UPDATE pgembed.job_1 SET pgembed_available_at = now() - interval '1 h' "
        "WHERE pgembed_attempts = 1",
    )
    # The row that waits longest has another number of attempts, and a user holds it.
    first = value(db, "SELECT id FROM pgembed.job_1 WHERE pgembed_attempts = 1")
    user.execute("UPDATE docs SET body = 'theirs' WHERE id = %s", (first,))
    assert len(worker.claim(name)) == 2
    user.rollback()


def test_a_table_that_a_user_holds(
    db: Connection, worker: SqlWorker, user: Connection, name: str
) -> None:
    db.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    declare(db, "other", "body")
    for number, statement in enumerate(
        [
            "TRUNCATE docs",
            "LOCK TABLE docs",
            "ALTER TABLE docs ADD COLUMN more int",
            "SELECT pgembed.drop_embedding('docs_body')",
            "DROP TABLE docs CASCADE",
        ]
    ):
        begin_again(db, worker)
        claim = worker.claim(name, 1)
        user.execute(statement.encode())
        assert worker.complete(claim) == []
        assert len(worker.claim(name)) == 0
        for finish in (worker.renew, worker.release, worker.fail):
            with contextlib.suppress(psycopg.errors.LockNotAvailable):
                finish(claim)
        # Others go on.
        db.execute("INSERT INTO other VALUES (%s, 'x')", (number,))
        assert worker.work()["other_body"] == 1
        worker.complete(worker.claim("other_body"))
        rows(db, "SELECT * FROM pgembed._index_work()")
        user.rollback()
        assert_converged(db, "other_body")
        expire(db, name)
        worker.drain()
        assert_converged(db, name)


def test_truncate_against_a_claim_and_its_completion(
    db: Connection, worker: SqlWorker, dsn: str, user: Connection, name: str
) -> None:
    claim = worker.claim(name)
    # The claim is over; the user's transaction sees and removes it, in both orders.
    user.execute("TRUNCATE docs")
    assert worker.complete(claim) == []
    user.commit()
    assert worker.complete(claim) == claim.slots
    assert_converged(db, name)
    db.execute("INSERT INTO docs (id, body) VALUES (1, 'one')")
    with connect(dsn, autocommit=False) as other:
        second = SqlWorker(other)
        held = second.claim(name)
        user.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            user.execute("TRUNCATE docs")
        user.rollback()
        assert second.complete(held) == [1]
        with pytest.raises(psycopg.errors.LockNotAvailable):
            user.execute("SET lock_timeout = '50ms'; TRUNCATE docs")
        user.rollback()
        other.commit()
    user.execute("TRUNCATE docs")
    user.commit()
    assert_converged(db, name)


def in_two_parts(db: Connection, worker: SqlWorker, chunk_tokens: int | None) -> str:
    """Create docs in two parts with an embedding; return its name."""
    db.execute(
        """
        CREATE TABLE docs (id int, part int, body text, PRIMARY KEY (id, part))
            PARTITION BY LIST (part);
        CREATE TABLE docs_1 PARTITION OF docs FOR VALUES IN (1);
        CREATE TABLE docs_2 PARTITION OF docs FOR VALUES IN (2);
        INSERT INTO docs SELECT i, part, 'row' FROM generate_series(1, 3) AS i,
            generate_series(1, 2) AS part;
        """
    )
    return declare(db, "docs", "body", chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("chunk_tokens", MODES.values(), ids=MODES)
def test_two_partitions_truncated_at_once(
    db: Connection, worker: SqlWorker, user: Connection, chunk_tokens: int | None
) -> None:
    name = in_two_parts(db, worker, chunk_tokens)
    worker.drain()
    user.execute("TRUNCATE docs_1")
    db.execute("TRUNCATE docs_2")
    user.execute("SELECT FROM docs")
    user.commit()
    assert_converged(db, name)


def test_a_partition_truncated_in_repeatable_read(
    db: Connection, worker: SqlWorker, user: Connection
) -> None:
    name = in_two_parts(db, worker, 8)
    user.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    # Its snapshot knows neither the jobs nor the chunks.
    user.execute("SELECT count(*) FROM docs")
    worker.drain()
    user.execute("TRUNCATE docs_1")
    user.commit()
    worker.drain()
    chunks = rows(db, f"SELECT id, part FROM {name}_chunk ORDER BY id")
    assert chunks == [(1, 2), (2, 2), (3, 2)]
    assert pending(db, name) == 0


@pytest.mark.parametrize("table", ["docs", "docs_1, docs"])
def test_a_table_truncated_in_repeatable_read(
    db: Connection, worker: SqlWorker, user: Connection, table: str
) -> None:
    name = in_two_parts(db, worker, 8)
    user.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    user.execute("SELECT count(*) FROM docs")
    worker.drain()
    rows(user, f"TRUNCATE {table}")
    user.commit()
    assert_converged(db, name)


def test_enqueuing_does_not_stop_the_write_back_of_others(
    db: Connection, worker: SqlWorker, dsn: str, user: Connection, name: str
) -> None:
    claim = worker.claim(name)
    db.execute("UPDATE pgembed.embedding SET enqueued = false")
    user.execute("SELECT pgembed._enqueue_all(1)")
    # A worker that has no progress on record yet: its first refers to the embedding.
    assert SqlWorker(db).complete(claim) == claim.slots
    user.commit()
    assert_converged(db, name)


def test_small_tables_are_enqueued_together_and_a_large_one_alone(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    for name in ("north", "south", "large", "west"):
        scratch.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, body text)".encode())
        scratch.execute(f"INSERT INTO {name} VALUES (1, 'x')".encode())
        declare(scratch, name, "body")
    scratch.execute(
        "UPDATE pg_catalog.pg_class SET relpages = 1001 WHERE relname = 'large'"
    )
    enqueued = "SELECT name FROM pgembed.embedding WHERE enqueued ORDER BY id"
    looks = []
    for _ in range(3):
        scratch_worker.work()
        looks.append([name for (name,) in rows(scratch, enqueued)])
    assert looks == [
        ["north_body", "south_body"],
        ["north_body", "south_body", "large_body"],
        ["north_body", "south_body", "large_body", "west_body"],
    ]


@pytest.mark.parametrize("chunk_tokens", [None, 8])
def test_the_queue_of_a_dropped_table_that_a_user_reads(
    db: Connection, worker: SqlWorker, user: Connection, chunk_tokens: int | None
) -> None:
    """It is forgotten later, and what came before it is not held meanwhile."""
    db.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    db.execute("INSERT INTO other VALUES (1, 'x')")
    declare(db, "other", "body")
    documents(db, "one")
    declare(db, "docs", "body", chunk_tokens=chunk_tokens)
    db.execute("DROP TABLE docs")
    user.execute("SELECT FROM pgembed.job_2")
    assert worker.work() == {"other_body": 1}
    user.execute("ALTER TABLE other ADD price int")
    user.commit()
    worker.work()
    assert rows(db, "SELECT name FROM pgembed.embedding") == [("other_body",)]


def test_a_pause_that_is_not_committed_stops_nobody(
    db: Connection, worker: SqlWorker, user: Connection, name: str
) -> None:
    user.execute("SELECT pgembed.pause_embedding('docs_body')")
    claim = worker.claim(name)
    assert worker.complete(claim) == claim.slots
    user.commit()
    assert_converged(db, name)


def test_an_embedding_whose_row_a_user_holds(
    db: Connection, worker: SqlWorker, user: Connection, name: str
) -> None:
    worker.drain()
    user.execute("SELECT pgembed.pause_embedding('docs_body')")
    assert not value(db, "SELECT pgembed._begin_index(1, %s)", worker.id)
    rows(db, "SELECT pgembed._block(1, 'its model is corrupt')")
    user.rollback()
    assert rows(db, "SELECT blocked FROM pgembed.embedding") == [(None,)]
    rows(db, "SELECT pgembed._block(1, 'its model is corrupt')")
    user.execute("SELECT pgembed.pause_embedding('docs_body')")
    rows(db, "SELECT pgembed._unblock(1)")
    db.execute("DROP TABLE docs CASCADE")
    assert worker.work() == {}
    user.rollback()
    worker.work()
    assert rows(db, "SELECT FROM pgembed.embedding") == []


@pytest.fixture
def partitioned(db: Connection, worker: SqlWorker) -> str:
    """Return an embedding of a partitioned table that has no partition yet."""
    db.execute(
        "CREATE TABLE docs (id int, part int, body text, PRIMARY KEY (id, part)) "
        "PARTITION BY LIST (part)"
    )
    name = declare(db, "docs", "body")
    worker.work()
    return name


def attach(db: Connection) -> None:
    """Attach a partition with a row in it."""
    db.execute("CREATE TABLE docs_1 (LIKE docs INCLUDING ALL)")
    db.execute("INSERT INTO docs_1 VALUES (1, 1, 'one')")
    db.execute("ALTER TABLE docs ATTACH PARTITION docs_1 FOR VALUES IN (1)")


def test_writers_do_not_wait_while_the_rows_of_a_partition_are_looked_at(
    db: Connection, worker: SqlWorker, user: Connection, partitioned: str
) -> None:
    attach(db)
    assert worker.work() == {partitioned: 0}
    with db.transaction():
        assert worker.work() == {partitioned: 1}
        user.execute("INSERT INTO docs VALUES (2, 1, 'two')")
    user.commit()
    worker.drain()
    assert_converged(db, partitioned)


def test_a_partition_that_is_written_when_it_is_noticed(
    db: Connection, worker: SqlWorker, user: Connection, partitioned: str
) -> None:
    attach(db)
    user.execute("INSERT INTO docs VALUES (2, 1, 'two')")
    worker.drain()
    assert rows(db, "SELECT FROM docs_1 WHERE body_embedding IS NULL") == []
    user.commit()
    # No trigger could be made yet that would see this.
    db.execute("TRUNCATE docs_1")
    worker.drain()
    assert_converged(db, partitioned)


def test_a_partition_of_an_embedding_whose_row_a_user_holds(
    db: Connection, worker: SqlWorker, user: Connection, partitioned: str
) -> None:
    user.execute("SELECT pgembed.pause_embedding('docs_body')")
    db.execute("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES IN (1)")
    with db.transaction():
        worker.work()
        # The worker has left the partition alone, too.
        user.execute("INSERT INTO docs VALUES (1, 1, 'one')")
    user.rollback()
    db.execute("INSERT INTO docs VALUES (2, 1, 'two')")
    worker.drain()
    assert_converged(db, partitioned)
    db.execute("TRUNCATE docs_1")
    assert_converged(db, partitioned)


def test_a_drop_that_is_not_committed_stops_no_heartbeat(
    db: Connection, worker: SqlWorker, user: Connection, name: str
) -> None:
    worker.drain()
    db.execute("UPDATE pgembed.progress SET bucket = bucket - interval '11 minutes'")
    user.execute("SELECT pgembed.drop_embedding('docs_body')")
    assert value(db, "SELECT pgembed._heartbeat(%s)", worker.id)
    user.rollback()
    assert value(db, "SELECT pgembed._heartbeat(%s)", worker.id)
    assert rows(db, "SELECT FROM pgembed.progress") == []


def test_a_user_in_repeatable_read(
    db: Connection, worker: SqlWorker, user: Connection
) -> None:
    documents(db, "one", "two")
    user.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    declare(db, "docs", "body", chunk_tokens=8)
    # Its snapshot knows none of the jobs.
    user.execute("SELECT count(*) FROM docs")
    worker.work()
    claim = worker.claim("docs_body")
    user.execute("UPDATE docs SET body = 'theirs' WHERE id = 1")
    user.commit()
    assert worker.complete(claim) == [1, 2]
    worker.drain()
    assert_converged(db, "docs_body")
    assert pending(db, "docs_body") == 0
