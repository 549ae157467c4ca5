"""P3: only who holds the live lease changes a job; vector and end commit together.

Worker processes are stopped at named points, and go on or are killed; a proxy loses
connections and answers.
"""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any

import pytest

from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.worker.crash_points import POINTS, Point
from tests.conftest import Connect
from tests.harness.oracle import assert_converged
from tests.harness.processes import worker_process
from tests.harness.proxy import proxy
from tests.integration.worker.running import (
    Connection,
    add_good,
    create_docs,
    embed_all,
    embedding,
    insert,
    is_drained,
    leased,
    wait_until,
)

TEXTS = ("a cat", "the dog", None, "a man eats food")
# Leases of a stopped worker expire while another one waits for them.
SHORT = 1.0


def row_versions(connection: Connection) -> list[Any]:
    """Return what changes whenever a row is written."""
    return fetch_all(connection, "SELECT id, ctid::text, xmin::text FROM docs")


def written(connection: Connection) -> int:
    return int(fetch_one(connection, "SELECT count(body_embedding) FROM docs")[0])


def has_written(connection: Connection, rows: int) -> bool:
    return written(connection) >= rows


def attempts(connection: Connection) -> int:
    query = "SELECT coalesce(max(pgembed_attempts), 0) FROM pgembed.job_1"
    return int(fetch_one(connection, query)[0])


def half_done(connection: Connection) -> int:
    """Count rows that have a vector and a lease, or neither."""
    query = """
        SELECT count(*) FROM docs AS d JOIN pgembed.job_1 AS j USING (id)
        WHERE d.body IS NOT NULL
            AND (j.pgembed_lease IS NULL) <> (d.body_embedding IS NOT NULL)
    """
    return int(fetch_one(connection, query)[0])


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at(
    point: Point, dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    user = connect(dsn)
    with user.transaction():
        if point == "renewing":  # a lease that is held so long that it is renewed
            user.execute("SELECT FROM docs WHERE id = 1 FOR UPDATE")
        with worker_process(dsn, tmp_path, stop_at=point, lease_seconds=SHORT) as w:
            w.wait_stopped()
            w.kill()
    held = leased(connection)
    assert held == {"after_commit": 0}.get(point, len(TEXTS)) or point == "renewing"
    assert half_done(connection) == 0
    assert attempts(connection) == (1 if held else 0)
    embed_all(dsn)
    assert_converged(connection, model)


def test_a_worker_killed_while_its_statement_runs(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """The server commits for a client that is not there any more."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    connection.execute(
        """
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$;
        CREATE TRIGGER wait BEFORE UPDATE OF body_embedding ON docs
        FOR EACH ROW EXECUTE FUNCTION wait();
        """
    )
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    )
    writer = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = "
        "'pgembed writer' AND datname = current_database()"
    )
    connection.execute("SELECT pg_advisory_lock(7)")
    with worker_process(dsn, tmp_path) as worker:
        wait_until(lambda: fetch_one(connection, waiting) == (1,))
        worker.kill()
    assert written(connection) == 0
    connection.execute("SELECT pg_advisory_unlock(7)")
    wait_until(lambda: fetch_one(connection, writer) == (0,))
    assert written(connection) == 3
    assert_converged(connection, model)


@pytest.mark.parametrize("point", ["claimed", "embedded", "before_commit"])
def test_a_zombie_changes_nothing(
    point: Point, dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """It goes on after its lease expired and another worker did its work."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    with worker_process(dsn, tmp_path, stop_at=point, lease_seconds=SHORT) as zombie:
        zombie.wait_stopped()
        connection.execute("UPDATE docs SET body = 'red ' || id WHERE id < 3")
        embed_all(dsn)
        before = row_versions(connection)
        zombie.go_on()
        assert zombie.terminate() == 0
    assert row_versions(connection) == before
    assert_converged(connection, model)


def test_a_zombie_does_not_end_the_work_of_another(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """It completes while the next holder of the rows still computes."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    start = functools.partial(worker_process, dsn, tmp_path)
    with start(stop_at="before_commit", lease_seconds=SHORT) as zombie:
        zombie.wait_stopped()
        with start(stop_at="embedded") as holder:
            holder.wait_stopped()
            zombie.go_on()
            assert zombie.terminate() == 0
            assert written(connection) == 0
            assert leased(connection) == len(TEXTS)
            holder.go_on()
            wait_until(lambda: is_drained(connection))
            assert holder.terminate() == 0
    assert_converged(connection, model)


FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.mark.skipif(not FAKETIME, reason="libfaketime (package faketime) is missing")
@pytest.mark.parametrize("skew", ["+1h", "-1h"])
def test_clocks_that_are_wrong(
    skew: str, dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """By an hour, on the worker's host: leases end by the database's clock."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    wrong = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME": skew,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    start = functools.partial(worker_process, dsn, tmp_path)
    with start(stop_at="embedded") as holder:
        holder.wait_stopped()
        with start(environ=wrong) as skewed:
            insert(connection, "the other holds the rest", first=9)
            wait_until(lambda: written(connection) == 1)
            assert leased(connection) == len(TEXTS)
            holder.kill()
            connection.execute("UPDATE docs SET body = 'red' WHERE id = 1")
            expire = "UPDATE pgembed.job_1 SET pgembed_available_at = now()"
            connection.execute(f"{expire} WHERE pgembed_lease IS NOT NULL".encode())
            wait_until(lambda: is_drained(connection))
            assert skewed.terminate() == 0
            logged = datetime.datetime.fromisoformat(skewed.log()[:19])
    assert abs(logged - datetime.datetime.now()) > datetime.timedelta(minutes=50)
    assert_converged(connection, model)


CALLS = [b"pgembed._claim(", b"pgembed._complete(", b"pgembed._renew("]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_a_connection_lost(
    when: str, call: bytes, dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """Before a statement arrives, or after it was committed and before it is known."""
    model = add_good(connection, tmp_path)
    create_docs(connection)
    with proxy(dsn) as line, embedding(line.dsn, lease_seconds=SHORT):
        cut = line.cut_before if when == "before" else line.cut_after
        cut(call)
        with connection.transaction():
            insert(connection, *TEXTS)
        if call == b"pgembed._renew(":
            hold_a_row(connection, dsn, line.cut.is_set)
        wait_until(line.cut.is_set)
        wait_until(lambda: is_drained(connection))
    assert_converged(connection, model)


def hold_a_row(connection: Connection, dsn: str, until: Any) -> None:
    """Keep a row locked, so that its lease has to be renewed."""
    with connection.transaction():
        connection.execute("UPDATE docs SET body = 'held' WHERE id = 1")
        connection.execute("SELECT FROM docs WHERE id = 2 FOR UPDATE")
        wait_until(until)


def test_connections_dropped_again_and_again(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(300)])
    with (
        proxy(dsn) as line,
        embedding(line.dsn, claim_rows=8, batch_tokens=16, lease_seconds=SHORT),
    ):
        for rows in (20, 80, 160):
            wait_until(functools.partial(has_written, connection, rows))
            # The worker may be between two connections already.
            wait_until(line.drop)
        wait_until(lambda: is_drained(connection))
    assert_converged(connection, model)


def test_a_stalled_connection_makes_a_zombie(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """Nothing arrives and nothing fails; then all that was sent arrives at once."""
    model = add_good(connection, tmp_path)
    create_docs(connection)
    with proxy(dsn) as line:
        with worker_process(
            line.dsn, tmp_path, stop_at="before_commit", lease_seconds=SHORT
        ) as worker:
            insert(connection, *TEXTS)
            worker.wait_stopped()
            line.stall()
            worker.go_on()
            connection.execute("UPDATE docs SET body = 'red ' || id WHERE id < 3")
            embed_all(dsn)
            before = row_versions(connection)
            line.flow()
            assert worker.terminate() == 0
        assert row_versions(connection) == before
    assert_converged(connection, model)
