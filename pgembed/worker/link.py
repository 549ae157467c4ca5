"""A database connection that comes back: transient failures are waited out."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import errors

from pgembed.errors import ConnectError, StandbyError
from pgembed.postgres.connection import (
    Connection,
    backoff,
    connect,
    is_transient,
    require_primary,
)
from pgembed.worker.lifetime import Lifetime, Stopped

_log = logging.getLogger(__name__)

T = TypeVar("T")
_LONGEST_PAUSE = 30.0
_SLICE = 0.05


class Link:
    """One thread's connection.

    *opened* is called on every new connection. *finishing*: keep trying while the
    worker drains, too; for what ends work that was begun.
    """

    def __init__(
        self,
        dsn: str,
        purpose: str,
        lifetime: Lifetime,
        *,
        opened: Callable[[Connection], object] = lambda _: None,
        finishing: bool = False,
    ) -> None:
        self._dsn = dsn
        self._purpose = purpose
        self._lifetime = lifetime
        self._opened = opened
        self._finishing = finishing
        self._connection: Connection | None = None
        self._pause = threading.Event()
        self._hurried = threading.Event()

    def run(self, action: Callable[[Connection], T], *, beginning: bool = False) -> T:
        """Return what *action* returns; try again after every transient failure.

        *action* must be one statement that may be repeated. *beginning*: it looks for
        new work, and ends when the worker stops, whatever the link is for. Raises
        Stopped when the worker stops meanwhile, and whatever *action* raises that is
        not transient.
        """
        attempt = 0
        while True:
            self._require_time(attempt, beginning=beginning)
            try:
                return action(self.connection())
            except (psycopg.Error, ConnectError) as error:
                if not _may_pass(error):
                    raise
                attempt += 1
                self._recover(error, attempt, beginning=beginning)

    def hurry(self) -> None:
        """Try nothing again from now on, not even what is under way."""
        self._hurried.set()

    def connection(self) -> Connection:
        """Return the connection, opened anew when it was lost."""
        if self._connection is None or self._connection.closed:
            connection = connect(self._dsn, purpose=self._purpose)
            try:
                require_primary(connection)  # after a failover, a standby may answer
                self._opened(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Close the connection; the link can be used again."""
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _require_time(self, attempt: int, *, beginning: bool) -> None:
        if self._must_end(beginning=beginning) and (attempt > 0 or self._lifetime.over):
            raise Stopped

    def _recover(
        self, error: psycopg.Error | ConnectError, attempt: int, *, beginning: bool
    ) -> None:
        pause = backoff(attempt, cap=_LONGEST_PAUSE)
        _log.warning("%s; trying again in %.1f s", _brief(error), pause)
        if self._connection is not None and self._connection.broken:
            self.close()
        while pause > 0 and not self._must_end(beginning=beginning):
            self._pause.wait(min(pause, _SLICE))
            pause -= _SLICE

    def _must_end(self, *, beginning: bool) -> bool:
        if self._hurried.is_set():
            return True
        if self._finishing and not beginning:
            return self._lifetime.dead
        return self._lifetime.stopping


def _may_pass(error: psycopg.Error | ConnectError) -> bool:
    return is_transient(error) or isinstance(error, errors.QueryCanceled)


def _brief(error: psycopg.Error | ConnectError) -> str:
    if isinstance(error, errors.DiskFull):
        return f"the server's disk is full, work pauses ({_line(error)})"
    if isinstance(error, StandbyError):
        return _line(error)
    return f"the database did not answer ({_line(error)})"


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
