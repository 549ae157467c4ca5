"""Matrix products of queries and vectors, a block at a time, on every core."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pgembed.batch.metric import Metric
from pgembed.batch.topk import TopK

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Rows = slice | Ints

_SCORES = 1 << 18
"""Scores in a block: with the vectors, what fits a core's cache (measured)."""
_QUERIES = 256
_MOST_ROWS = 16_384


@dataclasses.dataclass(frozen=True)
class Task:
    """Compare *queries* (sorted numbers) with *rows*: a slice, or positions."""

    queries: Ints
    rows: Rows
    tested: bool = False
    """Whether only some of the rows count, which the tests know."""


@dataclasses.dataclass(frozen=True)
class Tests:
    """Which rows count for which query: those that have all bits of its mask."""

    words: NDArray[np.uint64]
    """(w, n): the bits of each row."""
    masks: NDArray[np.uint64]
    """(q, w): the bits that each query asks for."""

    def pairs(self, queries: Ints, positions: Ints) -> NDArray[np.bool_]:
        """Return for each pair (m,) whether the row counts for the query."""
        passed = np.ones(len(queries), bool)
        for word, masks in zip(self.words, self.masks.T, strict=True):
            wanted = masks[queries]
            passed &= word[positions] & wanted == wanted
        return passed

    def grid(self, queries: Ints, rows: Rows) -> NDArray[np.bool_]:
        """Return (m, r): whether each row counts for each query."""
        masks = self.masks[queries]
        passed = np.True_
        for word, wanted in zip(self.words[:, rows], masks.T[..., None], strict=True):
            passed = passed & (word & wanted == wanted)
        return np.asarray(passed)


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


class Scan:
    """Tasks carried out by threads, each with candidates of its own."""

    def __init__(
        self, metric: Metric, width: int, *, tests: Tests | None, threads: int
    ) -> None:
        self.metric, self.tests, self.threads = metric, tests, max(1, threads)
        count = len(metric.queries)
        self.tops = [TopK(count, width) for _ in range(self.threads)]
        self.threshold = np.full(count, -np.inf, np.float32)
        self.products = 0
        """Scores computed so far."""

    def run(
        self, tasks: Iterable[Task], tick: Callable[[], None] | None = None
    ) -> None:
        """Carry out *tasks*; *tick* is called after each of them."""
        queue = _Shared(iter(tasks))
        with threadpool_limits(1, user_api="blas"):
            if self.threads == 1:
                self._work(queue, self.tops[0], tick)
                return
            with ThreadPoolExecutor(self.threads) as pool:
                futures = [
                    pool.submit(self._work, queue, top, tick) for top in self.tops
                ]
                try:
                    for future in futures:
                        future.result()
                finally:
                    queue.close()

    def best(self) -> tuple[Float32, NDArray[np.int32]]:
        """Return scores and positions (q, width) of the best candidates, unordered."""
        return self.tops[0].best(*self.tops[1:])

    def _work(self, queue: _Shared, top: TopK, tick: Callable[[], None] | None) -> None:
        try:
            buffers = _Buffers()
            for task in queue:
                known = np.maximum(
                    self.threshold[task.queries], top.threshold[task.queries]
                )
                top.threshold[task.queries] = known
                self._carry_out(task, top, buffers)
                self.threshold[task.queries] = np.maximum(
                    self.threshold[task.queries], top.threshold[task.queries]
                )
                if tick is not None:
                    tick()
        except BaseException:
            queue.close()
            raise

    def _carry_out(self, task: Task, top: TopK, buffers: _Buffers) -> None:
        total = len(task.queries)
        for rows in self._blocks(task, top):
            if isinstance(rows, slice):
                values = self.metric.vectors.slice(rows.start, rows.stop)
            else:
                values = self.metric.vectors.take(rows)
            for start in range(0, total, _QUERIES):
                part = task.queries[start : start + _QUERIES]
                self._compare(part, rows, values, task.tested, top, buffers)
            self.products += total * len(values)

    def _blocks(self, task: Task, top: TopK) -> Iterator[Rows]:
        """Cut the rows: small pieces first while there are no thresholds."""
        rows = task.rows
        first = rows.start if isinstance(rows, slice) else 0
        end = rows.stop if isinstance(rows, slice) else len(rows)
        most = min(_MOST_ROWS, _SCORES // min(len(task.queries), _QUERIES))
        new = bool(np.isneginf(top.threshold[task.queries]).any())
        size = min(most, max(64, 4 * top.width)) if new else most
        while first < end:
            last = min(end, first + size)
            yield slice(first, last) if isinstance(rows, slice) else rows[first:last]
            first, size = last, min(most, 4 * size)

    def _compare(
        self,
        queries: Ints,
        rows: Rows,
        values: Float32,
        tested: bool,
        top: TopK,
        buffers: _Buffers,
    ) -> None:
        scores, passed = buffers.of(len(queries), len(values))
        np.matmul(self.metric.scan_queries[queries], values.T, out=scores)
        self.metric.finish(scores, rows)
        threshold = top.threshold[queries]
        np.greater(scores, threshold[:, None], out=passed)
        found = passed.ravel().nonzero()[0]
        tests = self.tests if tested else None
        if len(found) > top.room:
            counts = np.count_nonzero(passed, axis=1)
            many = np.flatnonzero(counts > top.room)
            if len(many):
                self._push_best(queries[many], rows, scores[many], tests, top)
                passed[many] = False
                found = passed.ravel().nonzero()[0]
        if not len(found):
            return
        row, column = np.divmod(found, len(values))
        owners = queries[row]
        places = column + rows.start if isinstance(rows, slice) else rows[column]
        if tests is not None:
            kept = tests.pairs(owners, places)
            found, owners, places = found[kept], owners[kept], places[kept]
        top.push(owners, places, scores.ravel()[found])

    def _push_best(
        self, queries: Ints, rows: Rows, scores: Float32, tests: Tests | None, top: TopK
    ) -> None:
        scores[np.isnan(scores)] = -np.inf
        if tests is not None:
            scores[~tests.grid(queries, rows)] = -np.inf
        places = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        top.push_best(queries, places, scores)


class _Buffers:
    """Space for one block of scores, used again and again by one thread."""

    def __init__(self) -> None:
        self._scores = np.empty(0, np.float32)
        self._passed = np.empty(0, bool)

    def of(self, queries: int, rows: int) -> tuple[Float32, NDArray[np.bool_]]:
        size = queries * rows
        if size > len(self._scores):
            self._scores = np.empty(size, np.float32)
            self._passed = np.empty(size, bool)
        shape = (queries, rows)
        return self._scores[:size].reshape(shape), self._passed[:size].reshape(shape)


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
