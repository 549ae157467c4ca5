"""Connections to PostgreSQL: timeouts, transient failures, snapshots."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.abc import QueryNoTemplate
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn, TransactionStatus
from psycopg.rows import tuple_row

from pgembed.errors import ConnectError, PgembedError, StandbyError
from pgembed.postgres import vectors

Connection = psycopg.Connection[Any]

# A dead peer is noticed after about a minute, unless the DSN, the environment or a
# service says otherwise.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    # Keepalives are not sent while data waits to be acknowledged. Milliseconds.
    "tcp_user_timeout": 60_000,
}

# Serialization and resource trouble, shutdowns, lost connections.
_TRANSIENT_CLASSES = ("08", "40", "53")
# A lock not to be had, a server that ends, time that a session or transaction may take.
_TRANSIENT_STATES = {
    *("55P03", "57P01", "57P02", "57P03"),
    *("57P05", "25P03", "25P04"),
}


def connect(dsn: str, *, purpose: str = "", autocommit: bool = True) -> Connection:
    """Open a connection that works behind a transaction pooler, too.

    *dsn* is a libpq connection string or URI; empty, libpq's PG* variables decide.
    pgvector's types are registered when the database has them.
    Raises ConnectError, which names the server and never the password.
    """
    parameters = _parameters(dsn, purpose)
    try:
        connection: Connection = psycopg.connect(
            make_conninfo(**parameters), autocommit=True, prepare_threshold=None
        )
    except psycopg.OperationalError as error:
        raise _connect_error(parameters, error) from None
    try:
        _use_iso_dates(connection)
        vectors.register(connection)
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


def _parameters(dsn: str, purpose: str) -> dict[str, Any]:
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # libpq's message may quote the DSN, and with it the password.
        raise ConnectError(
            "the DSN is neither a libpq connection string nor a URI: write it like "
            "'host=localhost dbname=app user=me' or 'postgresql://me@localhost/app'"
        ) from None
    return {
        **given,
        **_timeouts(given),
        "client_encoding": "UTF8",
        "application_name": f"pgembed {purpose}".strip(),
    }


def _timeouts(given: dict[str, Any]) -> dict[str, Any]:
    """Return _DEFAULTS, with what libpq knows otherwise in their places.

    It looks into services and the environment only when it is to connect: here it gets
    as far as a mode that there is not. Its answer is passed on, because the driver
    waits as long as the connection string says.
    """
    probe = PGconn.connect_start(
        make_conninfo(**{**given, "sslmode": "unknown"}).encode()
    )
    try:
        said = {option.keyword.decode(): option.val for option in probe.info}
    finally:
        probe.finish()
    return {
        name: (said.get(name) or b"").decode() or default
        for name, default in _DEFAULTS.items()
    }


def _use_iso_dates(connection: Connection) -> None:
    """Have dates and times written as psycopg reads them, poolers included.

    Whether days or months come first in what is read stays as it was.
    """
    if not (connection.info.parameter_status("DateStyle") or "").startswith("ISO"):
        connection.execute("SET datestyle = ISO")


def _connect_error(parameters: dict[str, Any], error: Exception) -> ConnectError:
    host = parameters.get("host") or parameters.get("hostaddr") or "the default host"
    database = parameters.get("dbname") or "the default one"
    reason = str(error).strip()
    password = parameters.get("password")
    if password:
        reason = reason.replace(str(password), "***")
    return ConnectError(
        f"cannot connect to database {database!r} on {host}: {reason}\n"
        "Check --dsn, PGEMBED_DSN or the PG* variables, and that the server runs; "
        "'pgembed up' starts a local one."
    )


def is_standby(connection: Connection) -> bool:
    """Whether the server replays what another one does, and takes no writes."""
    return bool(fetch_one(connection, "SELECT pg_catalog.pg_is_in_recovery()")[0])


def require_primary(connection: Connection) -> None:
    """Raise StandbyError when the server is a standby."""
    if is_standby(connection):
        raise StandbyError(
            f"the server of database {connection.info.dbname!r} on "
            f"{connection.info.host or 'the default host'} is a standby, which takes "
            "no writes: work with the DSN of the primary; one with several hosts and "
            "target_session_attrs=read-write finds it"
        )


def extension_schema(connection: Connection, name: str) -> str | None:
    """Return the unquoted name of the schema that holds extension *name*, or None."""
    row = fetch_one(
        connection,
        """
        SELECT n.nspname
        FROM pg_catalog.pg_extension AS e
        JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname = %s
        """,
        (name,),
    )
    return row and str(row[0])


def fetch_all(
    connection: Connection, query: QueryNoTemplate, parameters: Any = None
) -> list[tuple[Any, ...]]:
    """Return all rows as tuples, whatever row factory the connection has."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def fetch_one(
    connection: Connection, query: QueryNoTemplate, parameters: Any = None
) -> Any:
    """Return the first row as a tuple, or None."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(query, parameters).fetchone()


@contextlib.contextmanager
def snapshot(connection: Connection) -> Iterator[Connection]:
    """Run a block in one read-only REPEATABLE READ transaction.

    Raises PgembedError when the connection is already in a transaction, because the
    block would then not see one snapshot.
    """
    require_idle(connection, "take a snapshot")
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        stay_idle(connection)
        yield connection


def stay_idle(connection: Connection) -> None:
    """Let the open transaction, one of ours, last while this process computes."""
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")


def endure(connection: Connection) -> None:
    """Let the open transaction, one of ours, outlast transaction_timeout.

    And let an error end no more than this transaction.
    """
    connection.execute("SET LOCAL exit_on_error = off")
    if connection.info.server_version >= 170_000:  # which has that setting
        connection.execute("SET LOCAL transaction_timeout = 0")


def require_idle(connection: Connection, purpose: str) -> None:
    """Raise PgembedError unless *connection* is open and outside any transaction."""
    if connection.closed:
        raise PgembedError(f"cannot {purpose}: the connection is closed; open another")
    status = connection.info.transaction_status
    if status != TransactionStatus.IDLE:
        raise PgembedError(
            f"cannot {purpose}: the connection is not idle ({status.name}); "
            "commit or roll back first, or pass a connection of its own"
        )


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed if it is tried again."""
    if isinstance(error, ConnectError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return (
        error.sqlstate.startswith(_TRANSIENT_CLASSES)
        or error.sqlstate in _TRANSIENT_STATES
    )


def backoff(attempt: int, *, base: float = 0.1, cap: float = 60.0) -> float:
    """Return the seconds to wait after failed *attempt* (1, 2, …), with jitter.

    The wait doubles with each attempt up to *cap*, and varies by a quarter either
    way so that processes which failed together do not return together.
    """
    ceiling = min(cap, base * 2.0 ** min(attempt - 1, 32))
    return ceiling * random.uniform(0.75, 1.25)  # noqa: S311 - not cryptography
