"""Connections: their settings, their errors, snapshots."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgembed.errors import ConnectError, PgembedError
from pgembed.postgres.connection import (
    backoff,
    extension_schema,
    fetch_one,
    is_transient,
    snapshot,
)
from tests.conftest import Connect

Connection = psycopg.Connection[Any]


def test_settings_of_a_connection(dsn: str, connect: Connect) -> None:
    connection = connect(dsn, purpose="worker")
    assert fetch_one(connection, "SHOW application_name") == ("pgembed worker",)
    assert fetch_one(connection, "SHOW client_encoding") == ("UTF8",)
    assert connection.autocommit
    assert connection.prepare_threshold is None
    assert connection.info.get_parameters()["connect_timeout"] == "10"


def test_dsn_overrides_timeouts(dsn: str, connect: Connect) -> None:
    connection = connect(f"{dsn}&connect_timeout=3&keepalives_idle=7")
    parameters = connection.info.get_parameters()
    assert (parameters["connect_timeout"], parameters["keepalives_idle"]) == ("3", "7")


@pytest.mark.parametrize("named", ["dsn", "environment"])
def test_a_service_overrides_timeouts(
    dsn: str,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: str,
) -> None:
    file = tmp_path / "services"
    file.write_text("[mine]\nconnect_timeout=3\nkeepalives_idle=7\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    if named == "environment":
        monkeypatch.setenv("PGSERVICE", "mine")
        connection = connect(dsn)
    else:
        connection = connect(f"{dsn}&service=mine&keepalives_idle=8")
    parameters = connection.info.get_parameters()
    assert parameters["connect_timeout"] == "3"
    assert parameters["keepalives_idle"] == ("7" if named == "environment" else "8")
    assert parameters["keepalives_count"] == "3"


def test_the_environment_overrides_timeouts(
    dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert connect(dsn).info.get_parameters()["connect_timeout"] == "4"
    parameters = connect(f"{dsn}&connect_timeout=5").info.get_parameters()
    assert parameters["connect_timeout"] == "5"


@pytest.mark.parametrize(
    ("style", "wanted"),
    [
        ("SQL, DMY", datetime.date(2003, 1, 2)),
        ("SQL, MDY", datetime.date(2003, 2, 1)),
        ("ISO, YMD", datetime.date(2002, 1, 3)),
    ],
)
def test_dates_are_read_whatever_the_database_s_style(
    dsn: str,
    connect: Connect,
    connection: Connection,
    style: str,
    wanted: datetime.date,
) -> None:
    """Days and months stay in its order, in which literals are written."""
    alter = sql.SQL("ALTER DATABASE {} SET datestyle = {}")
    connection.execute(
        alter.format(sql.Identifier(connection.info.dbname), sql.Literal(style))
    )
    query = "SELECT date '02-01-03', timestamptz '2026-01-02 03:04:05+00'"
    day, moment = fetch_one(connect(dsn), query)
    assert day == wanted
    assert moment == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def test_transactions_on_request(dsn: str, connect: Connect) -> None:
    connection = connect(dsn, autocommit=False)
    assert connection.info.transaction_status.name == "IDLE"
    connection.execute("SELECT 1")
    assert connection.info.transaction_status.name == "INTRANS"


def test_libpq_variables_decide_without_dsn(
    dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = psycopg.conninfo.conninfo_to_dict(dsn)
    for variable in ("host", "user"):
        monkeypatch.setenv(f"PG{variable.upper()}", str(found[variable]))
    monkeypatch.setenv("PGDATABASE", str(found["dbname"]))
    connection = connect("")
    assert connection.info.dbname == found["dbname"]


def test_unknown_database_is_named(dsn: str, connect: Connect) -> None:
    wrong = dsn.replace("/test_", "/missing_")
    with pytest.raises(
        ConnectError, match=r"'missing_\d+' on /.*does not exist"
    ) as info:
        connect(wrong)
    assert "PGEMBED_DSN" in str(info.value)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a TCP port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://me:s3cret%2Fpw@127.0.0.1:{port}/app",
        "host=127.0.0.1 port={port} user=me password=s3cret/pw dbname=app",
    ],
)
def test_errors_do_not_tell_the_password(
    closed_port: int, connect: Connect, form: str
) -> None:
    with pytest.raises(ConnectError, match=r"'app' on 127\.0\.0\.1") as info:
        connect(form.format(port=closed_port))
    assert "s3cret" not in str(info.value)
    assert info.value.__cause__ is None


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:s3cret@[::1/app", "password=s3cret host", "s3cret"]
)
def test_malformed_dsn_is_not_repeated(connect: Connect, dsn: str) -> None:
    with pytest.raises(ConnectError, match="neither a libpq") as info:
        connect(dsn)
    assert "s3cret" not in str(info.value)


def test_extension_schema(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    assert extension_schema(connection, "vector") is None
    connection.execute('CREATE SCHEMA "Ext""s"')
    connection.execute('CREATE EXTENSION vector SCHEMA "Ext""s"')
    assert extension_schema(connection, "vector") == 'Ext"s'


def test_snapshot_does_not_see_later_changes(dsn: str, connect: Connect) -> None:
    writer, reader = connect(dsn), connect(dsn)
    writer.execute("CREATE TABLE t (id int)")
    with snapshot(reader) as same:
        assert fetch_one(same, "SELECT count(*) FROM t") == (0,)
        writer.execute("INSERT INTO t VALUES (1)")
        assert fetch_one(same, "SELECT count(*) FROM t") == (0,)
    assert fetch_one(reader, "SELECT count(*) FROM t") == (1,)


def test_snapshot_is_read_only(connection: Connection) -> None:
    with (
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
        snapshot(connection),
    ):
        connection.execute("CREATE TABLE t (id int)")


def test_snapshot_needs_an_idle_connection(connection: Connection) -> None:
    with (
        connection.transaction(),
        pytest.raises(PgembedError, match="not idle"),
        snapshot(connection),
    ):
        pass


def test_lost_connection_is_transient(dsn: str, connect: Connect) -> None:
    victim, killer = connect(dsn), connect(dsn)
    killer.execute("SELECT pg_terminate_backend(%s)", (victim.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError) as info:
        victim.execute("SELECT 1")
    assert is_transient(info.value)


@pytest.mark.parametrize(
    "state", ["40001", "40P01", "55P03", "53100", "23505", "42P01", "22P02"]
)
def test_transient_states(connection: Connection, state: str) -> None:
    with pytest.raises(psycopg.Error) as info:
        connection.execute(
            f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{state}'; END $$".encode()
        )
    assert is_transient(info.value) is (state[:2] in {"40", "53", "55"})


def test_other_errors_are_not_transient() -> None:
    assert not is_transient(ValueError("x"))
    assert is_transient(ConnectError("x"))


def test_backoff_doubles_up_to_the_cap() -> None:
    for attempt, expected in ((1, 0.1), (2, 0.2), (4, 0.8), (1000, 60.0)):
        waits = [backoff(attempt) for _ in range(50)]
        assert expected * 0.75 <= min(waits) < max(waits) <= expected * 1.25
