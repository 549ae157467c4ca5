"""Matrix products of queries and vectors, a block at a time, on every core."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.metric import Metric
from pgembed.batch.topk import TopK, best_of

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Rows = slice | Ints

_SCORES = 1 << 17
"""Scores in a block: with the vectors, what fits a core's cache (measured)."""
_QUERIES = 256
_MOST_BYTES = 8 << 20
"""Vectors that a thread copies at once."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Compare *queries* (sorted numbers) with *rows*: a slice, or positions."""

    queries: Ints
    rows: Rows
    tested: bool = False
    """Whether only some of the rows count, which the tests know."""


@dataclasses.dataclass(frozen=True)
class Tests:
    """Which rows count for a query: those with its values in its bits."""

    words: NDArray[np.uint64]
    """(w, n): the bits of each row."""
    masks: NDArray[np.uint64]
    """(q, w): the bits that each query asks for."""
    values: NDArray[np.uint64]
    """(q, w): what they have to be."""


_NO_ROWS: Ints = np.empty(0, np.int64)
_NO_TESTS = Tests(*[np.empty((0, 0), np.uint64)] * 3)


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def load_kernels() -> None:
    """Begin to load what a scan needs, which takes a third of a second."""
    for name in ("pgembed.batch.kernels", "pgembed.batch.products"):
        if name not in sys.modules:
            threading.Thread(target=importlib.import_module, args=[name]).start()


class Scan:
    """Tasks carried out by threads, each with candidates of its own."""

    def __init__(
        self,
        metric: Metric,
        width: int,
        *,
        asked: Ints,
        tests: Tests | None,
        threads: int,
    ) -> None:
        """Prepare for the queries *asked* (m,), *width* candidates of each."""
        self.metric, self.tests = metric, tests or _NO_TESTS
        self.threads = max(1, threads)
        count = len(metric.queries)
        self.tops = [TopK(count, width, asked) for _ in range(self.threads)]
        self.threshold = np.full(count, -np.inf, np.float32)
        self.products = 0
        """Scores computed so far."""
        # Not with this module: they load a compiler, of 70 MB, and ONNX Runtime.
        from pgembed.batch import kernels, products

        self._offer, self._multiply = kernels.offer, products.products

    def run(
        self, tasks: Iterable[Task], tick: Callable[[], None] | None = None
    ) -> None:
        """Carry out *tasks*; *tick* is called after each of them.

        BLAS is to use no threads of its own.
        """
        queue = _Shared(iter(tasks))
        if self.threads == 1:
            self._work(queue, self.tops[0], tick)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(self._work, queue, top, tick) for top in self.tops]
            try:
                for future in futures:
                    future.result()
            finally:
                queue.close()

    def best(self, queries: Ints) -> tuple[Float32, NDArray[np.int32]]:
        """Return scores and positions (m, width) of the best of *queries*, unordered.

        Missing ones have score minus infinity and position -1.
        """
        return best_of(self.tops, queries)

    def _work(self, queue: _Shared, top: TopK, tick: Callable[[], None] | None) -> None:
        try:
            for task in queue:
                self._carry_out(task, top)
                if tick is not None:
                    tick()
        except BaseException:
            queue.close()
            raise

    def _carry_out(self, task: Task, top: TopK) -> None:
        metric, tests = self.metric, self.tests
        blocks = [
            task.queries[start : start + _QUERIES]
            for start in range(0, len(task.queries), _QUERIES)
        ]
        vectors = [metric.scan_queries[queries] for queries in blocks]
        for rows in _parts(task, metric.vectors.dimensions):
            if isinstance(rows, slice):
                values = metric.vectors.slice(rows.start, rows.stop)
                first, places = rows.start, _NO_ROWS
            else:
                values = metric.vectors.take(rows)
                first, places = 0, rows
            scale, bias = metric.factors(rows)
            for queries, asking in zip(blocks, vectors, strict=True):
                self._offer(
                    self._multiply(values, asking),
                    scale,
                    bias,
                    queries,
                    first,
                    places,
                    tests.words,
                    tests.masks,
                    tests.values,
                    task.tested,
                    top.scores,
                    top.positions,
                    self.threshold,
                )
            self.products += len(task.queries) * len(values)


def _parts(task: Task, dimensions: int) -> Iterator[Rows]:
    """Cut the rows of a task so that scores fit a block, and copies into memory."""
    rows = task.rows
    most = max(1, _MOST_BYTES // (4 * dimensions))
    size = min(most, _SCORES // min(len(task.queries), _QUERIES))
    if isinstance(rows, slice):
        for start in range(rows.start, rows.stop, size):
            yield slice(start, min(rows.stop, start + size))
    else:
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


class _Shared:
    """An iterator that threads take from, until one of them fails."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks, self._lock, self._closed = tasks, threading.Lock(), False

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        with self._lock:
            if self._closed:
                raise StopIteration
            return next(self._tasks)

    def close(self) -> None:
        self._closed = True
