"""The process that answers calls, put together."""

from __future__ import annotations

from pgembed.models import registry
from pgembed.models.session import Model
from pgembed.postgres.connection import connect, fetch_all
from pgembed.settings import Settings
from pgembed.worker.batches import Batches
from pgembed.worker.calls import CallServer
from pgembed.worker.leases import Heart, Identity
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link
from pgembed.worker.loader import Loader
from pgembed.worker.model_additions import Additions
from pgembed.worker.model_cache import ModelCache
from pgembed.worker.tablecalls import TableCalls, prepare_connection
from pgembed.worker.threads import Threads

# A query is short: more threads win little alone, and lose much beside bulk work.
THREADS = 1
_PRELOADED = 4


def serve_calls(settings: Settings, lifetime: Lifetime) -> None:
    """Answer calls until told to stop. Raises WorkerError when a thread fails."""
    link = Link(settings.dsn, "calls", lifetime, opened=prepare_connection)
    heart_link = Link(settings.dsn, "heartbeat", lifetime, finishing=True)
    threads = Threads(lifetime)
    try:
        _serve(settings, lifetime, link, heart_link, threads)
    except Stopped:
        pass
    finally:
        link.close()
        heart_link.close()
    threads.check()


def _serve(
    settings: Settings,
    lifetime: Lifetime,
    link: Link,
    heart_link: Link,
    threads: Threads,
) -> None:
    identity = Identity("calls", link)
    heart = Heart(identity, heart_link, lifetime, lease_seconds=settings.lease_seconds)
    beating = threads.start("heartbeat", heart.run)
    loader = Loader(ModelCache(lambda name: _load(settings, name)))
    additions = Additions(settings, identity, lifetime)
    batches = Batches(settings, identity, lifetime)
    carrying_out = threads.start("batches", batches.run)
    transport = TableCalls(link, identity, additions.begin)
    try:
        _preload(link, loader)
        CallServer(transport, loader, lifetime).run()
    finally:
        loader.close()
        batches.close()
        carrying_out.join()
        heart.finish()
        beating.join()
        identity.leave(heart_link)


def _load(settings: Settings, name: str) -> Model:
    with connect(settings.dsn, purpose="models") as connection:
        return registry.load(
            connection, name, cache_dir=settings.cache_dir, threads=THREADS
        )


def _preload(link: Link, loader: Loader) -> None:
    """Have the models loaded that are likely to be asked for."""
    query = """
        SELECT m.name, m.hash FROM pgembed.model AS m
        ORDER BY (SELECT count(*) FROM pgembed.embedding AS e WHERE e.model = m.name)
            DESC, m.created_at
        LIMIT %s
    """
    for name, model_hash in link.run(lambda c: fetch_all(c, query, (_PRELOADED,))):
        loader.find(name, model_hash)
