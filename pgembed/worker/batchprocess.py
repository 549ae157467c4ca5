"""The process that carries out what was posted, and ends: a part of worker --once."""

from __future__ import annotations

from pgembed.settings import Settings
from pgembed.worker.batches import Batches
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.link import Link
from pgembed.worker.presence import present


def carry_out_batches(settings: Settings, lifetime: Lifetime) -> None:
    """Carry out batches until all have ended. Raises WorkerError when a thread fails.

    The process counts as one that embeds: those that answer calls are waited for by
    callers, and it answers none.
    """
    link = Link(settings.dsn, "batches", lifetime)
    with present(settings, lifetime, "embed", link) as (identity, _):
        Batches(settings, identity, lifetime).run(once=True)
