"""Finds work, claims it and prepares it for the model."""

from __future__ import annotations

import datetime
import logging
import math
import time
from typing import Protocol
from uuid import UUID

import psycopg

from pgembed.embeddings import workers
from pgembed.embeddings.queue import Blocked, Claim, Queue, Work, read_leniently
from pgembed.models import registry
from pgembed.models.session import Model
from pgembed.postgres.connection import Connection
from pgembed.settings import Settings
from pgembed.worker import crash_points
from pgembed.worker.fairness import Pace, Turns
from pgembed.worker.index_builder import IndexBuilder
from pgembed.worker.leases import Identity, Lease, Leases
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link
from pgembed.worker.model_cache import ModelCache
from pgembed.worker.retries import Retries
from pgembed.worker.tasks import Task, prepare

_log = logging.getLogger(__name__)

_CLAIM_CHARACTERS = 4_000_000
_HOUSEKEEPING_SECONDS = 10.0
_SLICE = 0.2  # how promptly a waiting process notices that it is to stop
# A claim that took all there was is followed by a rest, so many times as long as the
# claim took: rows that change again and again are embedded once per rest, many in a
# batch, and the busier the server is the less of it goes to them.
_REST_FACTOR = 30.0
_SHORTEST_REST = 0.05
_LONGEST_REST = 1.0
# So long after its last claim a worker looks again after every rest. Only then it asks
# to be notified, since notifications serialise the commits of writers.
_WATCH_SECONDS = 1.0


class Sink(Protocol):
    """Takes what was claimed."""

    def submit(self, task: Task) -> None:
        """Have it embedded; waits while there is enough to do."""

    def hand_back(self, lease: Lease, delay: float = 0.0) -> None:
        """Have it released."""


def prepare_connection(connection: Connection) -> None:
    """Let work that is added wake this connection, and any bytes be read."""
    read_leniently(connection)
    connection.execute("LISTEN pgembed_work")


class Claimer:
    """Claims rows in fair turns, and waits for a notification when there are none."""

    def __init__(
        self,
        settings: Settings,
        lifetime: Lifetime,
        link: Link,
        *,
        identity: Identity,
        leases: Leases,
        pace: Pace,
        builder: IndexBuilder,
        sink: Sink,
    ) -> None:
        self._settings = settings
        self._lifetime = lifetime
        self._link = link
        self._identity = identity
        self._leases = leases
        self._pace = pace
        self._builder = builder
        self._sink = sink
        self._turns = Turns()
        self._models = ModelCache(self._load)
        self._broken = Retries(base=10, cap=600)
        self._scheduled = False
        self._told: tuple[UUID, bool] | None = None
        self._told_at = -math.inf
        self._claimed_at = -math.inf
        self._rests_until = -math.inf
        self._empty = Retries(base=0.05, cap=settings.poll_seconds)
        self._next_look = 0.0
        self._next_housekeeping = 0.0

    def run(self, *, once: bool = False) -> None:
        """Feed until told to stop, or with *once* until nothing is left to do."""
        while not self._lifetime.stopping:
            if not self._turns:
                self._lifetime.sleep(max(self._rests_until - time.monotonic(), 0))
            self._look(now=not self._turns)
            work = self._turns.next()
            if work is not None:
                self._watch()
                self._serve(work)
            elif once and self._is_done():
                return
            else:
                self._wait(_SLICE if once else self._settings.poll_seconds)

    def _look(self, *, now: bool) -> None:
        """Ask for work when it is time to, or *now*."""
        if not now and time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._settings.poll_seconds
        work = self._link.run(lambda c: Queue(c).work())
        self._turns.update(w for w in work if self._empty.due(w.embedding))
        self._scheduled = bool(work)
        if time.monotonic() >= self._next_housekeeping or not work:
            self._keep_house()

    def _keep_house(self) -> None:
        self._next_housekeeping = time.monotonic() + _HOUSEKEEPING_SECONDS
        self._builder.wake()
        in_use = self._link.run(lambda c: Queue(c).models_in_use())
        self._models.forget_all_but(in_use)
        for blocked in self._link.run(lambda c: Queue(c).blocked()):
            if self._broken.due(blocked.embedding):
                self._try_to_unblock(blocked)

    def _try_to_unblock(self, blocked: Blocked) -> None:
        if self._model(blocked) is None:
            return
        # It may be blocked for another reason, and soon be so again.
        self._broken.failed(blocked.embedding)
        self._link.run(lambda c: Queue(c).unblock(blocked.embedding))
        self._next_look = 0.0

    def _serve(self, work: Work) -> None:
        model = self._model(work)
        if model is None:
            self._turns.exhausted(work.embedding)
            return
        rows = self._pace.rows(work.embedding)
        began = time.monotonic()
        claim = self._claim(work, rows)
        if claim is None:
            self._turns.exhausted(work.embedding)
            return
        self._claimed_at = time.monotonic()
        if len(claim) < rows and _is_most(claim, work) and len(self._turns) == 1:
            self._turns.exhausted(work.embedding)
            self._rest(_REST_FACTOR * (self._claimed_at - began))
        lease = self._leases.add(claim)
        crash_points.reached("claimed")
        try:
            task = prepare(work, lease, model)
            crash_points.reached("read")
        except Exception:
            self._sink.hand_back(lease, self._settings.poll_seconds)
            raise
        self._sink.submit(task)

    def _claim(self, work: Work, rows: int) -> Claim | None:
        """Return rows, or None when there are none or the source is locked."""
        settings = self._settings
        try:
            claim = self._link.run(
                lambda c: Queue(c).claim(
                    work.embedding,
                    max_rows=rows,
                    max_characters=_CLAIM_CHARACTERS,
                    lease=datetime.timedelta(seconds=settings.lease_seconds),
                    max_attempts=settings.max_attempts,
                )
            )
        except psycopg.Error as error:  # of this source alone: others go on
            self._link.run(workers.require_protocol)
            self._set_aside(work, f"its rows cannot be read: {error}")
            return None
        if claim is None:
            self._empty.failed(work.embedding)
        else:
            self._empty.succeeded(work.embedding)
        return claim

    def _model(self, work: Work | Blocked) -> Model | None:
        """Return the model, or block the embedding whose model cannot be loaded."""
        try:
            return self._models.get(work.model, work.model_hash)
        except Stopped:
            raise
        except Exception as error:  # whatever it is, other models run
            reason = f"model {work.model!r} cannot be loaded: {error}"
            self._set_aside(work, reason)
            return None

    def _set_aside(self, work: Work | Blocked, reason: str) -> None:
        wait = self._broken.failed(work.embedding)
        _log.error("%s is set aside for %.0f s: %s", work.name, wait, reason)
        self._link.run(lambda c: Queue(c).block(work.embedding, reason))

    def _load(self, name: str, model_hash: bytes) -> Model:
        folder = self._settings.cache_dir
        return self._link.run(
            lambda c: registry.load(c, name, model_hash, cache_dir=folder, threads=1)
        )

    def _is_done(self) -> bool:
        if self._leases.held() or self._builder.busy:
            return False
        self._look(now=True)
        return not self._scheduled and not self._builder.busy

    def _wait(self, seconds: float) -> None:
        """Wait for a notification, at most so many seconds; or rest, for a while."""
        if time.monotonic() < self._claimed_at + _WATCH_SECONDS:
            self._watch()
            self._rest(_SHORTEST_REST)
            return
        if self._told != (self._identity.id, True):
            self._set_idle(idle=True)
            # Work that came before the flag was up sent no notification.
            self._look(now=True)
            if self._turns:
                return
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._lifetime.stopping:
            if self._link.run(_notified):
                break
        self._next_look = 0.0

    def _rest(self, seconds: float) -> None:
        rest = min(max(seconds, _SHORTEST_REST), _LONGEST_REST)
        self._rests_until = max(self._rests_until, time.monotonic() + rest)

    def _watch(self) -> None:
        """Say that this worker looks by itself: valid a little longer than a rest."""
        told = self._told == (self._identity.id, False)
        if not told or time.monotonic() > self._told_at + _WATCH_SECONDS:
            self._set_idle(idle=False)

    def _set_idle(self, *, idle: bool) -> None:
        worker = self._identity.id
        self._link.run(lambda c: workers.set_idle(c, worker, idle=idle))
        self._told = (worker, idle)
        self._told_at = time.monotonic()


def _is_most(claim: Claim, work: Work) -> bool:
    """Whether little is left: others hold some, and rows that failed come in parts."""
    return 2 * len(claim) >= work.ready


def _notified(connection: Connection) -> bool:
    return any(True for _ in connection.notifies(timeout=_SLICE, stop_after=1))
