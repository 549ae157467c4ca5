"""Workers say that they are there: rows of pgembed.worker."""

from __future__ import annotations

import os
import socket
from typing import Literal
from uuid import UUID

from pgembed import __version__
from pgembed.postgres.connection import Connection, fetch_one

Role = Literal["embed", "calls"]


def register(connection: Connection, role: Role) -> UUID:
    """Add this process to the workers; return the id it got."""
    row = fetch_one(
        connection,
        "SELECT pgembed._register_worker(%s, %s, %s::int, %s)",
        (role, socket.gethostname(), os.getpid(), __version__),
    )
    return UUID(str(row[0]))


def heartbeat(connection: Connection, worker: UUID) -> bool:
    """Say that the worker lives; False when it was forgotten: register again."""
    return bool(fetch_one(connection, "SELECT pgembed._heartbeat(%s)", (worker,))[0])


def set_idle(connection: Connection, worker: UUID, *, idle: bool) -> None:
    """Say whether the worker waits for a notification; look for work after it."""
    connection.execute("SELECT pgembed._set_idle(%s, %s)", (worker, idle))


def unregister(connection: Connection, worker: UUID) -> None:
    """Remove the worker from the list."""
    connection.execute("SELECT pgembed._unregister_worker(%s)", (worker,))
