"""Workers say that they are there: rows of pgembed.worker."""

from __future__ import annotations

import os
import socket
from typing import Literal
from uuid import UUID

from psycopg import errors

from pgembed import __version__
from pgembed.errors import WorkerError
from pgembed.postgres.connection import Connection, fetch_one

Role = Literal["embed", "calls"]

PROTOCOL = 1
"""How workers and the functions in the database speak with each other.

It is raised by one when workers from before must not go on with the new functions, or
new workers with the old ones; pgembed._accept_protocol says which still may.
"""


def require_protocol(connection: Connection) -> None:
    """Raise WorkerError unless this worker and the schema fit each other."""
    try:
        connection.execute("SELECT pgembed._accept_protocol(%s::int)", (PROTOCOL,))
    except (errors.UndefinedFunction, errors.InvalidSchemaName):
        raise WorkerError(
            f"the database has no pgembed, or one that is older than this worker, "
            f"{__version__}: run 'pgembed install' with the same DSN"
        ) from None
    except errors.FeatureNotSupported as error:
        raise WorkerError(
            f"this worker is pgembed {__version__}: {error.diag.message_primary}. "
            f"{error.diag.message_hint}"
        ) from None


def register(connection: Connection, role: Role) -> UUID:
    """Add this process to the workers; return the id it got.

    Raises WorkerError when it does not fit the schema.
    """
    require_protocol(connection)
    row = fetch_one(
        connection,
        "SELECT pgembed._register_worker(%s, %s, %s::int, %s)",
        (role, socket.gethostname(), os.getpid(), __version__),
    )
    return UUID(str(row[0]))


def heartbeat(connection: Connection, worker: UUID) -> bool:
    """Say that the worker lives; False when it was forgotten: register again.

    Raises WorkerError when it does not fit the schema any more.
    """
    require_protocol(connection)
    return bool(fetch_one(connection, "SELECT pgembed._heartbeat(%s)", (worker,))[0])


def set_idle(connection: Connection, worker: UUID, *, idle: bool) -> None:
    """Say whether the worker waits for a notification; look for work after it."""
    connection.execute("SELECT pgembed._set_idle(%s, %s)", (worker, idle))


def unregister(connection: Connection, worker: UUID) -> None:
    """Remove the worker from the list."""
    connection.execute("SELECT pgembed._unregister_worker(%s)", (worker,))
