"""Calls that come through table pgembed.call: posted by a caller's second session."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

import psycopg

from pgembed.embeddings import calls
from pgembed.embeddings.calls import Request
from pgembed.embeddings.queue import read_leniently
from pgembed.postgres.connection import Connection
from pgembed.postgres.vectors import Float32
from pgembed.worker.leases import Identity
from pgembed.worker.link import Link
from pgembed.worker.pending import AnsweredCall, Call, Group

_log = logging.getLogger(__name__)

# Behind a transaction pooler no notification comes.
_POLL_SECONDS = 0.5
_EXPIRE_SECONDS = 5.0
_MOST_ANSWERS = 64  # in one statement
_CALL_ID = re.compile("[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class _Row:
    """Where an answer belongs: the id may have changed hands since."""

    call_id: int
    taker: UUID


class TableCalls:
    """The table as a transport.

    *other* gets the requests that are not for vectors, and as whom they were taken.
    """

    def __init__(
        self, link: Link, identity: Identity, other: Callable[[Request, UUID], None]
    ) -> None:
        self._link = link
        self._identity = identity
        self._other = other
        self._next_poll = 0.0
        self._next_expiry = 0.0
        self._spoke = True
        self._is_notified = False
        """Whether notifications reach the connection: not behind some poolers."""
        self._taking: tuple[Connection, UUID] | None = None
        """The connection, and as whom it takes calls."""
        self._locked: set[_Row] = set()
        """Calls that were taken with a lock, whose release wakes the caller."""
        self._waiting: set[_Row] = set()
        """Calls that were taken and, at the last look, not withdrawn."""

    @property
    def due(self) -> float:
        """When to take next, on the clock of time.monotonic, if nothing comes before.

        A statement may have brought a notification along: then at once.
        """
        return 0.0 if self._spoke else min(self._next_poll, self._next_expiry)

    def descriptor(self) -> int:
        """Return the file descriptor that can be read when a notification comes."""
        return self._link.run(lambda c: c.fileno())

    def take(self, timeout: float) -> list[Call]:
        """Return new calls; waits for one at most *timeout* seconds."""
        ids = self._link.run(lambda c: _notified(c, timeout))
        self._spoke = False
        self._is_notified = self._is_notified or bool(ids)
        now = time.monotonic()
        if now >= self._next_expiry:
            self._next_expiry = now + _EXPIRE_SECONDS
            self._spoke = True
            self._expire()
        if now >= self._next_poll:
            self._next_poll = now + _POLL_SECONDS
            self._forget_withdrawn()
            return self._taken([] if self._is_notified else None)
        return self._taken(ids) if ids else []

    def answer(self, answers: Sequence[AnsweredCall]) -> None:
        """Answer calls of one group with vectors, float32 (n, d), or with errors."""
        self._spoke = True
        by_taker: dict[UUID, list[calls.Answer]] = {}
        for call, answer in answers:
            row = call.reply_to
            assert isinstance(row, _Row)  # noqa: S101 - made by _call
            error = answer if isinstance(answer, str) else None
            vectors = None if isinstance(answer, str) else answer
            given = calls.Answer(row.call_id, vectors, error)
            by_taker.setdefault(row.taker, []).append(given)
        for taker, mine in by_taker.items():
            for start in range(0, len(mine), _MOST_ANSWERS):
                self._send(taker, mine[start : start + _MOST_ANSWERS])

    def has_caller(self, call: Call) -> bool:
        """Whether the call was not withdrawn until the last look."""
        assert isinstance(call.reply_to, _Row)  # noqa: S101 - made by _call
        return call.reply_to in self._waiting

    def leave(self, model: str, vectors: Float32) -> int | None:
        """Put vectors of a call that came another way where its caller reads them.

        Returns the place in pgembed.call; None, and a warning, when it failed.
        """
        worker = self._identity.id
        self._spoke = True
        try:
            return self._link.run(lambda c: calls.leave(c, worker, model, vectors))
        except psycopg.Error as error:
            _log.warning("vectors could not be left in pgembed.call: %s", error)
            return None

    def _send(self, taker: UUID, given: list[calls.Answer]) -> None:
        rows = {_Row(each.call_id, taker) for each in given}
        locked = [row.call_id for row in self._locked & rows]
        self._locked -= rows
        self._waiting -= rows
        self._link.run(lambda c: calls.answer(c, taker, given, locked=locked))

    def _forget_withdrawn(self) -> None:
        if self._waiting:
            self._spoke = True
            waiting = [row.call_id for row in self._waiting]
            present = self._link.run(lambda c: calls.present(c, waiting))
            self._waiting = {row for row in self._waiting if row.call_id in present}

    def _expire(self) -> None:
        self._link.run(calls.expire)
        if self._locked:
            # Also those of calls that will never be answered.
            self._link.run(calls.let_go)
            self._locked.clear()

    def _taken(self, ids: list[int] | None) -> list[Call]:
        self._spoke = True
        taken = []
        taker, requests = self._link.run(lambda c: self._take(c, ids))
        for request in requests:
            if request.kind not in ("document", "query"):
                self._other(request, taker)
                continue
            row = _Row(request.id, taker)
            call = _call(request, row)
            self._waiting.add(row)
            if ids is not None:
                self._locked.add(row)
            if request.model_hash is None:
                unknown = f"model {request.model!r} is not registered"
                self.answer([(call, unknown)])
            else:
                taken.append(call)
        return taken

    def _take(
        self, connection: Connection, ids: list[int] | None
    ) -> tuple[UUID, list[Request]]:
        """Take calls, over each connection as somebody else.

        When the server crashes the table is emptied, and ids begin anew: an answer to a
        call of before must find none that has its id now.
        """
        if self._taking is None or self._taking[0] is not connection:
            self._taking = connection, uuid4()
        taker = self._taking[1]
        return taker, calls.take(connection, taker, ids)


def prepare_connection(connection: Connection) -> None:
    """Let calls wake this connection, and any bytes be read."""
    read_leniently(connection)
    connection.execute("LISTEN pgembed_call")


def _notified(connection: Connection, timeout: float) -> list[int]:
    notifies = connection.notifies(timeout=timeout, stop_after=1)
    # Anybody may notify, of anything.
    return [int(n.payload) for n in notifies if _CALL_ID.fullmatch(n.payload)]


def _call(request: Request, row: _Row) -> Call:
    return Call(
        reply_to=row,
        group=Group(request.model, request.model_hash or b"", request.kind),
        contents=request.contents,
        deadline=time.monotonic() + request.remaining,
    )
