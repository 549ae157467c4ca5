"""A process in pgembed.worker: from its registration to its leave, with a heartbeat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pgembed.embeddings.workers import Role
from pgembed.settings import Settings
from pgembed.worker.leases import Heart, Identity
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link
from pgembed.worker.threads import Threads


@contextlib.contextmanager
def present(
    settings: Settings, lifetime: Lifetime, role: Role, link: Link
) -> Iterator[tuple[Identity, Threads]]:
    """Register the process for a block, which ends quietly when it is Stopped.

    Closes *link*. Raises Stopped when that comes before the process is registered, and
    WorkerError when one of the threads has failed.
    """
    heart_link = Link(settings.dsn, "heartbeat", lifetime, finishing=True)
    threads = Threads(lifetime)
    registered = False
    try:
        identity = Identity(role, link)
        registered = True
        heart = Heart(
            identity, heart_link, lifetime, lease_seconds=settings.lease_seconds
        )
        beating = threads.start("heartbeat", heart.run)
        try:
            yield identity, threads
        finally:
            heart.finish()
            beating.join()
            identity.leave(heart_link)
    except Stopped:
        if not registered:
            raise
    finally:
        link.close()
        heart_link.close()
    threads.check()
