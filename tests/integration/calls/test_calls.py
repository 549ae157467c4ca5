"""SQL functions that ask a worker for vectors."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgembed.embeddings import calls
from pgembed.models.session import Model
from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.postgres.resources import Resources
from pgembed.postgres.schema import install
from pgembed.postgres.server_checks import check_call
from pgembed.postgres.transports import Wish
from pgembed.worker.leases import Identity
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.link import Link
from pgembed.worker.pending import Call
from pgembed.worker.tablecalls import TableCalls, prepare_connection
from tests.conftest import Connect
from tests.harness import tiny_models
from tests.harness.models import register_model
from tests.harness.roles import ordinary_role
from tests.harness.server import Databases
from tests.integration.worker.running import (
    Connection,
    add_tiny,
    answering,
    wait_until,
)

# What only this transport has: a second session, and a table of calls.
over_dblink = pytest.mark.parametrize("transport", ["dblink"], indirect=True)


@pytest.fixture
def shared(connection: Connection) -> None:
    """Let everybody use dblink, so that no connection is kept."""
    connection.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC")


def value(connection: Connection, query: Any, *parameters: object) -> Any:
    return fetch_one(connection, query, parameters)[0]


def second_sessions(connection: Connection) -> int:
    return int(
        value(
            connection,
            """
            SELECT count(*) FROM pg_stat_activity
            WHERE application_name = 'pgembed call' AND datname = current_database()
            """,
        )
    )


def count_calls(connection: Connection) -> None:
    connection.execute("SET track_functions = 'all'")


def calls_made(connection: Connection) -> int:
    """Return how often a worker was asked by this session; it must be counting."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    query = """
        SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions
        WHERE schemaname = 'pgembed' AND funcname = '_call'
    """
    return int(value(connection, query))


def is_calling(connection: Connection) -> bool:
    """Whether another session of the database is in a call."""
    query = """
        SELECT EXISTS (SELECT FROM pg_stat_activity
        WHERE state = 'active' AND query ~ '^SELECT pgembed.embed'
            AND datname = current_database())
    """
    return bool(value(connection, query))


def calls_waiting(connection: Connection) -> int:
    query = "SELECT count(*) FROM pgembed.call WHERE NOT answered"
    return int(value(connection, query))


@pytest.mark.usefixtures("worker")
def test_texts_become_vectors(connection: Connection, model: Model) -> None:
    document = value(connection, "SELECT pgembed.embed('tiny', 'the dog')")
    query = value(connection, "SELECT pgembed.embed_query('tiny', 'the dog')")
    np.testing.assert_allclose(document, model.embed(["the dog"])[0], atol=1e-6)
    np.testing.assert_allclose(query, model.embed(["red the dog"])[0], atol=1e-6)
    assert calls_waiting(connection) == 0


@pytest.mark.usefixtures("worker")
def test_a_batch_keeps_its_order_and_its_gaps(
    connection: Connection, model: Model
) -> None:
    texts = ["a cat", None, "the dog", " ", *[f"food {i}" for i in range(50)]]
    rows = connection.execute(
        "SELECT v FROM unnest(pgembed.embed_batch('tiny', %s)) WITH ORDINALITY"
        " AS u (v, n) ORDER BY n",
        [texts],
    ).fetchall()
    given = [row[0] for row in rows]
    assert [i for i, v in enumerate(given) if v is None] == [1, 3]
    wanted = model.embed([t for t in texts if t and t.strip()])
    np.testing.assert_allclose([v for v in given if v is not None], wanted, atol=1e-6)


@pytest.mark.usefixtures("model")
def test_no_text_is_no_call(connection: Connection) -> None:
    count_calls(connection)
    assert value(connection, "SELECT pgembed.embed('tiny', NULL)") is None
    assert value(connection, "SELECT pgembed.embed_query('tiny', e' \n')") is None
    empty = "SELECT cardinality(pgembed.embed_batch('tiny', '{}'))"
    assert value(connection, empty) == 0
    assert calls_made(connection) == 0


@pytest.mark.usefixtures("worker")
def test_order_by_uses_the_index_and_asks_once(
    connection: Connection, model: Model
) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, v vector(8))")
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO items VALUES (%s, %s)",
            list(enumerate(model.embed([f"food {i}" for i in range(300)]))),
        )
    connection.execute("CREATE INDEX ON items USING hnsw (v vector_cosine_ops)")
    query = "SELECT id FROM items ORDER BY v <=> pgembed.embed_query('tiny', 'food 7')"
    plan = connection.execute(f"EXPLAIN {query} LIMIT 5").fetchall()
    assert "Index Scan using items_v_idx" in str(plan)
    count_calls(connection)
    before = calls_made(connection)
    connection.execute(f"{query} LIMIT 5")
    assert calls_made(connection) == before + 1

    connection.execute("SET enable_indexscan = off")
    connection.execute(f"{query} LIMIT 5")
    assert calls_made(connection) == before + 2
    assert not value(connection, REMEMBERED)


REMEMBERED = "SELECT current_setting('pgembed.last_answer', true)"


@pytest.mark.usefixtures("worker")
def test_what_is_remembered_cannot_be_forged(
    connection: Connection, model: Model
) -> None:
    """A caller changes the setting between two calls of one statement."""
    embed = "pgembed.embed('tiny', 'a cat')"
    forge = (
        "set_config('pgembed.last_answer', "
        "left(current_setting('pgembed.last_answer'), 32) || '[9,9,9,9,9,9,9,9]', true)"
    )
    row = fetch_one(connection, f"SELECT {embed}, {forge}, {embed}")
    assert row[1].endswith("[9,9,9,9,9,9,9,9]")
    for vector in (row[0], row[2]):
        np.testing.assert_allclose(vector, model.embed(["a cat"])[0], atol=1e-6)


@pytest.mark.usefixtures("worker")
def test_a_function_can_keep_what_is_remembered_to_itself(
    connection: Connection,
) -> None:
    """As SECURITY.md advises those who embed what their callers may not know."""
    connection.execute(
        "CREATE FUNCTION hidden() RETURNS int LANGUAGE sql SECURITY DEFINER "
        "SET pgembed.last_answer = '' "
        "RETURN vector_dims(pgembed.embed('tiny', 'secret'))"
    )
    with connection.transaction():
        assert value(connection, "SELECT hidden()") == 8
        assert not value(connection, REMEMBERED)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "mode",
    ["READ ONLY", "ISOLATION LEVEL REPEATABLE READ", "ISOLATION LEVEL SERIALIZABLE"],
)
def test_in_any_transaction(connection: Connection, mode: str) -> None:
    with connection.transaction():
        connection.execute(f"SET TRANSACTION {mode}".encode())
        for text in ("a cat", "the dog"):
            query = "SELECT pgembed.embed('tiny', %s)"
            assert value(connection, query, text) is not None
        texts = [f"food {i}" for i in range(20)]
        batch = "SELECT array_position(pgembed.embed_batch('tiny', %s), NULL)"
        assert value(connection, batch, texts) is None


LEFT = "SELECT count(*), min(cardinality(vectors)) FROM pgembed.call WHERE answered"


@pytest.mark.usefixtures("worker")
def test_many_vectors_are_read_where_the_worker_left_them(
    connection: Connection, model: Model
) -> None:
    texts = [f"food {i}" for i in range(20)]
    query = "SELECT pgembed.embed_batch('tiny', %s)"
    np.testing.assert_allclose(
        value(connection, query, texts), model.embed(texts), atol=1e-6
    )
    assert fetch_one(connection, LEFT) == (1, 20)
    connection.execute("UPDATE pgembed.call SET expires_at = clock_timestamp()")
    wait_until(lambda: value(connection, "SELECT count(*) FROM pgembed.call") == 0)
    with pytest.raises(errors.ExternalRoutineException, match="the model failed"):
        value(connection, query, [*texts, "poison"])
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert len(value(connection, query, texts)) == 20
    assert value(connection, "SELECT count(vectors) FROM pgembed.call") == 0


def test_vectors_that_are_gone_are_an_error(connection: Connection) -> None:
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"call 7 .*in time"):
        connection.execute("SELECT pgembed._left_vectors(7)")


@over_dblink
@pytest.mark.usefixtures("worker")
def test_a_connection_is_kept_and_replaced_when_it_died(connection: Connection) -> None:
    query = "SELECT pgembed.embed('tiny', %s)"
    for text in ("a cat", "the dog"):
        assert value(connection, query, text) is not None
        assert second_sessions(connection) == 1
    connection.execute(
        """
        SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE application_name = 'pgembed call' AND datname = current_database()
        """
    )
    assert value(connection, query, "a man") is not None
    assert second_sessions(connection) == 1


@over_dblink
@pytest.mark.usefixtures("worker")
def test_a_connection_of_the_user_s_is_left_alone(connection: Connection) -> None:
    # It leads to another database, and has not pgembed's settings.
    own = (
        "SELECT dblink_connect_u('pgembed', pgembed._loopback() || ' dbname=postgres')"
    )
    value(connection, own)
    assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None
    with pytest.raises(errors.Error, match="not registered"):
        connection.execute("SELECT pgembed.embed('nobody', 'a man')")
    query = (
        "SELECT d.name FROM dblink('pgembed', 'SELECT current_database()') "
        "AS d (name text)"
    )
    assert value(connection, query) == "postgres"


@over_dblink
def test_a_second_session_that_is_refused_says_why(connection: Connection) -> None:
    register_model(connection)
    connection.execute(
        "CREATE OR REPLACE FUNCTION pgembed._loopback() RETURNS text LANGUAGE sql "
        "RETURN 'host=/nowhere'"
    )
    with pytest.raises(errors.OperationalError, match="second session") as caught:
        connection.execute("SELECT pgembed.embed('tiny', 'a cat')")
    assert "/nowhere" in str(caught.value.diag.message_detail)
    assert "CREATE USER MAPPING FOR postgres" in str(caught.value.diag.message_hint)
    finding = next(check_call(connection, ["tiny"]))
    assert "/nowhere" in finding.message
    assert "CREATE USER MAPPING" in finding.remedy


@over_dblink
@pytest.mark.usefixtures("worker", "shared")
def test_no_connection_is_kept_that_others_could_use(connection: Connection) -> None:
    assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None
    assert value(connection, "SELECT dblink_get_connections()") is None
    wait_until(lambda: second_sessions(connection) == 0)


@pytest.mark.usefixtures("worker")
def test_a_role_needs_execute_and_nothing_more(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    with ordinary_role(dsn, may_create=False) as role_dsn:
        role = sql.Identifier(str(conninfo_to_dict(role_dsn)["user"]))
        user = connect(role_dsn)
        with pytest.raises(errors.InsufficientPrivilege):
            user.execute("SELECT pgembed.embed('tiny', 'a cat')")
        connection.execute(
            sql.SQL(
                "GRANT USAGE ON SCHEMA pgembed TO {0};"
                "GRANT EXECUTE ON FUNCTION pgembed.embed(text, text) TO {0}"
            ).format(role)
        )
        assert value(user, "SELECT pgembed.embed('tiny', 'a cat')") is not None
        for inner in ("_dial('a')", "_kept_connection()", "_talk('look')"):
            with pytest.raises(
                (errors.InsufficientPrivilege, errors.UndefinedFunction)
            ):
                user.execute(f"SELECT pgembed.{inner}".encode())


def test_an_owner_without_superuser_rights_is_told_what_to_create(
    empty_dsn: str, connect: Connect
) -> None:
    superuser = connect(empty_dsn)
    superuser.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
    with ordinary_role(empty_dsn) as role_dsn:
        owner = connect(role_dsn)
        install(owner)
        register_model(owner)
        with pytest.raises(errors.InsufficientPrivilege) as caught:
            owner.execute("SELECT pgembed.embed('tiny', 'a cat')")
        assert "CREATE SERVER pgembed_calls" in str(caught.value.diag.message_hint)
        assert value(owner, "SELECT dblink_get_connections()") is None
        owner.close()


def call_through_server(connection: Connection, user: str = "postgres") -> None:
    """Make the foreign server by which calls of this database reach it again."""
    address = conninfo_to_dict(connection.info.dsn)
    options = sql.SQL("OPTIONS (host {}, port {}, dbname {})").format(
        sql.Literal(address["host"]),
        sql.Literal(str(connection.info.port)),
        sql.Literal(connection.info.dbname),
    )
    connection.execute(
        sql.SQL(
            "CREATE SERVER pgembed_calls FOREIGN DATA WRAPPER dblink_fdw {};"
            "CREATE USER MAPPING FOR CURRENT_USER SERVER pgembed_calls"
            " OPTIONS (user {})"
        ).format(options, sql.Literal(user))
    )


@over_dblink
@pytest.mark.usefixtures("model")
def test_a_copy_does_not_call_the_database_it_was_made_from(
    dsn: str, connection: Connection, databases: Databases, connect: Connect
) -> None:
    call_through_server(connection)
    original = connection.info.dbname
    connection.close()
    with databases.database(original) as name, answering(dsn):
        copy = connect(databases.dsn(name))
        with pytest.raises(
            errors.ObjectNotInPrerequisiteState, match="leads to another database"
        ) as caught:
            copy.execute("SELECT pgembed.embed('tiny', 'a cat')")
        (finding,) = check_call(copy, ["tiny"])
        assert "leads to another database" in finding.message
        hint = str(caught.value.diag.message_hint)
        (remedy,) = re.findall(r"ALTER SERVER [^;]*\)", hint)
        copy.execute(remedy.encode())
        with answering(databases.dsn(name)):
            assert value(copy, "SELECT pgembed.embed('tiny', 'a cat')") is not None
        copy.close()


@over_dblink
@pytest.mark.usefixtures("model")
def test_a_server_that_leads_to_a_database_without_pgembed(
    connection: Connection,
) -> None:
    call_through_server(connection)
    connection.execute("ALTER SERVER pgembed_calls OPTIONS (SET dbname 'postgres')")
    with pytest.raises(
        errors.ObjectNotInPrerequisiteState, match="leads to another database"
    ) as caught:
        connection.execute("SELECT pgembed.embed('tiny', 'a cat')")
    assert caught.value.diag.message_detail == "There is no pgembed in that one."
    assert value(connection, "SELECT dblink_get_connections()") is None


@over_dblink
@pytest.mark.usefixtures("worker")
def test_a_server_whose_role_may_not_name_its_database(
    dsn: str, connection: Connection
) -> None:
    with ordinary_role(dsn) as role_dsn:
        role = str(conninfo_to_dict(role_dsn)["user"])
        call_through_server(connection, role)
        connection.execute(
            sql.SQL(
                "GRANT USAGE ON SCHEMA pgembed TO {0};"
                "GRANT ALL ON ALL TABLES IN SCHEMA pgembed TO {0};"
                "GRANT ALL ON ALL FUNCTIONS IN SCHEMA pgembed TO {0};"
                "REVOKE ALL ON FUNCTION pgembed._database_name FROM {0}"
            ).format(sql.Identifier(role))
        )
        assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None
        connection.close()


@pytest.mark.usefixtures("worker")
def test_the_model_s_error_is_an_sql_error(connection: Connection) -> None:
    with pytest.raises(errors.ExternalRoutineException, match="the model failed"):
        connection.execute("SELECT pgembed.embed('tiny', 'poison')")
    assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None


@pytest.mark.usefixtures("worker")
def test_an_unknown_model_is_named_at_once(connection: Connection) -> None:
    with pytest.raises(errors.UndefinedObject, match="'tinny'") as caught:
        connection.execute("SELECT pgembed.embed('tinny', 'a cat')")
    assert "tiny" in str(caught.value.diag.message_hint)
    assert caught.value.diag.message_detail != ""


@over_dblink
@pytest.mark.usefixtures("worker")
def test_errors_do_not_tell_the_name_of_the_kept_connection(
    connection: Connection,
) -> None:
    """Who knows it could bring a connection of that name, and read the answers."""
    name = str(value(connection, "SELECT pgembed._kept_connection()"))
    for kept in (False, True):
        assert (second_sessions(connection) == 1) == kept
        with pytest.raises(errors.UndefinedObject) as caught:
            connection.execute("SELECT pgembed.embed('tinny', 'a cat')")
        assert name not in str(caught.value)
        connection.execute("SELECT pgembed.embed('tiny', 'a cat')")
    connection.execute("ALTER FUNCTION pgembed._fetch_answer RENAME TO _gone")
    # A snapshot of its own, so that the answer is fetched over dblink.
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    with pytest.raises(errors.UndefinedFunction) as undefined:
        connection.execute("SELECT pgembed.embed('tiny', 'a dog')")
    assert "_fetch_answer" in str(undefined.value.diag.message_primary)
    assert name not in str(undefined.value)


@pytest.mark.usefixtures("model")
def test_without_a_worker(connection: Connection) -> None:
    connection.execute("SET pgembed.call_timeout = '200ms'")
    with pytest.raises(
        errors.ObjectNotInPrerequisiteState, match=r"no worker answered within 0\.2 s"
    ) as caught:
        connection.execute("SELECT pgembed.embed('tiny', 'a cat')")
    assert "pgembed worker --dsn" in str(caught.value.diag.message_hint)
    assert calls_waiting(connection) == 0


def test_a_worker_that_comes_while_the_caller_waits(
    dsn: str, connection: Connection, connect: Connect, model: Model
) -> None:
    answers: list[Any] = []
    caller = connect(dsn)
    caller.execute("SET pgembed.call_timeout = '60s'")
    query = "SELECT pgembed.embed('tiny', 'a cat')"
    thread = threading.Thread(target=lambda: answers.append(value(caller, query)))
    thread.start()
    wait_until(lambda: is_calling(connection))
    with answering(dsn):
        thread.join(30)
    np.testing.assert_allclose(answers[0], model.embed(["a cat"])[0], atol=1e-6)


CALL_LOCKS = """
    SELECT l.granted FROM pg_catalog.pg_locks AS l
    INNER JOIN pg_catalog.pg_database AS d ON d.oid = l.database
    WHERE l.locktype = 'advisory' AND d.datname = current_database() ORDER BY l.granted
"""


@pytest.mark.usefixtures("model")
@over_dblink
def test_a_caller_sleeps_while_a_worker_has_its_call(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    answers: list[Any] = []
    caller, worker = connect(dsn), connect(dsn)
    caller.execute("SET pgembed.call_timeout = '60s'")
    query = "SELECT pgembed.embed('tiny', 'a cat')::text"
    thread = threading.Thread(target=lambda: answers.append(value(caller, query)))
    thread.start()
    wait_until(lambda: calls_waiting(connection) == 1)
    me = uuid4()
    (call,) = calls.take(worker, me, [value(connection, "SELECT id FROM pgembed.call")])
    wait_until(lambda: fetch_all(connection, CALL_LOCKS) == [(False,), (True,)])
    answer = calls.Answer(call.id, np.array([[1, 2, 3]], np.float32))
    calls.answer(worker, me, [answer], locked=[call.id])
    thread.join(30)
    assert answers == ["[1,2,3]"]
    assert fetch_all(connection, CALL_LOCKS) == []


@pytest.mark.usefixtures("worker")
@over_dblink
def test_somebody_else_s_lock_keeps_no_answer_back(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    connect(dsn).execute(
        "SELECT pg_advisory_lock(pgembed._call_lock(n)) FROM generate_series(1, 9) AS n"
    )
    assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None
    query = "SELECT last_value < 9 FROM pgembed.call_id_seq"
    assert value(connection, query), "the call had another lock"


@pytest.mark.parametrize("text", ["soon", "-1s", "0", "2 days", "99999999999 years"])
def test_a_timeout_that_makes_no_sense(connection: Connection, text: str) -> None:
    connection.execute("SELECT set_config('pgembed.call_timeout', %s, false)", [text])
    with pytest.raises(errors.InvalidParameterValue, match="no time to wait"):
        connection.execute("SELECT pgembed.embed('tiny', 'a cat')")


@pytest.mark.usefixtures("model", "shared")
@over_dblink
def test_cancel_acts_promptly_on_a_connection_that_is_not_kept(
    connection: Connection,
) -> None:
    check_cancel_and_timeout(connection)


@pytest.mark.usefixtures("model")
def test_cancel_and_timeout_act_promptly(connection: Connection) -> None:
    check_cancel_and_timeout(connection)


def check_cancel_and_timeout(connection: Connection) -> None:
    connection.execute("SET pgembed.call_timeout = '3s'")
    connection.execute("SET statement_timeout = '300ms'")
    query = "SELECT pgembed.embed('tiny', 'a cat')"
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(errors.QueryCanceled):
            connection.execute(query)
        assert time.monotonic() - started < 1
    connection.execute("SET statement_timeout = 0")
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()
    with pytest.raises(errors.QueryCanceled):
        connection.execute(query)
    timer.join()
    wait_until(lambda: second_sessions(connection) == 0)
    with answering(connection.info.dsn):
        assert value(connection, query) is not None
        wait_until(lambda: calls_waiting(connection) == 0)


def test_the_error_says_no_more_than_is_known(connection: Connection) -> None:
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        connection.execute("SELECT pgembed._no_answer('5 s')")
    assert str(caught.value.diag.message_detail).endswith("for this database.")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("shop", "Start one with: pgembed worker --dsn 'dbname=shop ...'"),
        ("a 'shop'", "Start one with: pgembed worker --dsn '...'"),
    ],
)
def test_a_command_with_the_name_of_the_database_can_be_run(
    databases: Databases, connect: Connect, name: str, hint: str
) -> None:
    admin = connect(databases.dsn())
    template = databases.installed_template()
    admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    try:
        with (
            connect(make_conninfo(databases.dsn(), dbname=name)) as connection,
            pytest.raises(errors.ObjectNotInPrerequisiteState) as caught,
        ):
            connection.execute("SELECT pgembed._no_answer('5 s')")
        assert caught.value.diag.message_hint == hint
    finally:
        admin.execute(f'DROP DATABASE "{name}"'.encode())


@pytest.mark.parametrize(
    ("encoding", "bad", "error"),
    [
        (
            "SQL_ASCII",
            "convert_from(decode('e9e820', 'hex'), 'SQL_ASCII')",
            errors.CharacterNotInRepertoire,
        ),
        ("WIN1252", "chr(129)", errors.UntranslatableCharacter),
    ],
)
def test_what_cannot_be_utf_8_is_refused(
    transport: str,
    databases: Databases,
    connect: Connect,
    tmp_path: Path,
    encoding: str,
    bad: str,
    error: type[Exception],
) -> None:
    admin = connect(databases.dsn())
    admin.execute(
        f"CREATE DATABASE encoded ENCODING '{encoding}' LOCALE 'C' "
        "TEMPLATE template0".encode()
    )
    try:
        connection = connect(databases.dsn("encoded"))
        wish: Wish = "plpython" if transport == "plpython" else "dblink"
        install(connection, transport=wish, socket_dir=str(databases.socket_dir))
        add_tiny(connection, tiny_models.good_model(tmp_path / "good"))
        with answering(databases.dsn("encoded")):
            for call in (f"embed('tiny', {bad})", f"embed_batch('tiny', ARRAY[{bad}])"):
                with pytest.raises(error, match="UTF8"):
                    connection.execute(f"SELECT pgembed.{call}".encode())
            good = "SELECT pgembed.embed('tiny', 'é')"
            assert value(connection, good) is not None
    finally:
        admin.execute("DROP DATABASE encoded WITH (FORCE)")


@over_dblink
def test_ids_that_begin_anew_mix_up_no_answers(
    dsn: str, connection: Connection, model: Model
) -> None:
    """A server that crashed comes back with an empty table of calls."""
    lifetime = Lifetime(5)
    link = Link(dsn, "calls", lifetime, opened=prepare_connection)
    table = TableCalls(link, Identity("calls", link), lambda *_: None)
    taken: list[Call] = []
    for count in (1, 2):
        connection.execute("TRUNCATE pgembed.call RESTART IDENTITY")
        link.close()
        post = "SELECT pgembed._post_call('document', 'tiny', '{a}', '1 min')"
        assert value(connection, post) == 1
        while len(taken) < count:
            taken += table.take(10)
    earlier, later = taken
    answers = np.eye(2, model.dimensions, dtype=np.float32)
    table.answer([(earlier, answers[:1])])
    assert calls_waiting(connection) == 1
    assert table.has_caller(later)
    table.answer([(later, answers[1:])])
    link.close()
    assert value(connection, "SELECT (vectors[1])::real[] FROM pgembed.call") == (
        answers[1].tolist()
    )


@pytest.mark.usefixtures("worker")
@over_dblink
@pytest.mark.parametrize("payload", ["²", "9" * 30, "-1", "", "x"])
def test_anybody_may_notify_of_anything(connection: Connection, payload: str) -> None:
    connection.execute("SELECT pg_notify('pgembed_call', %s)", [payload])
    assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None


@over_dblink
@pytest.mark.usefixtures("worker")
def test_a_connection_that_others_could_open_is_not_trusted(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    """It might lead to a server of theirs, whose answers name the calls of others."""
    call = "SELECT pgembed.embed('tiny', 'a cat')"
    other = connect(dsn)
    assert value(other, call) is not None
    (name,) = value(other, "SELECT dblink_get_connections()")
    value(
        connection,
        "SELECT dblink_connect_u(%s, pgembed._loopback() || ' dbname=postgres')",
        name,
    )
    assert value(connection, call) is not None
    assert len(value(connection, "SELECT dblink_get_connections()")) == 2
    with (
        ordinary_role(dsn, may_create=False) as role_dsn,
        pytest.raises(errors.InsufficientPrivilege),
    ):
        connect(role_dsn).execute("SELECT * FROM pgembed.call_secret")


@over_dblink
@pytest.mark.usefixtures("worker")
def test_without_its_secret_no_connection_is_kept(connection: Connection) -> None:
    connection.execute("DELETE FROM pgembed.call_secret")
    assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None
    assert value(connection, "SELECT dblink_get_connections()") is None


@pytest.mark.usefixtures("worker")
def test_however_strings_are_written(connection: Connection) -> None:
    connection.execute(
        "SET standard_conforming_strings = off; SET escape_string_warning = off"
    )
    assert value(connection, "SELECT pgembed.embed('tiny', 'a cat')") is not None
    query = "SELECT pgembed.embed_batch('tiny', ARRAY['a cat', ' '])::text[]"
    (first, second) = value(connection, query)
    assert first is not None
    assert second is None


def test_a_caller_that_is_cancelled_frees_the_worker(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_tiny(connection, tiny_models.slow_model(tmp_path / "slow", steps=5000))
    texts = ["slow"] * 10_000
    with answering(dsn):
        value(connection, "SELECT pgembed.embed('tiny', 'warm')")
        connection.execute("SET pgembed.call_timeout = '60s'")
        connection.execute("SET statement_timeout = '1s'")
        with pytest.raises(errors.QueryCanceled):
            connection.execute("SELECT pgembed.embed_batch('tiny', %s)", [texts])
        connection.execute("SET statement_timeout = '5s'")
        wait_until(lambda: calls_waiting(connection) == 0)
        query = "SELECT cardinality(pgembed.embed_batch('tiny', %s))"
        assert value(connection, query, ["a cat"] * 6) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("embed('tiny', repeat('x', 1000001))", "1000000 characters"),
        ("embed_batch('tiny', array_fill('x'::text, array[10001]))", "10000 texts"),
    ],
)
def test_limits(connection: Connection, call: str, message: str) -> None:
    with pytest.raises(errors.ProgramLimitExceeded, match=message):
        connection.execute(f"SELECT pgembed.{call}".encode())


@pytest.mark.parametrize("source", ["/etc", "./model", "../model", "~/model", "a/b/c"])
def test_no_folder_is_read_for_sql(connection: Connection, source: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="model source") as caught:
        connection.execute("SELECT pgembed.add_model('m', %s)", [source])
    assert "pgembed model add" in str(caught.value.diag.message_hint)


@pytest.mark.parametrize(
    ("name", "source", "command"),
    [
        ("m", "../model", "pgembed model add m ../model"),
        ("m'; n", "$(id)", "pgembed model add NAME FOLDER"),
    ],
)
def test_a_command_with_the_names_of_a_model_can_be_run(
    connection: Connection, name: str, source: str, command: str
) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        connection.execute("SELECT pgembed.add_model(%s, %s)", [name, source])
    assert str(caught.value.diag.message_hint).endswith(f": {command}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'m', 'minilm', '[1]'", "are [1], but must be an object"),
        ("'m', 'minilm', 'null'", "are null, but must be an object"),
        ("repeat('é', 128), 'minilm'", "has 256 bytes"),
        ("NULL, 'minilm'", "the name of a model is NULL"),
        ("'m', NULL", "does not read the model source NULL"),
        (
            "'m', 'minilm', jsonb_build_object('a', repeat('x', 100000))",
            "have 100009 bytes, more than 100000",
        ),
    ],
)
def test_what_no_model_can_have_is_refused_at_once(
    connection: Connection, arguments: str, message: str
) -> None:
    with pytest.raises(errors.Error, match=re.escape(message)):
        connection.execute(f"SELECT pgembed.add_model({arguments})".encode())


@pytest.mark.usefixtures("worker")
def test_add_model_asks_the_worker(connection: Connection) -> None:
    for arguments in ("'m', 'tests'", "'m', 'tests', NULL"):
        with pytest.raises(errors.ExternalRoutineException, match="neither a folder"):
            connection.execute(f"SELECT pgembed.add_model({arguments})".encode())


@over_dblink
def test_without_dblink_both_remedies_are_named(
    connection: Connection, model: Model
) -> None:
    files = Resources.found().sql_files("none")
    (path,) = [f for f in files if "61_calls" in f.name]
    text = path.read_text().replace("@extschema:vector@", "public")
    connection.execute(text.encode())
    with pytest.raises(errors.FeatureNotSupported) as caught:
        connection.execute("SELECT pgembed.embed('tiny', 'a cat')")
    hint = str(caught.value.diag.message_hint)
    assert "dblink" in hint
    assert "plpython3u" in hint
