"""Sessions of other roles than the worker's, for what they own or posted."""

from __future__ import annotations

from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgembed.errors import ConnectError, WorkerError
from pgembed.postgres.connection import Connection, connect, fetch_one


def connect_as(
    dsn: str, role: str, own: Connection, *, whose: str, purpose: str
) -> Connection:
    """Open a session of *role* on the server of *dsn*; *own* is the worker's.

    Another role's password is not in the DSN: libpq finds it in its password file,
    unless the server lets the role in without. *whose* says in errors which role it is.
    Raises ConnectError when the role cannot log in, WorkerError when the session turns
    out to be another's.
    """
    (worker,) = fetch_one(own, "SELECT session_user::text")
    parameters: dict[str, Any] = conninfo_to_dict(dsn)
    if role != worker:
        # Empty, not left out: PGPASSWORD or a service's would come before the file.
        parameters = {**parameters, "user": role, "password": ""}
    try:
        connection = connect(make_conninfo(**parameters), purpose=purpose)
    except ConnectError as error:
        raise ConnectError(
            f"the worker cannot log in as {role!r}, {whose}: "
            f"{str(error).splitlines()[0]}\nGive the worker a line for that role in "
            "its password file (~/.pgpass), or let pg_hba.conf admit it from there"
        ) from None
    try:
        _require(connection, role)
    except BaseException:
        connection.close()
        raise
    return connection


def _require(connection: Connection, role: str) -> None:
    found = fetch_one(connection, "SELECT session_user::text, current_user::text")
    if found != (role, role):
        raise WorkerError(
            f"a session of role {role!r} is one of {found[0]!r} acting as "
            f"{found[1]!r}: let the worker reach the server without a pooler that "
            "changes roles"
        )
