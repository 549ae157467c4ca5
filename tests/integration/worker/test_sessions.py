"""Sessions of other roles than the worker's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgembed.errors import ConnectError
from pgembed.postgres.connection import fetch_one
from pgembed.worker import sessions
from pgembed.worker.sessions import connect_as
from tests.conftest import Connect
from tests.harness.roles import ordinary_role
from tests.integration.worker.running import Connection, wait_until


@pytest.fixture
def role(dsn: str, connection: Connection) -> Iterator[str]:
    """Return a role whom the server asks for its password, which is secret."""
    path = Path(fetch_one(connection, "SHOW hba_file")[0])
    before = path.read_text()
    with ordinary_role(dsn) as role_dsn:
        name = str(conninfo_to_dict(role_dsn)["user"])
        connection.execute(f"ALTER ROLE {name} PASSWORD 'secret'".encode())
        try:
            path.write_text(f"local all {name} scram-sha-256\n{before}")
            connection.execute("SELECT pg_reload_conf()")
            wait_until(lambda: not gets_in(role_dsn))
            yield name
        finally:
            path.write_text(before)
            connection.execute("SELECT pg_reload_conf()")


def gets_in(dsn: str) -> bool:
    """Whether a session can be opened."""
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("of_the_worker", [None, "environment", "service", "dsn"])
def test_the_password_file_has_the_passwords_of_other_roles(
    dsn: str,
    connection: Connection,
    role: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_the_worker: str | None,
) -> None:
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:{role}:secret\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    if of_the_worker == "environment":
        monkeypatch.setenv("PGPASSWORD", "of the worker")
    elif of_the_worker == "service":
        services = tmp_path / "services"
        services.write_text("[of the worker]\npassword=of the worker\n")
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        monkeypatch.setenv("PGSERVICE", "of the worker")
    elif of_the_worker == "dsn":
        dsn = f"{dsn}{'&' if '?' in dsn else '?'}password=worker"
    with connect_as(dsn, role, connection, whose="a role", purpose="test") as found:
        assert fetch_one(found, "SELECT current_user::text") == (role,)
    passwords.write_text("")
    with pytest.raises(ConnectError, match="password file"):
        connect_as(dsn, role, connection, whose="a role", purpose="test")


def test_a_session_in_which_nothing_can_be_asked_is_closed(
    dsn: str, connection: Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def opening(dsn: str, *, purpose: str) -> Connection:
        session = connect(dsn, purpose=purpose, autocommit=False)
        opened.append(session)
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            session.execute("SELECT 1 / 0")
        return session

    monkeypatch.setattr(sessions, "connect", opening)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        connect_as(dsn, "postgres", connection, whose="a role", purpose="test")
    assert [session.closed for session in opened] == [True]
