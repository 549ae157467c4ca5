"""The embedding process: claim, embed and write back, each beside the others."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable

import psycopg

from pgembed.embeddings import workers
from pgembed.embeddings.queue import Queue
from pgembed.errors import ConnectError
from pgembed.postgres.connection import connect
from pgembed.settings import Settings
from pgembed.worker.claiming import Claimer, prepare_connection
from pgembed.worker.fairness import Pace
from pgembed.worker.index_builder import IndexBuilder
from pgembed.worker.leases import Heart, Identity, Lease, Leases
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link
from pgembed.worker.runner import Runner
from pgembed.worker.tasks import Task
from pgembed.worker.threads import Threads
from pgembed.worker.writeback import Writer

_log = logging.getLogger(__name__)
_SLICE = 0.1


class EmbeddingLoop:
    """Embeds rows until told to stop, or with *once* until nothing is left to do.

    The calling thread claims and tokenizes; others run the model, write back, renew
    leases and build indexes. No transaction is open while the model runs.
    """

    def __init__(
        self, settings: Settings, lifetime: Lifetime, *, once: bool = False
    ) -> None:
        self._settings = with_threads(settings)
        self._lifetime = lifetime
        self._once = once
        self._threads = Threads(lifetime)
        self._links: list[Link] = []
        self._leases = Leases()
        self._pace = Pace(settings.claim_rows)

    def run(self) -> None:
        """Work. Raises WorkerError when a thread fails."""
        link = Link(
            self._settings.dsn, "worker", self._lifetime, opened=prepare_connection
        )
        self._links.append(link)
        try:
            self._work(link)
        except Stopped:
            pass
        finally:
            for each in self._links:
                each.close()
        self._threads.check()

    def _work(self, link: Link) -> None:
        identity = Identity("embed", link)
        writer = self._writer(identity)
        runner = Runner(
            writer,
            self._pace,
            self._lifetime,
            batch_tokens=self._settings.batch_tokens,
            threads=self._settings.threads,
        )
        heart = self._heart(identity)
        builder = self._builder(identity)
        running = [
            self._threads.start("runner", runner.run) for _ in range(Runner.TASKS)
        ]
        others = [
            self._threads.start("writer", writer.run),
            self._threads.start("heartbeat", heart.run),
            self._threads.start("index", builder.run),
        ]
        try:
            self._claimer(link, identity, builder, _Sink(runner, writer)).run(
                once=self._once
            )
        finally:
            self._wind_up(running, others, runner, writer, heart, builder)
            self._say_goodbye(identity)

    def _link(self, purpose: str) -> Link:
        link = Link(self._settings.dsn, purpose, self._lifetime, finishing=True)
        self._links.append(link)
        return link

    def _writer(self, identity: Identity) -> Writer:
        return Writer(
            self._link("writer"),
            self._leases,
            identity,
            self._lifetime,
            max_attempts=self._settings.max_attempts,
        )

    def _heart(self, identity: Identity) -> Heart:
        return Heart(
            identity,
            self._link("heartbeat"),
            self._lifetime,
            leases=self._leases,
            lease_seconds=self._settings.lease_seconds,
        )

    def _builder(self, identity: Identity) -> IndexBuilder:
        link = self._link("index")
        return IndexBuilder(self._settings.dsn, link, identity, self._lifetime)

    def _claimer(
        self, link: Link, identity: Identity, builder: IndexBuilder, sink: _Sink
    ) -> Claimer:
        return Claimer(
            self._settings,
            self._lifetime,
            link,
            identity=identity,
            leases=self._leases,
            pace=self._pace,
            builder=builder,
            sink=sink,
        )

    def _wind_up(
        self,
        running: list[threading.Thread],
        others: list[threading.Thread],
        runner: Runner,
        writer: Writer,
        heart: Heart,
        builder: IndexBuilder,
    ) -> None:
        """Let the threads end in the order in which the work passes them."""
        writing, *rest = others
        builder.close()
        runner.close()
        # A batch cannot be interrupted: it is left behind when the time is over.
        for thread in running:
            _join(thread, lambda: self._lifetime.over)
        runner.shutdown()
        writer.close()
        _join(writing, lambda: self._lifetime.dead)
        heart.finish()
        for thread in rest:
            _join(thread, lambda: self._lifetime.dead)

    def _say_goodbye(self, identity: Identity) -> None:
        """Release what is still held; when that fails, it expires by itself."""
        try:
            with connect(self._settings.dsn, purpose="goodbye") as connection:
                for lease in self._leases.held():
                    claim = lease.claim
                    Queue(connection).release(claim.embedding, claim.lease)
                workers.unregister(connection, identity.id)
        except (psycopg.Error, ConnectError) as error:
            _log.warning("the worker could not sign off: %s", error)


@dataclasses.dataclass(frozen=True)
class _Sink:
    runner: Runner
    writer: Writer

    def submit(self, task: Task) -> None:
        self.runner.submit(task)

    def hand_back(self, lease: Lease, delay: float = 0.0) -> None:
        self.writer.hand_back(lease, delay)


def _join(thread: threading.Thread, over: Callable[[], bool]) -> None:
    while thread.is_alive() and not over():
        thread.join(_SLICE)


def with_threads(settings: Settings) -> Settings:
    """Return settings in which threads is stated: cores divided by processes."""
    if settings.threads:
        return settings
    cores = len(os.sched_getaffinity(0))
    return dataclasses.replace(settings, threads=max(cores // settings.processes, 1))
