"""Batches posted from SQL: as whom they run, how they end, what they leave."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

from pgembed.batch.execute import Options
from pgembed.batch.job import run_batch
from pgembed.errors import SettingError
from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.postgres.schema import install
from pgembed.settings import memory_bytes
from tests.conftest import Connect
from tests.harness.server import Databases, run_program
from tests.integration.batch.posting import (
    batch_of,
    batch_processes,
    ended,
    post,
    poster,
    waits_for_a_lock,
)
from tests.integration.search.support import Connection, adopt, create_items, unsafe
from tests.integration.worker.running import (
    add_good,
    answering,
    child_process,
    create_docs,
    embed_all,
    embedding,
    insert,
    is_drained,
    wait_until,
)

SEARCH = "search_batch('items_v', 'queries', 'results', recall => 1)"


@pytest.fixture
def items(connection: Connection) -> str:
    """Create items (id, v, tenant) and queries; return the embedding's name."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 6)).astype(np.float32)
    tenants = [i % 3 for i in range(300)]
    create_items(connection, "items", vectors, columns={"tenant": ("int", tenants)})
    connection.execute(
        "CREATE TABLE queries AS SELECT id, v AS embedding, "
        "NULL::text AS predicate FROM items WHERE id < 20"
    )
    return adopt(connection, "items")


@pytest.fixture
def alice(dsn: str, connection: Connection) -> Iterator[tuple[str, str]]:
    """Return the name and the DSN of a role that may post batches."""
    with poster(dsn, connection) as role:
        yield role


@pytest.fixture
def bob(dsn: str, connection: Connection) -> Iterator[tuple[str, str]]:
    """Return the name and the DSN of another one."""
    with poster(dsn, connection) as role:
        yield role


def share(connection: Connection, *names: str) -> None:
    """Let roles read the items and the queries."""
    for name in names:
        connection.execute(unsafe(f"GRANT SELECT ON items, queries TO {name}"))


def test_the_results_are_those_of_the_command(
    dsn: str, connection: Connection, items: str
) -> None:
    options = Options(recall=1.0, memory=64 << 20, threads=1)
    run_batch(connection, items, "queries", "expected", options=options)
    with answering(dsn):
        batch = post(connection, SEARCH)
        (state,) = fetch_one(connection, "SELECT pgembed.await_batch(%s)", [batch])
    assert state == "done"
    row = batch_of(connection, batch)
    assert (row["rows"], row["query_count"], row["queries_done"]) == (200, 20, 20)
    assert row["report"]["strategy"] == "exact"
    assert row["started_at"] <= row["ended_at"]
    query = "SELECT * FROM {} ORDER BY 1, 2"
    found = fetch_all(connection, unsafe(query.format("results")))
    assert found == fetch_all(connection, unsafe(query.format("expected")))


def test_it_begins_when_the_transaction_commits(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    other = connect(dsn)
    with answering(dsn):
        with connection.transaction():
            connection.execute(
                'CREATE SCHEMA "S"; SET LOCAL search_path = "S", public; '
                "CREATE TABLE queries AS SELECT 'x' AS id, '[1,0,0,0,0,0]'::vector "
                "AS embedding, 'is_even(tenant) AND "
                "extract(timezone_hour FROM now()) = 14' AS predicate; "
                "SET LOCAL TimeZone = 'Pacific/Kiritimati'; "
                "CREATE FUNCTION is_even(int) RETURNS boolean IMMUTABLE LANGUAGE sql "
                "RETURN $1 % 2 = 0"
            )
            batch = post(connection, "search_batch('items_v', 'queries', 'My_results')")
            begins = "begins when this transaction"
            with pytest.raises(psycopg.Error, match=begins), connection.transaction():
                connection.execute("SELECT pgembed.await_batch(%s)", [batch])
            assert fetch_all(other, "SELECT * FROM pgembed.batches") == []
        assert ended(other, batch)["state"] == "done"
    query = 'SELECT count(*), sum(tenant % 2) FROM "S".my_results JOIN items USING (id)'
    assert fetch_one(connection, query) == (10, 0)


@pytest.mark.parametrize("layout", [False, True])
def test_row_security_is_the_callers(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
    bob: tuple[str, str],
    layout: bool,
    tmp_path: Path,
) -> None:
    share(connection, alice[0], bob[0])
    connection.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
    for tenant, (name, _) in enumerate((alice, bob), 1):
        connection.execute(
            unsafe(
                f"CREATE POLICY p{tenant} ON items TO {name} USING (tenant={tenant})"
            )
        )
    with answering(dsn, cache_dir=tmp_path / "models"):
        if layout:
            built = post(connection, "build_layout('items_v', options => '{}')")
            assert ended(connection, built)["error"] is None
        for tenant, (_, role) in enumerate((alice, bob), 1):
            session = connect(role)
            batch = post(
                session, f"search_batch('items_v', 'queries', 'r{tenant}', 200, 1)"
            )
            row = ended(session, batch)
            assert (row["state"], row["rows"]) == ("done", 20 * 100)
            assert row["report"]["layout"].startswith("not used") != layout
    for tenant in (1, 2):
        query = f"SELECT DISTINCT tenant FROM r{tenant} JOIN items USING (id)"
        assert fetch_all(connection, unsafe(query)) == [(tenant,)]
    mine = fetch_all(connect(bob[1]), "SELECT caller::text FROM pgembed.batches")
    assert mine == [(bob[0],)]


def test_policies_may_read_settings(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
) -> None:
    share(connection, alice[0])
    connection.execute(
        "ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON items "
        "USING (tenant = current_setting('app.tenant', true)::int)"
    )
    session = connect(alice[1])
    session.execute("SET app.tenant = 2")
    call = "search_batch('items_v', 'queries', %s, 200, 1, settings => %s)"
    with answering(dsn):
        without = ended(session, post(session, call, "none", []))
        named = ended(session, post(session, call, "twos", ["app.tenant"]))
    assert (without["rows"], named["rows"]) == (0, 20 * 100)


ATTACKS = {
    "reset role": "EXECUTE 'RESET ROLE'",
    "set role none": "EXECUTE 'SET ROLE NONE'",
    "set role": "EXECUTE 'SET ROLE postgres'",
    "reset session": "EXECUTE 'RESET SESSION AUTHORIZATION'",
    "set session": "EXECUTE 'SET SESSION AUTHORIZATION postgres'",
    "set_config": "PERFORM set_config('role', 'none', false)",
    "discard": "EXECUTE 'SET SESSION AUTHORIZATION DEFAULT'",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
@pytest.mark.parametrize("place", ["predicate", "deferred trigger", "policy"])
def test_nothing_in_a_batch_gets_at_the_workers_role(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
    attack: str,
    place: str,
) -> None:
    """The attack is tried where the caller's code runs: it stays the caller."""
    name, role = alice
    share(connection, name)
    session = connect(role)
    session.execute(
        unsafe(f"""
        CREATE TABLE seen (session text, acting text);
        CREATE FUNCTION attack() RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            BEGIN
                {attack};
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
            INSERT INTO public.seen VALUES (session_user, current_user);
            RETURN true;
        END;
        $$;
        CREATE FUNCTION attack_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM public.attack();
            RETURN NULL;
        END;
        $$;
        CREATE TABLE results (query_id int, rank int, id int, distance float8);
        CREATE TABLE mine AS TABLE queries;
        """)
    )
    if place == "predicate":
        session.execute("UPDATE mine SET predicate = 'public.attack()'")
    elif place == "policy":
        session.execute(
            "ALTER TABLE mine ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; "
            "CREATE POLICY p ON mine USING (public.attack())"
        )
    else:
        session.execute(
            "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON results "
            "DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION attack_trigger()"
        )
    with answering(dsn):
        batch = post(session, "search_batch('items_v', 'mine', 'results')")
        row = ended(session, batch)
    assert row["state"] == "done", row["error"]
    seen = fetch_all(connection, "SELECT DISTINCT session, acting FROM seen")
    assert seen == [(name, name)]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_nor_does_the_workload_of_a_layout(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
    attack: str,
    tmp_path: Path,
) -> None:
    name, role = alice
    share(connection, name)
    connection.execute(unsafe(f"ALTER TABLE items OWNER TO {name}"))
    session = connect(role)
    session.execute(
        unsafe(f"""
        CREATE FUNCTION attack() RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            BEGIN
                {attack};
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
            RAISE EXCEPTION 'seen % %', session_user, current_user;
        END;
        $$;
        CREATE TABLE mine AS SELECT id, embedding, 'public.attack()' AS predicate
        FROM queries;
        """)
    )
    with answering(dsn, cache_dir=tmp_path / "models"):
        row = ended(session, post(session, "build_layout('items_v', 'mine')"))
    assert row["error"].splitlines()[0] == f"seen {name} {name}"


def test_who_posts_cannot_be_forged(
    connection: Connection, connect: Connect, items: str, alice: tuple[str, str]
) -> None:
    """Not even by a role that was granted more than it needs."""
    name, role = alice
    session = connect(role)
    connection.execute(unsafe(f"GRANT INSERT ON pgembed.batch TO {name}"))
    session.execute(
        "INSERT INTO pgembed.batch (kind, caller, caller_name, embedding, queries, "
        "results, k, recall, state, attempts, lease) VALUES ('search', 10, 'postgres', "
        "'items_v', 'public.queries', 'public.r', 10, 1, 'done', 7, 1)"
    )
    assert fetch_all(
        connection,
        "SELECT caller::regrole::text, caller_name, state, attempts, lease "
        "FROM pgembed.batch",
    ) == [(name, name, "waiting", 0, None)]
    for statement in (
        "UPDATE pgembed.batch SET caller = 10",
        "UPDATE pgembed.batch SET state = 'done'",
        "DELETE FROM pgembed.batch",
        "SELECT pgembed._claim_batch(gen_random_uuid(), '1 hour', 1)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(unsafe(statement))


def test_another_roles_batch_is_out_of_reach(
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
    bob: tuple[str, str],
) -> None:
    share(connection, alice[0])
    batch = post(connect(alice[1]), SEARCH)
    connection.execute("UPDATE pgembed.batch SET state = 'running', lease = 5")
    other = connect(bob[1])
    assert fetch_all(other, "SELECT * FROM pgembed.batches") == []
    assert fetch_one(other, "SELECT pgembed.cancel_batch(%s)", [batch]) == (False,)
    for session in (other, connection):
        with pytest.raises(psycopg.errors.SerializationFailure, match="not held"):
            session.execute("SELECT pgembed._finish_batch(%s, 5, 0, NULL)", [batch])


def test_a_batch_that_fails_leaves_nothing_and_says_why(
    dsn: str, connection: Connection, items: str
) -> None:
    connection.execute("UPDATE queries SET predicate = '1 / tenant > 0' WHERE id = 7")
    with answering(dsn):
        row = ended(connection, post(connection, SEARCH))
    assert (row["state"], row["error"]) == (
        "failed",
        "1 / tenant > 0: division by zero",
    )
    assert row["attempts"] == 1
    assert fetch_one(connection, "SELECT to_regclass('results')") == (None,)
    with pytest.raises(psycopg.Error, match=r"failed: 1 .* division by zero"):
        connection.execute("SELECT pgembed.await_batch(%s)", [row["id"]])


def test_a_role_that_may_not_read_gets_an_error(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
) -> None:
    connection.execute(unsafe(f"GRANT SELECT ON queries TO {alice[0]}"))
    session = connect(alice[1])
    with answering(dsn):
        row = ended(session, post(session, SEARCH))
    assert row["state"] == "failed"
    assert row["error"].startswith("permission denied for table items")


def test_a_cancelled_batch_leaves_nothing(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    create_results(connection)
    other = connect(dsn)
    with answering(dsn):
        with other.transaction():
            other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
            batch = post(connection, SEARCH)
            wait_until(lambda: waits_for_a_lock(connection))
            assert batch_of(connection, batch)["state"] == "running"
            assert cancel(connection, batch)
            row = ended(connection, batch)
        assert (row["state"], row["error"]) == ("cancelled", None)
        assert not waits_for_a_lock(connection)
        assert not cancel(connection, batch)
    assert fetch_one(connection, "SELECT count(*) FROM results") == (0,)


def test_a_batch_that_waits_can_be_cancelled(
    dsn: str, connection: Connection, items: str
) -> None:
    batch = post(connection, SEARCH)
    assert cancel(connection, batch)
    assert batch_of(connection, batch)["state"] == "cancelling"
    with answering(dsn):
        assert ended(connection, batch)["state"] == "cancelled"
    assert batch_of(connection, batch)["started_at"] is None


def test_a_killed_workers_batch_is_taken_up_by_another(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    create_results(connection)
    other = connect(dsn)
    with other.transaction():
        other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
        with child_process("calls", dsn, lease_seconds=1.0) as process:
            batch = post(connection, SEARCH)
            wait_until(lambda: waits_for_a_lock(connection))
            process.kill()
            process.wait()
        # Its process has nobody to report to, and ends with it.
        wait_until(lambda: not waits_for_a_lock(connection))
        assert batch_of(connection, batch)["state"] == "running"
        with answering(dsn, lease_seconds=1.0):
            wait_until(lambda: waits_for_a_lock(connection))
            assert batch_of(connection, batch)["attempts"] == 2
            other.execute("COMMIT; BEGIN")
            assert ended(connection, batch)["state"] == "done"
    assert fetch_one(connection, "SELECT count(*) FROM results") == (200,)


def test_a_killed_process_is_replaced(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    create_results(connection)
    other = connect(dsn)
    with answering(dsn), other.transaction():
        other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
        batch = post(connection, SEARCH)
        wait_until(lambda: waits_for_a_lock(connection))
        (process,) = batch_processes()
        # It yields to the process that answers calls, and to those that embed.
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, process) == min(own + 10, 19)
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: batch_of(connection, batch)["attempts"] == 2)
        wait_until(lambda: waits_for_a_lock(connection))
        other.execute("COMMIT; BEGIN")
        assert ended(connection, batch)["state"] == "done"
    assert fetch_one(connection, "SELECT count(*) FROM results") == (200,)


@pytest.mark.parametrize("noticed", [False, True])
def test_killed_while_it_commits(
    dsn: str, connection: Connection, connect: Connect, items: str, noticed: bool
) -> None:
    """The results are there once, whether or not the server still committed."""
    create_results(connection)
    connection.execute(
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$; "
        "CREATE CONSTRAINT TRIGGER pause AFTER INSERT ON results "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pause()"
    )
    other = connect(dsn)
    other.execute("SELECT pg_advisory_lock(7)")
    with answering(dsn):
        batch = post(connection, SEARCH)
        wait_until(lambda: waits_for_a_lock(connection))
        os.kill(batch_processes()[0], signal.SIGKILL)
        if noticed:
            wait_until(lambda: batch_of(connection, batch)["attempts"] == 2)
        other.execute("SELECT pg_advisory_unlock(7)")
        assert ended(connection, batch)["state"] == "done"
    assert fetch_one(connection, "SELECT count(*) FROM results") == (200,)


def test_a_role_that_cannot_log_in_any_more(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
) -> None:
    share(connection, alice[0])
    batch = post(connect(alice[1]), SEARCH)
    connection.execute(unsafe(f"ALTER ROLE {alice[0]} NOLOGIN"))
    with answering(dsn):
        row = ended(connection, batch)
    assert (row["state"], row["attempts"]) == ("failed", 3)
    assert row["error"].startswith(f"the worker cannot log in as '{alice[0]}'")
    assert "pg_hba.conf" in row["error"]


def test_a_batch_that_kills_its_process_is_given_up(
    dsn: str, connection: Connection, items: str
) -> None:
    """Its session is ended by the server each time."""
    connection.execute(
        "UPDATE queries SET predicate = 'pg_terminate_backend(pg_backend_pid())'"
    )
    with answering(dsn):
        row = ended(connection, post(connection, SEARCH))
    assert (row["state"], row["attempts"]) == ("failed", 3)
    assert "terminating connection" in row["error"]


def test_a_worker_that_stops_hands_its_batch_back(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    create_results(connection)
    other = connect(dsn)
    with other.transaction():
        other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
        with answering(dsn):
            batch = post(connection, SEARCH)
            wait_until(lambda: waits_for_a_lock(connection))
        row = batch_of(connection, batch)
        assert (row["state"], row["attempts"]) == ("waiting", 0)
        assert not waits_for_a_lock(connection)


def test_who_lost_the_lease_writes_nothing(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    """A worker that was taken for dead comes back when another has the batch."""
    create_results(connection)
    other = connect(dsn)
    with answering(dsn):
        with other.transaction():
            other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
            batch = post(connection, SEARCH)
            wait_until(lambda: waits_for_a_lock(connection))
            connection.execute("UPDATE pgembed.batch SET lease = lease + 1000")
        wait_until(lambda: not batch_sessions(connection))
    assert fetch_one(connection, "SELECT count(*) FROM results") == (0,)
    assert batch_of(connection, batch)["state"] == "running"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("NULL", "there is no batch NULL"), ("1, NULL", "the timeout is NULL")],
)
def test_waiting_for_nothing(
    connection: Connection, arguments: str, message: str
) -> None:
    with pytest.raises(psycopg.Error, match=message):
        connection.execute(f"SELECT pgembed.await_batch({arguments})".encode())


def test_waiting_for_a_batch_without_a_worker(
    connection: Connection, items: str
) -> None:
    """The error says so, unless one has it: such as a worker that runs once."""
    batch = post(connection, SEARCH)
    details = []
    for _ in range(2):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
            connection.execute("SELECT pgembed.await_batch(%s, '0 s')", [batch])
        details.append(error.value.diag.message_detail)
        connection.execute("SELECT pgembed._claim_batch(gen_random_uuid(), '1 h', 3)")
    assert details == [
        "No worker is running for this database: pgembed worker starts one.",
        "A worker is running for this database.",
    ]


def test_what_dies_again_and_again_is_given_up(
    connection: Connection, items: str
) -> None:
    batch = post(connection, SEARCH)
    claim = "SELECT state FROM pgembed._claim_batch(gen_random_uuid(), '0 s', 3)"
    states = [fetch_one(connection, claim)[0] for _ in range(4)]
    assert states == ["running"] * 3 + ["failed"]
    assert batch_of(connection, batch)["error"] == "its worker died (3 attempts)"
    assert fetch_one(connection, claim) is None


def test_a_role_that_was_dropped(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    with poster(dsn, connection) as (_, role):
        session = connect(role)
        batch = post(session, SEARCH)
        session.close()
    with answering(dsn):
        row = ended(connection, batch)
    assert row["error"].startswith("the role that posted the batch was dropped")


def test_a_role_of_the_same_number_is_not_who_posted(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
    bob: tuple[str, str],
) -> None:
    """As a restore into another cluster may leave it."""
    share(connection, alice[0], bob[0])
    batch = post(connect(alice[1]), SEARCH)
    connection.execute("UPDATE pgembed.batch SET caller = %s::text::regrole", [bob[0]])
    for _, role in (alice, bob):
        session = connect(role)
        assert fetch_all(session, "SELECT id FROM pgembed.batches") == []
        assert fetch_one(session, "SELECT pgembed.cancel_batch(%s)", [batch]) == (
            False,
        )
    with answering(dsn):
        row = ended(connection, batch)
    assert row["error"].startswith("the role that posted the batch was dropped")
    assert row["caller"] == alice[0]
    connection.execute("UPDATE pgembed.batch SET state = 'running', lease = 5")
    with pytest.raises(psycopg.errors.SerializationFailure, match="not held"):
        connect(bob[1]).execute("SELECT pgembed._finish_batch(%s, 5, 0, NULL)", [batch])


@pytest.mark.parametrize("parts", [[""], ["--schema-only", "--data-only"]])
def test_batches_are_restored_where_nobody_knows_who_posted(
    server: Databases,
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    tmp_path: Path,
    parts: list[str],
) -> None:
    with poster(dsn, connection) as (_, role):
        session = connect(role)
        batch = post(session, SEARCH)
        session.close()
        over = post(connection, SEARCH)
        connection.execute(
            "UPDATE pgembed.batch SET state = 'done' WHERE id = %s", [over]
        )
        for part in parts:
            run_program(
                server,
                "pg_dump",
                *["-Fc", "--no-owner", "--no-acl", f"--file={tmp_path / f'd{part}'}"],
                *filter(None, [part]),
                dsn,
            )
    with server.database("template0") as name:
        target = server.dsn(name)
        for part in parts:
            path = str(tmp_path / f"d{part}")
            run_program(server, "pg_restore", "-e", f"--dbname={target}", path)
        copy = connect(target)
        query = "SELECT * FROM pgembed.batch ORDER BY id"
        assert fetch_all(copy, query) == fetch_all(connection, query)
        with answering(target):
            row = ended(copy, batch)
        assert row["error"].startswith("the role that posted the batch was dropped")
        copy.close()


BEFORE_NAMES = """
    DROP VIEW pgembed.batches;
    DROP POLICY own ON pgembed.batch;
    ALTER TABLE pgembed.batch DROP COLUMN caller_name, ALTER COLUMN caller TYPE regrole;
    CREATE POLICY own ON pgembed.batch
    USING (pg_catalog.pg_has_role(caller, 'USAGE'));
    CREATE VIEW pgembed.batches AS SELECT id, caller, state FROM pgembed.batch;
    UPDATE pgembed.alembic_version SET version_num = '0012'
"""


def test_batches_from_before_callers_had_names(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
) -> None:
    name, role = alice
    share(connection, name)
    batch = post(connect(role), SEARCH)
    connection.execute(BEFORE_NAMES)
    connection.execute(unsafe(f"GRANT SELECT ON pgembed.batches TO {name}"))
    assert install(connection).changed
    session = connect(role)
    assert batch_of(session, batch)["caller"] == name
    with answering(dsn):
        assert ended(session, batch)["state"] == "done"


def test_calls_are_answered_where_batches_cannot_be(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """Beside a schema of another version, say."""
    add_good(connection, tmp_path)
    connection.execute("ALTER FUNCTION pgembed._claim_batch RENAME TO _gone")
    with answering(dsn):
        connection.execute("SET pgembed.call_timeout = '30s'")
        query = "SELECT pgembed.embed_query('tiny', 'a cat') IS NOT NULL"
        assert fetch_one(connection, query) == (True,)


def test_the_callers_turns_are_fair(
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
    bob: tuple[str, str],
) -> None:
    first, second = connect(alice[1]), connect(bob[1])
    share(connection, alice[0], bob[0])
    many = [post(first, SEARCH) for _ in range(3)]
    late = post(second, SEARCH)
    claim = "SELECT id FROM pgembed._claim_batch(gen_random_uuid(), '1 hour', 3)"
    order = [fetch_one(connection, claim)[0] for _ in range(4)]
    assert order == [many[0], late, many[1], many[2]]
    assert fetch_one(connection, claim) is None


def test_calls_and_embedding_go_on_beside_a_batch(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "a dog", "a man")
    embed_all(dsn)
    create_results(connection)
    connection.execute(
        "CREATE TABLE queries AS SELECT * FROM "
        "(VALUES (1, 'a dog'), (2, 'a man')) AS v (id, content)"
    )
    other = connect(dsn)
    with answering(dsn), embedding(dsn):
        with other.transaction():
            other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
            batch = post(
                connection, "search_batch('docs_body', 'queries', 'results', 1)"
            )
            wait_until(lambda: waits_for_a_lock(connection))
            connection.execute("SET pgembed.call_timeout = '30s'")
            vector = fetch_one(
                connection, "SELECT pgembed.embed_query('tiny', 'a cat')"
            )
            insert(connection, "a girl", first=4)
            wait_until(lambda: is_drained(connection))
            assert vector[0] is not None
        assert ended(connection, batch)["state"] == "done"
    query = "SELECT query_id, id FROM results ORDER BY 1"
    assert fetch_all(connection, query) == [(1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("search_batch('nothing', 'queries', 'r')", "no embedding 'nothing'"),
        ("search_batch('items_v', 'fleeting', 'r')", "fleeting is temporary"),
        ("search_batch('items_v', 'queries', 'pg_temp.r')", "would be temporary"),
        ("knn_join('items_v', 'PG_TEMP.\"r s\"')", "would be temporary"),
        ("search_batch('items_v', 'queries', 'r', k => 0)", "k is 0"),
        ("search_batch('items_v', 'queries', 'r', recall => 2)", "recall is 2"),
        ("search_batch('items_v', 'queries', NULL)", "table for results is NULL"),
        ("search_batch('items_v', NULL, 'r')", "table for queries is NULL"),
        ("search_batch('items_v', 'queries', 'a.b.c')", "cross-database"),
        (
            "search_batch('items_v', 'queries', 'r', settings => '{a.b}')",
            "no setting a.b",
        ),
        (
            "build_layout('items_v', settings => '{TimeZone,NULL}')",
            "one of the settings to keep is NULL",
        ),
    ],
)
def test_refused_at_once(
    connection: Connection, items: str, call: str, message: str
) -> None:
    connection.execute("CREATE TEMP TABLE fleeting AS TABLE queries")
    with pytest.raises(psycopg.Error, match=message):
        post(connection, call)
    assert fetch_all(connection, "SELECT * FROM pgembed.batches") == []


def test_only_roles_that_can_log_in_post(
    connection: Connection, items: str, alice: tuple[str, str]
) -> None:
    share(connection, alice[0])
    connection.execute(unsafe(f"ALTER ROLE {alice[0]} NOLOGIN"))
    connection.execute(unsafe(f"SET ROLE {alice[0]}"))
    with pytest.raises(psycopg.Error, match="cannot log in"):
        post(connection, SEARCH)
    connection.execute("RESET ROLE")


def test_layouts_are_for_owners(
    dsn: str,
    connection: Connection,
    connect: Connect,
    items: str,
    alice: tuple[str, str],
    tmp_path: Path,
) -> None:
    share(connection, alice[0])
    session = connect(alice[1])
    for call in ("build_layout('items_v')", "drop_layout('items_v')"):
        with pytest.raises(psycopg.Error, match="must be owner of table"):
            post(session, call)
    connection.execute(unsafe(f"ALTER TABLE items OWNER TO {alice[0]}"))
    options = '{"list_rows": 50, "least_rows": 20, "precision": "float16"}'
    with answering(dsn, cache_dir=tmp_path / "models"):
        built = ended(
            session,
            post(session, "build_layout('items_v', 'queries', %s)", options),
        )
        assert (built["state"], built["rows"]) == ("done", 300)
        bad = post(session, "build_layout('items_v', options => '{\"size\": 1}')")
        assert "no option 'size'" in ended(session, bad)["error"]
        bad = post(session, "build_layout('items_v', options => '{\"precision\": 16}')")
        assert ended(session, bad)["error"] == (
            "precision is 16, but must be 'float32' or 'float16'"
        )
        query = "SELECT rows, description ->> 'precision' FROM pgembed.layouts"
        assert fetch_one(session, query) == (300, "float16")
        assert (
            ended(session, post(session, "drop_layout('items_v')"))["state"] == "done"
        )
    assert fetch_all(session, "SELECT * FROM pgembed.layouts") == []


MEMORIES = {
    "search": "search_batch('items_v', 'queries', 'results', memory => %s)",
    "join": "knn_join('items_v', 'results', memory => %s)",
    "layout": "build_layout('items_v', memory => %s)",
    "layout's options": "build_layout('items_v', options => "
    "jsonb_strip_nulls(jsonb_build_object('memory', %s::text)))",
}


@pytest.mark.parametrize("call", MEMORIES.values(), ids=list(MEMORIES))
def test_the_caller_says_how_much_memory(
    dsn: str, connection: Connection, items: str, call: str, tmp_path: Path
) -> None:
    """At most what the worker allows, which is also what it takes unasked."""
    values = {"cache_dir": tmp_path / "models", "batch_memory": "100MB"}
    with answering(dsn, **values):
        more = ended(connection, post(connection, call, "102401 kB"))
        less = ended(connection, post(connection, call, "65536kB"))
        unasked = ended(connection, post(connection, call, None))
    assert (more["state"], more["attempts"]) == ("failed", 1)
    assert "asks for memory '102401 kB'" in more["error"]
    assert "100MB: post it with less, or start" in more["error"]
    if "layout" in call:
        assert (less["state"], less["rows"]) == ("done", 300)
        return
    assert [b["report"]["memory"] for b in (less, unasked)] == [64 << 20, 100 << 20]


@pytest.mark.parametrize("call", MEMORIES.values(), ids=list(MEMORIES))
@pytest.mark.parametrize("memory", ["63MB", "lots", "", "-1GB", "1e9", "9" * 99])
def test_memory_that_makes_no_sense_is_refused_when_posted(
    connection: Connection, items: str, call: str, memory: str
) -> None:
    with pytest.raises(SettingError):
        memory_bytes(memory)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="memory is '"):
        post(connection, call, memory)


@pytest.mark.parametrize(
    ("memory", "options", "message"),
    [
        ("1GB", '{"memory": "1GB"}', "memory is given twice"),
        (None, '{"memory": null}', "memory is NULL"),
        (None, '{"memory": 5}', "memory is '5', but a batch needs at least 64MB"),
        (None, '["memory"]', "options are"),
        ("1GB", "5", "options are 5"),
    ],
)
def test_options_that_make_no_sense_are_refused_when_posted(
    connection: Connection,
    items: str,
    memory: str | None,
    options: str,
    message: str,
) -> None:
    call = "build_layout('items_v', memory => %s, options => %s)"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
        post(connection, call, memory, options)


@pytest.mark.parametrize(
    "given", ["65536kB", "64MB", "67108864", "2 GB", "1TB", "99999TB"]
)
def test_sizes_are_those_of_python(connection: Connection, given: str) -> None:
    row = fetch_one(connection, "SELECT pgembed._memory_bytes(%s)", [given])
    assert row == (memory_bytes(given),)


def create_results(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE results (query_id int, rank int, id int, distance float8)"
    )


def batch_sessions(connection: Connection) -> int:
    connection.execute("SELECT pg_stat_clear_snapshot()")
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'pgembed batch'"
    )
    return int(fetch_one(connection, query)[0])


def cancel(connection: Connection, batch: int) -> bool:
    return bool(fetch_one(connection, "SELECT pgembed.cancel_batch(%s)", [batch])[0])
