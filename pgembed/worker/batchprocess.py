"""The process that carries out what was posted, and ends: a part of worker --once."""

from __future__ import annotations

from pgembed.settings import Settings
from pgembed.worker.batches import Batches
from pgembed.worker.leases import Heart, Identity
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link
from pgembed.worker.threads import Threads


def carry_out_batches(settings: Settings, lifetime: Lifetime) -> None:
    """Carry out batches until all have ended. Raises WorkerError when a thread fails.

    The process counts as one that embeds: those that answer calls are waited for by
    callers, and it answers none.
    """
    link = Link(settings.dsn, "batches", lifetime)
    heart_link = Link(settings.dsn, "heartbeat", lifetime, finishing=True)
    threads = Threads(lifetime)
    try:
        _carry_out(settings, lifetime, link, heart_link, threads)
    except Stopped:
        pass
    finally:
        link.close()
        heart_link.close()
    threads.check()


def _carry_out(
    settings: Settings,
    lifetime: Lifetime,
    link: Link,
    heart_link: Link,
    threads: Threads,
) -> None:
    identity = Identity("embed", link)
    heart = Heart(identity, heart_link, lifetime, lease_seconds=settings.lease_seconds)
    beating = threads.start("heartbeat", heart.run)
    try:
        Batches(settings, identity, lifetime).run(once=True)
    finally:
        heart.finish()
        beating.join()
        identity.leave(heart_link)
