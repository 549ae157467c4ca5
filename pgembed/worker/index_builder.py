"""The thread that builds indexes beside the embedding."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import psycopg

from pgembed.embeddings import indexing
from pgembed.embeddings.indexing import IndexJob, State
from pgembed.errors import ConnectError, WorkerError
from pgembed.postgres.connection import Connection, connect
from pgembed.worker.giving_way import PURPOSE, GaveWay, giving_way
from pgembed.worker.leases import Identity
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.link import Link
from pgembed.worker.retries import Retries
from pgembed.worker.sessions import connect_as

_log = logging.getLogger(__name__)
_SHORTEST_DELAY = 10.0
# A try at a partitioned table holds up its users for as long as it waits. It outwaits
# transactions that overlap once it has more patience than they take. Applications wait
# some seconds before they give up.
_LONGEST_PATIENCE = 5.0


class IndexBuilder:
    """Builds one index after the other; run it in a thread."""

    def __init__(
        self, dsn: str, link: Link, identity: Identity, lifetime: Lifetime
    ) -> None:
        self._dsn = dsn
        self._link = link
        self._identity = identity
        self._lifetime = lifetime
        self._retries = Retries(base=60, cap=3600)
        self._later = Retries(base=_SHORTEST_DELAY, cap=600)
        self._builds_as = identity.id  # which may become another during a build
        self._patience: dict[int, float] = {}
        self._unrecorded: dict[int, Callable[[Connection], bool]] = {}
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._connection: Connection | None = None

    def wake(self) -> None:
        """Look for indexes to build."""
        self._wanted.set()

    @property
    def busy(self) -> bool:
        """Whether it looks for indexes to build, or builds one."""
        return self._wanted.is_set()

    def close(self) -> None:
        """Let run return; a build that has begun is cancelled."""
        self._closed.set()
        self._wanted.set()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=5)

    def run(self) -> None:
        """Build what there is to build, whenever woken, until closed."""
        while not self._closed.is_set():
            self._wanted.wait()
            if self._closed.is_set():
                return
            self._record_again()
            self._retry_failed()
            for job in self._link.run(indexing.waiting, beginning=True):
                if self._later.due(job.embedding):
                    self._build(job)
            # It may clear what close has set: that is why the loop asks again.
            self._wanted.clear()

    def _retry_failed(self) -> None:
        for job in self._link.run(indexing.failed, beginning=True):
            if self._retries.due(job.embedding):
                self._record(job, "waiting", None)

    def _build(self, job: IndexJob) -> None:
        started = time.monotonic()
        self._builds_as = self._identity.id
        try:
            with connect(self._dsn, purpose=PURPOSE) as own:
                if not indexing.begin(own, job, self._builds_as):
                    return
                with (
                    self._session(own, job) as self._connection,
                    giving_way(self._dsn, self._lifetime, self._connection, job),
                ):
                    self._try(self._connection, job)
        except GaveWay as way:
            self._put_off(job, way)
        except (psycopg.Error, ConnectError, WorkerError) as error:
            self._failed(job, error)
        else:
            self._record(job, "ready", None)
            self._retries.succeeded(job.embedding)
            self._later.succeeded(job.embedding)
            seconds = time.monotonic() - started
            _log.info("%s: index built in %.1f s", job.name, seconds)
        finally:
            self._connection = None

    def _try(self, connection: Connection, job: IndexJob) -> None:
        """Build, with more patience after each time that it was not enough."""
        patience = self._patience.get(job.embedding, indexing.SHORTEST_PATIENCE)
        if not indexing.build(connection, job, patience):
            self._patience[job.embedding] = min(2 * patience, _LONGEST_PATIENCE)
            raise GaveWay(f"transactions that use the table longer than {patience:g} s")
        self._patience.pop(job.embedding, None)

    @contextlib.contextmanager
    def _session(self, own: Connection, job: IndexJob) -> Iterator[Connection]:
        """Return a session that may build the index: only a table's owner may."""
        owner = indexing.stranger_owner(own, job)
        if owner is None or not indexing.statements(own, job):
            yield own
            return
        try:
            session = connect_as(
                self._dsn, owner, own, whose="the owner of the table", purpose=PURPOSE
            )
        except (ConnectError, WorkerError) as error:
            user = own.info.user
            call = f"pgembed._index_statements({job.embedding})"
            raise WorkerError(
                f"role {user!r} does not own the table, and {error}. Or GRANT "
                f"{owner!r} TO {user!r}; or let {owner!r} run the statements of {call}"
            ) from None
        with session:
            yield session

    def _put_off(self, job: IndexJob, way: GaveWay) -> None:
        wait = self._later.failed(job.embedding)
        _log.info(
            "%s: the building of the index gave way to %s; trying again in %.0f s",
            job.name,
            way,
            wait,
        )
        self._record(job, "waiting", f"its building gave way to {way}")

    def _failed(self, job: IndexJob, error: Exception) -> None:
        if self._closed.is_set():
            self._record(job, "waiting", None)
            return
        wait = self._retries.failed(job.embedding)
        message = str(error).strip()
        _log.error(
            "%s: the index cannot be built (%s); trying again in %.0f s",
            job.name,
            message,
            wait,
        )
        self._record(job, "failed", message)

    def _record(self, job: IndexJob, state: State, error: str | None) -> None:
        worker = self._builds_as

        def later(connection: Connection) -> bool:  # others may build by then
            return indexing.set_state(connection, job, state, error, worker)

        if not self._link.run(lambda c: indexing.set_state(c, job, state, error)):
            _log.info("%s: a transaction holds its row; recorded later", job.name)
            self._unrecorded[job.embedding] = later

    def _record_again(self) -> None:
        for embedding, record in list(self._unrecorded.items()):
            if self._link.run(record):
                del self._unrecorded[embedding]
