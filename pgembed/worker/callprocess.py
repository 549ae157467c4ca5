"""The process that answers calls, put together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pgembed.errors import WorkerError
from pgembed.models import registry
from pgembed.models.session import Model
from pgembed.postgres.connection import Connection, connect, fetch_all
from pgembed.settings import Settings
from pgembed.worker.batches import Batches
from pgembed.worker.calls import CallServer
from pgembed.worker.leases import Identity
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.link import Link
from pgembed.worker.loader import Loader
from pgembed.worker.model_additions import Additions
from pgembed.worker.model_cache import ModelCache
from pgembed.worker.presence import present
from pgembed.worker.socketcalls import Leave, SocketCalls
from pgembed.worker.socketplace import SocketPlace
from pgembed.worker.tablecalls import TableCalls, prepare_connection
from pgembed.worker.threads import Threads
from pgembed.worker.transports import TableAndSocket

# A query is short: more threads win little alone, and lose much beside bulk work.
THREADS = 1
_PRELOADED = 4

_HASH = "SELECT m.hash FROM pgembed.model AS m WHERE m.name = %s"

_log = logging.getLogger(__name__)


def serve_calls(settings: Settings, lifetime: Lifetime) -> None:
    """Answer calls until told to stop.

    Raises WorkerError when a thread fails, or the socket belongs elsewhere by now.
    """
    link = Link(settings.dsn, "calls", lifetime, opened=_preparing(settings))
    with present(settings, lifetime, "calls", link) as (identity, threads):
        _serve(settings, lifetime, link, identity, threads)


def _serve(
    settings: Settings,
    lifetime: Lifetime,
    link: Link,
    identity: Identity,
    threads: Threads,
) -> None:
    loader = Loader(ModelCache(lambda *model: _load(settings, *model)))
    additions = Additions(settings, lifetime)
    batches = Batches(settings, identity, lifetime)
    carrying_out = threads.start("batches", batches.run)
    table = TableCalls(link, identity, additions.begin)
    sockets = _open_socket(settings, link, additions, table.leave)
    transport = TableAndSocket(table, sockets) if sockets else table
    try:
        _preload(link, loader)
        CallServer(transport, loader, lifetime).run()
    finally:
        if sockets:
            sockets.close()
        loader.close()
        batches.close()
        carrying_out.join()


def _preparing(settings: Settings) -> Callable[[Connection], None]:
    """Return what prepares each new connection, as long as the socket's place stays.

    It does not when another database has taken the name of the first, or when pgembed
    was installed with another transport or folder: then a new process is to begin.
    """
    known: list[SocketPlace | None] = []

    def prepare(connection: Connection) -> None:
        prepare_connection(connection)
        place = _place(settings, connection)
        if known and place != known[0]:
            raise WorkerError(
                "the database has changed, and SQL functions look for this worker "
                "elsewhere now: it begins anew"
            )
        known[:] = [place]

    return prepare


def _place(settings: Settings, connection: Connection) -> SocketPlace | None:
    folder = Path(settings.socket_dir) if settings.socket_dir else None
    return SocketPlace.of(connection, folder)


def _open_socket(
    settings: Settings, link: Link, additions: Additions, leave: Leave
) -> SocketCalls | None:
    """Return the socket of SQL functions in PL/Python, where there are any."""
    place = link.run(lambda c: _place(settings, c))
    if place is None:
        return None
    known: set[tuple[str, bytes]] = set()

    def knows(name: str, model_hash: bytes) -> bool:
        if (name, model_hash) not in known:
            rows = link.run(lambda c: fetch_all(c, _HASH, (name,)))
            known.update((name, found) for (found,) in rows)
        return (name, model_hash) in known

    try:
        sockets = SocketCalls(place, knows, additions.add, leave)
    except WorkerError as error:
        _log.warning("%s", error)
        return None
    _log.info("SQL functions reach this worker at %s", sockets.path)
    return sockets


def _load(settings: Settings, name: str, model_hash: bytes) -> Model:
    with connect(settings.dsn, purpose="models") as connection:
        return registry.load(
            connection,
            name,
            model_hash,
            cache_dir=settings.cache_dir,
            threads=THREADS,
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
