"""Several claimers and writers at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgembed.postgres.connection import connect
from tests.harness.sql_worker import (
    Claim,
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    value,
)
from tests.integration.embeddings.support import declare, documents


def test_claimers_never_share_a_row(
    db: Connection, worker: SqlWorker, dsn: str
) -> None:
    documents(db)
    db.execute(
        "INSERT INTO docs (id, body) SELECT i, 'row ' || i "
        "FROM generate_series(1, 400) AS i"
    )
    declare(db, "docs", "body")
    worker.work()
    start = threading.Barrier(4)

    def claim_all() -> list[Claim]:
        with connect(dsn) as connection:
            mine = SqlWorker(connection)
            start.wait()
            claims = []
            while len(claim := mine.claim("docs_body", 7)):
                claims.append(claim)
            return claims

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(claim_all) for _ in range(4)]
    claims = [claim for future in futures for claim in future.result()]
    texts = Counter(text for claim in claims for text in claim.texts)
    # A claimer may leave what another was just about to take; nothing is taken twice.
    assert max(texts.values()) == 1
    rest = worker.claim("docs_body", 1000)
    assert len(texts) + len(rest) == 400
    for claim in [*claims, rest]:
        worker.complete(claim)
    assert_converged(db, "docs_body")


def test_a_claim_passes_by_what_another_is_just_taking(
    db: Connection, worker: SqlWorker, dsn: str
) -> None:
    documents(db, *(f"row {number}" for number in range(20)))
    declare(db, "docs", "body")
    worker.work()
    with connect(dsn) as connection, connection.transaction():
        first = SqlWorker(connection).claim("docs_body", 8)
        db.execute("SET lock_timeout = '2s'")
        second = worker.claim("docs_body", 8)
    assert (len(first), len(second)) == (8, 8)
    assert not set(first.texts) & set(second.texts)


@pytest.mark.parametrize("chunk_tokens", [None, 8])
def test_users_and_workers_without_a_deadlock(
    db: Connection, worker: SqlWorker, dsn: str, chunk_tokens: int | None
) -> None:
    documents(db, *(f"row {number}" for number in range(40)))
    declare(db, "docs", "body", chunk_tokens=chunk_tokens)
    stop = threading.Event()

    def work() -> None:
        with connect(dsn) as connection:
            mine = SqlWorker(connection)
            while not stop.is_set():
                mine.work()
                claim = mine.claim("docs_body", 16)
                if len(claim):
                    mine.complete(claim)
                    mine.release(claim)

    def write(seed: int) -> None:
        with connect(dsn) as connection:
            connection.execute("SELECT setseed(%s)", (seed / 10,))
            for turn in range(25):
                _change_at_random(
                    connection, f"turn {seed} {turn}", last=turn % 10 == 9
                )

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(_stubborn, work) for _ in range(2)]
        writing = [pool.submit(write, seed) for seed in range(2)]
        try:
            for future in writing:
                future.result()
        finally:
            stop.set()
        for future in working:
            future.result()
    expire(db, "docs_body")
    worker.drain()
    assert_converged(db, "docs_body")


def _stubborn(work: Callable[[], None]) -> None:
    """Begin again after what a worker has to expect; a deadlock is not among it."""
    while True:
        try:
            return work()
        except psycopg.errors.LockNotAvailable:
            continue


def _change_at_random(connection: Connection, text: str, *, last: bool) -> None:
    # In the order of the keys: users among themselves must not deadlock here.
    with connection.transaction():
        if last:
            connection.execute("TRUNCATE docs")
            connection.execute(
                "INSERT INTO docs (id, body) SELECT i, 'new ' || i "
                "FROM generate_series(1, 40) AS i"
            )
            return
        connection.execute(
            "WITH chosen AS (SELECT id FROM docs WHERE random() < 0.3 "
            "ORDER BY id FOR UPDATE) "
            "UPDATE docs SET body = %s FROM chosen WHERE docs.id = chosen.id",
            (text,),
        )


def test_an_update_between_claim_and_read(
    db: Connection, worker: SqlWorker, dsn: str
) -> None:
    # Whatever the claim reads, a version that completes belongs to that content.
    documents(db, "first")
    declare(db, "docs", "body")
    worker.work()
    with connect(dsn, autocommit=False) as user:
        user.execute("UPDATE docs SET body = 'second'")
        assert len(worker.claim("docs_body")) == 0  # its job is the user's now
        user.rollback()
        with connect(dsn, autocommit=False) as other:
            claim = SqlWorker(other).claim("docs_body")
            assert claim.texts == ["first"]
            user.execute("SET lock_timeout = '50ms'")
            # The writer waits for the job until the claim commits: no version slips in.
            with pytest.raises(psycopg.errors.LockNotAvailable):
                user.execute("UPDATE docs SET body = 'second'")
            user.rollback()
            other.commit()
        user.execute("UPDATE docs SET body = 'second'")
        user.commit()
    worker.complete(claim)
    assert value(db, "SELECT body_embedding FROM docs") is None
    worker.drain()
    assert_converged(db, "docs_body")


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize(
    "change", ["DELETE FROM docs WHERE id = 1", "UPDATE docs SET id = 9 WHERE id = 1"]
)
def test_a_transaction_older_than_the_backfill(
    dsn: str, db: Connection, worker: SqlWorker, isolation: str, change: str
) -> None:
    """It sees no chunks of the row that it deletes: a worker deletes them."""
    documents(db, "one two three", "four")
    with connect(dsn, purpose="test") as old:
        old.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
        old.execute("SELECT FROM docs")
        declare(db, "docs", "body", chunk_tokens=8)
        worker.drain()
        old.execute(change.encode())
        old.execute("COMMIT")
    worker.drain()
    assert_converged(db, "docs_body")
    db.execute("INSERT INTO docs (id, body) VALUES (1, 'anew')")
    worker.drain()
    assert_converged(db, "docs_body")
