"""Vectors go back to their rows; rows that users hold are tried again meanwhile."""

from __future__ import annotations

import dataclasses
import functools
import logging
import queue
import time
from collections.abc import Callable

import psycopg
from psycopg import errors

from pgembed.embeddings import workers
from pgembed.embeddings.queue import Queue
from pgembed.worker import crash_points, metrics
from pgembed.worker.leases import Identity, Lease, Leases
from pgembed.worker.lifetime import Lifetime, Stopped, put_patiently
from pgembed.worker.link import Link
from pgembed.worker.tasks import Result

_log = logging.getLogger(__name__)

_FIRST_RETRY = 0.02
_LONGEST_RETRY = 1.0
_HELD_SECONDS = 30.0  # then the rows go back to the queue
_RELEASE_DELAY = 5.0
_HELD_RESULTS = 8
_FULL = 2


@dataclasses.dataclass
class _Held:
    """A result some of whose rows are locked by users."""

    result: Result
    positions: list[int]
    since: float
    due: float
    wait: float = _FIRST_RETRY


@dataclasses.dataclass(frozen=True)
class _Return:
    lease: Lease
    delay: float


class _Nothing:
    """No item came before something else was due."""


class Writer:
    """Ends claims: completes, fails or releases their rows; run it in a thread."""

    def __init__(
        self,
        link: Link,
        leases: Leases,
        identity: Identity,
        lifetime: Lifetime,
        *,
        max_attempts: int,
    ) -> None:
        self._link = link
        self._leases = leases
        self._identity = identity
        self._lifetime = lifetime
        self._max_attempts = max_attempts
        self._inbox: queue.Queue[Result | _Return | None] = queue.Queue(_FULL)
        self._held: list[_Held] = []

    def submit(self, result: Result) -> None:
        """Have a result written; waits while too many are unwritten."""
        self._put(result)

    def hand_back(self, lease: Lease, delay: float = 0.0) -> None:
        """Have a claim released."""
        self._put(_Return(lease, delay))

    def close(self) -> None:
        """Let run return when all is settled, or the time to drain is over."""
        self._put(None)

    def _put(self, item: Result | _Return | None) -> None:
        put_patiently(self._inbox, item, self._lifetime)

    def run(self) -> None:
        """Write what is submitted until closed."""
        while (item := self._next()) is not None:
            if not isinstance(item, _Nothing):
                self._settle(item)
            self._retry()
        while self._held:
            time.sleep(self._until_due() or 0)
            self._retry()

    def _next(self) -> Result | _Return | _Nothing | None:
        try:
            return self._inbox.get(timeout=self._until_due())
        except queue.Empty:
            return _Nothing()

    def _until_due(self) -> float | None:
        if not self._held:
            return None
        return max(min(h.due for h in self._held) - time.monotonic(), 0.0)

    def _settle(self, item: Result | _Return) -> None:
        if isinstance(item, _Return):
            self._guarded(item.lease, lambda: self._release(item.lease, item.delay))
        else:
            self._guarded(item.task.lease, lambda: self._write_new(item))

    def _guarded(self, lease: Lease, action: Callable[[], None]) -> None:
        """Do it unless the lease is lost; a failure costs this lease alone."""
        try:
            if not lease.lost:
                action()
        except Stopped:
            self._leases.drop(lease)  # it expires by itself
        except (errors.UndefinedTable, errors.UndefinedFunction):
            self._link.run(workers.require_protocol)
            _log.info("embedding %d was dropped meanwhile", lease.claim.embedding)
            self._leases.drop(lease)
        except psycopg.Error as error:
            self._give_up(lease, error)
        if lease.lost:
            self._leases.drop(lease)

    def _give_up(self, lease: Lease, error: psycopg.Error) -> None:
        """Set an embedding aside whose vectors cannot be written at all."""
        self._link.run(workers.require_protocol)
        reason = f"its vectors cannot be written: {error}"
        embedding = lease.claim.embedding
        _log.error("embedding %d is set aside: %s", embedding, reason)
        try:
            self._link.run(lambda c: Queue(c).block(embedding, reason))
            self._release(lease, _RELEASE_DELAY)
        except (psycopg.Error, Stopped):
            self._leases.drop(lease)

    def _write_new(self, result: Result) -> None:
        lease = result.task.lease
        if result.errors:
            self._fail(result, result.errors)
        rest = self._write(result, result.good)
        if not rest:
            self._leases.drop(lease)
            return
        now = time.monotonic()
        self._held.append(_Held(result, rest, since=now, due=now + _FIRST_RETRY))
        if len(self._held) > _HELD_RESULTS:
            self._release_held(self._held[0])

    def _write(self, result: Result, positions: list[int]) -> list[int]:
        """Write rows; return the positions that are locked by users."""
        if not positions:
            return []
        crash_points.reached("before_commit")
        try:
            settled = self._link.run(
                lambda c: result.write(Queue(c), self._identity.id, positions)
            )
        except psycopg.Error as error:
            if _concerns_all(error):
                raise
            return self._write_apart(result, positions, error)
        crash_points.reached("after_commit")
        slots = result.task.lease.claim.slots
        return [i for i in positions if slots[i] not in settled]

    def _write_apart(
        self, result: Result, positions: list[int], error: psycopg.Error
    ) -> list[int]:
        """Find the rows that the user's constraints or triggers refuse."""
        if len(positions) == 1:
            self._fail(result, {positions[0]: f"the vector was refused: {error}"})
            return []
        middle = len(positions) // 2
        first = self._write(result, positions[:middle])
        return first + self._write(result, positions[middle:])

    def _fail(self, result: Result, failed: dict[int, str]) -> None:
        work, claim = result.task.work, result.task.lease.claim
        _log.warning(
            "%s: %d of %d rows failed: %s",
            work.name,
            len(failed),
            len(claim),
            next(iter(failed.values())),
        )
        metrics.FAILURES.labels(work.name).inc(len(failed))
        self._link.run(
            lambda c: Queue(c).fail(claim, failed, max_attempts=self._max_attempts)
        )

    def _retry(self) -> None:
        now = time.monotonic()
        for held in [h for h in self._held if h.due <= now]:
            self._held.remove(held)
            self._guarded(
                held.result.task.lease, functools.partial(self._write_held, held)
            )

    def _write_held(self, held: _Held) -> None:
        held.positions = self._write(held.result, held.positions)
        now = time.monotonic()
        lease = held.result.task.lease
        if not held.positions:
            self._leases.drop(lease)
        elif now - held.since > _HELD_SECONDS or self._lifetime.stopping:
            self._release(lease, _RELEASE_DELAY)
        elif not self._is_open(lease):
            self._release(lease, 0)
        else:
            held.wait = min(held.wait * 2, _LONGEST_RETRY)
            held.due = now + held.wait
            self._held.append(held)

    def _is_open(self, lease: Lease) -> bool:
        embedding = lease.claim.embedding
        return self._link.run(lambda c: Queue(c).is_open(embedding))

    def _release_held(self, held: _Held) -> None:
        self._held.remove(held)
        self._release(held.result.task.lease, _RELEASE_DELAY)

    def _release(self, lease: Lease, delay: float) -> None:
        claim = lease.claim
        self._link.run(
            lambda c: Queue(c).release(claim.embedding, claim.lease, delay=delay)
        )
        self._leases.drop(lease)


def _concerns_all(error: psycopg.Error) -> bool:
    """Whether it is about a missing privilege, table or column: not about a row."""
    return error.sqlstate is None or error.sqlstate.startswith("42")
