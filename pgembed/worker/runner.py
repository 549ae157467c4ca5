"""The thread in which models run."""

from __future__ import annotations

import logging
import queue
import time

from pgembed.worker import batching
from pgembed.worker.fairness import Pace
from pgembed.worker.lifetime import Lifetime, put_patiently
from pgembed.worker.tasks import Task, finish
from pgembed.worker.writeback import Writer

_log = logging.getLogger(__name__)


class Runner:
    """Takes tasks, runs their model and passes the results on."""

    def __init__(
        self, writer: Writer, pace: Pace, lifetime: Lifetime, *, batch_tokens: int
    ) -> None:
        self._writer = writer
        self._pace = pace
        self._lifetime = lifetime
        self._batch_tokens = batch_tokens
        self._inbox: queue.Queue[Task | None] = queue.Queue(1)

    def submit(self, task: Task) -> None:
        """Have a task run; waits while another one waits already."""
        self._put(task)

    def close(self) -> None:
        """Let run return after the tasks submitted so far."""
        self._put(None)

    def run(self) -> None:
        """Run what is submitted until closed."""
        while (task := self._inbox.get()) is not None:
            self._run(task)

    def _put(self, item: Task | None) -> None:
        put_patiently(self._inbox, item, self._lifetime)

    def _run(self, task: Task) -> None:
        lease = task.lease
        started = time.monotonic()
        try:
            if self._lifetime.stopping:
                raise batching.Cancelled
            outcome = batching.embed(
                task.encoded,
                task.model.run,
                batch_tokens=self._batch_tokens,
                dimensions=task.model.dimensions,
                wanted=lambda: not (lease.lost or self._lifetime.over),
            )
        except batching.Cancelled:
            self._writer.hand_back(lease)
            return
        seconds = time.monotonic() - started
        self._pace.observe(lease.claim.embedding, len(lease.claim), seconds)
        self._report(task, seconds)
        self._writer.submit(finish(task, outcome))

    def _report(self, task: Task, seconds: float) -> None:
        _log.info(
            "%s: %d rows, %d tokens in %.2f s",
            task.work.name,
            len(task.lease.claim),
            int(task.encoded.lengths.sum()),
            seconds,
        )
