"""The threads in which models run.

Batches run side by side, one thread each: threads that share one batch wait for each
other at every operator, the more so when one of them must yield its core. Two tasks are
under way, so that no core idles while the last batches of one of them end.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pgembed.models.encoding import Encoded
from pgembed.postgres.vectors import Float32
from pgembed.worker import batching, crash_points, metrics
from pgembed.worker.fairness import Pace
from pgembed.worker.lifetime import Lifetime, put_patiently
from pgembed.worker.tasks import Task, finish
from pgembed.worker.writeback import Writer

_log = logging.getLogger(__name__)


class Runner:
    """Takes tasks, runs their model and passes the results on."""

    TASKS = 2
    """Threads that are to call run."""

    def __init__(
        self,
        writer: Writer,
        pace: Pace,
        lifetime: Lifetime,
        *,
        batch_tokens: int,
        threads: int,
    ) -> None:
        self._writer = writer
        self._pace = pace
        self._lifetime = lifetime
        self._batch_tokens = batch_tokens
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self._inbox: queue.Queue[Task | None] = queue.Queue(1)

    def submit(self, task: Task) -> None:
        """Have a task run; waits while another one waits already."""
        self._put(task)

    def close(self) -> None:
        """Let run return after the tasks submitted so far."""
        for _ in range(self.TASKS):
            self._put(None)

    def run(self) -> None:
        """Run what is submitted until closed."""
        while (task := self._inbox.get()) is not None:
            self._run(task)

    def shutdown(self) -> None:
        """Take no more batches; what still runs is left behind."""
        self._pool.shutdown(wait=False)

    def _put(self, item: Task | None) -> None:
        put_patiently(self._inbox, item, self._lifetime)

    def _run(self, task: Task) -> None:
        lease = task.lease
        busy = _Stopwatch(task)
        try:
            if self._lifetime.stopping:
                raise batching.Cancelled
            outcome = batching.embed(
                task.encoded,
                busy.run,
                batch_tokens=self._budget(task.encoded),
                dimensions=task.model.dimensions,
                wanted=lambda: not (lease.lost or self._lifetime.over),
                mapper=self._pool.map,
            )
        except batching.Cancelled:
            self._writer.hand_back(lease)
            return
        crash_points.reached("embedded")
        self._record(task, busy.seconds)
        self._writer.submit(finish(task, outcome))

    def _record(self, task: Task, busy_seconds: float) -> None:
        name, rows = task.work.name, len(task.lease.claim)
        tokens = int(task.encoded.lengths.sum())
        seconds = busy_seconds / self._threads
        metrics.ROWS.labels(name).inc(rows)
        metrics.TOKENS.labels(name).inc(tokens)
        metrics.TRUNCATED.labels(name).inc(task.truncated)
        metrics.MODEL_SECONDS.labels(task.work.model).inc(busy_seconds)
        self._pace.observe(task.lease.claim.embedding, rows, seconds)
        cut = f", texts truncated: {task.truncated}" if task.truncated else ""
        _log.info(
            "%s: %d rows, %d tokens in %.2f s%s", name, rows, tokens, seconds, cut
        )

    def _budget(self, encoded: Encoded) -> int:
        """Return the tokens of a batch: fewer when there are too few for all."""
        share = -(-int(encoded.lengths.sum()) // self._threads)
        return max(min(self._batch_tokens, share), 1)


class _Stopwatch:
    """A task's model, and how long its batches took, added up."""

    def __init__(self, task: Task) -> None:
        self._model = task.model
        self._lock = threading.Lock()
        self.seconds = 0.0

    def run(self, encoded: Encoded) -> Float32:
        started = time.monotonic()
        try:
            return self._model.run(encoded)
        finally:
            with self._lock:
                self.seconds += time.monotonic() - started
