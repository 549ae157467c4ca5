"""The leases this process holds, and the thread that keeps them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import threading
from uuid import UUID

from psycopg import errors

from pgembed.embeddings import workers
from pgembed.embeddings.queue import Claim, Queue
from pgembed.embeddings.workers import Role
from pgembed.worker import crash_points
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link

_log = logging.getLogger(__name__)
# Others take a worker for dead after a minute without a sign.
_LONGEST_SILENCE = 15.0


@dataclasses.dataclass(eq=False)
class Lease:
    """Rows this process works on, until they are settled or lost."""

    claim: Claim
    lost: bool = False


class Leases:
    """What is held; safe to share between threads."""

    def __init__(self) -> None:
        self._held: set[Lease] = set()
        self._lock = threading.Lock()

    def add(self, claim: Claim) -> Lease:
        """Begin to hold a claim."""
        lease = Lease(claim)
        with self._lock:
            self._held.add(lease)
        return lease

    def drop(self, lease: Lease) -> None:
        """Cease to hold it."""
        with self._lock:
            self._held.discard(lease)

    def held(self) -> list[Lease]:
        """Return what is held now."""
        with self._lock:
            return list(self._held)


class Identity:
    """The row of pgembed.worker that stands for this process."""

    def __init__(self, role: Role, link: Link) -> None:
        self._role = role
        self.id: UUID = link.run(lambda c: workers.register(c, role))

    def beat(self, link: Link) -> None:
        """Say that the process lives; registers again when it was forgotten."""
        if not link.run(lambda c: workers.heartbeat(c, self.id)):
            self.id = link.run(lambda c: workers.register(c, self._role))

    def leave(self, link: Link) -> None:
        """Take the process off the list; tried once, for it is forgotten by itself."""
        link.close()  # what it has may be lost
        link.hurry()
        with contextlib.suppress(Stopped):
            link.run(lambda c: workers.unregister(c, self.id))


class Heart:
    """Renews the leases and the worker's own row, until the process has drained."""

    def __init__(
        self,
        identity: Identity,
        link: Link,
        lifetime: Lifetime,
        *,
        leases: Leases | None = None,
        lease_seconds: float,
    ) -> None:
        self._identity = identity
        self._link = link
        self._lifetime = lifetime
        self._leases = leases or Leases()
        self._duration = datetime.timedelta(seconds=lease_seconds)
        self._interval = min(lease_seconds / 3, _LONGEST_SILENCE)
        self._finished = threading.Event()

    def run(self) -> None:
        """Beat until finish is called or the time to drain is over."""
        while not self._finished.wait(min(self._interval, self._lifetime.remaining())):
            if self._lifetime.over:
                return
            self._identity.beat(self._link)
            for lease in self._leases.held():
                self._renew(lease)

    def finish(self) -> None:
        """Stop beating, also where the database does not answer."""
        self._finished.set()
        self._link.hurry()

    def _renew(self, lease: Lease) -> None:
        claim = lease.claim
        crash_points.reached("renewing")
        try:
            held = self._link.run(
                lambda c: Queue(c).renew(claim.embedding, claim.lease, self._duration)
            )
        except (errors.UndefinedTable, errors.UndefinedFunction):
            held = 0  # the embedding was dropped
        if not held and lease in self._leases.held():
            lease.lost = True
            _log.info("lease %d of embedding %d is lost", claim.lease, claim.embedding)
