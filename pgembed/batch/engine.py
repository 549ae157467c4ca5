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
from pgembed.batch.topk import TopK, best_of

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Rows = slice | Ints

_SCORES = 1 << 18
"""Scores in a block: with the vectors, what fits a core's cache (measured)."""
_QUERIES = 256
_LIST_ROWS = 4096
"""So many rows are compared in one go, thresholds or not."""
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

    def best(self, queries: Ints) -> tuple[Float32, NDArray[np.int32]]:
        """Return scores and positions (m, width) of the best of *queries*, unordered.

        Missing ones have score minus infinity and position -1.
        """
        return best_of(self.tops, queries)

    def _work(self, queue: _Shared, top: TopK, tick: Callable[[], None] | None) -> None:
        block = _Block(self, top)
        try:
            for task in queue:
                self._carry_out(task, block)
                if tick is not None:
                    tick()
            block.settle()
        except BaseException:
            queue.close()
            raise

    def _carry_out(self, task: Task, block: _Block) -> None:
        for rows in self._parts(task, block):
            if isinstance(rows, slice):
                values = self.metric.vectors.slice(rows.start, rows.stop)
            else:
                values = self.metric.vectors.take(rows)
            for start in range(0, len(task.queries), _QUERIES):
                part = task.queries[start : start + _QUERIES]
                block.add(_Piece(part, rows, task.tested), values)
            self.products += len(task.queries) * len(values)

    def _parts(self, task: Task, block: _Block) -> Iterator[Rows]:
        """Cut the rows: of many, a few first, while there are no thresholds."""
        rows = task.rows
        first = rows.start if isinstance(rows, slice) else 0
        end = rows.stop if isinstance(rows, slice) else len(rows)
        most = min(_MOST_ROWS, _SCORES // min(len(task.queries), _QUERIES))
        size = most
        if end - first > _LIST_ROWS and block.is_new(task.queries):
            size = min(most, max(64, 4 * block.top.width))
        while first < end:
            last = min(end, first + size)
            yield slice(first, last) if isinstance(rows, slice) else rows[first:last]
            if size < most:
                block.settle()
            first, size = last, min(most, 4 * size)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Queries (m,) and the rows (r,) whose scores are next to each other."""

    queries: Ints
    rows: Rows
    tested: bool

    @property
    def width(self) -> int:
        rows = self.rows
        return rows.stop - rows.start if isinstance(rows, slice) else len(rows)

    def positions(self, columns: Ints) -> Ints:
        """Return the positions of rows, by their number in the piece."""
        if isinstance(self.rows, slice):
            return np.asarray(columns + self.rows.start)
        return np.asarray(self.rows[columns])


class _Block:
    """Scores of a few pieces, gone through together: one thread's."""

    def __init__(self, scan: Scan, top: TopK) -> None:
        self.scan, self.top = scan, top
        self._pieces: list[_Piece] = []
        self._used = 0
        self._scores = np.empty(0, np.float32)

    def is_new(self, queries: Ints) -> bool:
        """Whether some of *queries* have no threshold yet."""
        return bool(np.isneginf(self._thresholds(queries)).any())

    def _thresholds(self, queries: Ints) -> Float32:
        """Return (m,): the best that any thread knows."""
        mine = self.top.threshold[queries]
        return np.asarray(np.maximum(self.scan.threshold[queries], mine))

    def add(self, piece: _Piece, values: Float32) -> None:
        """Compute the scores of a piece, whose rows have vectors *values* (r, d)."""
        shape = (len(piece.queries), len(values))
        size = shape[0] * shape[1]
        if self._used + size > len(self._scores):
            self.settle()
            if size > len(self._scores):
                self._scores = np.empty(max(size, _SCORES), np.float32)
        metric = self.scan.metric
        out = self._scores[self._used : self._used + size].reshape(shape)
        np.matmul(metric.scan_queries[piece.queries], values.T, out=out)
        metric.finish(out, piece.rows)
        self._pieces.append(piece)
        self._used += size

    def settle(self) -> None:
        """Offer the scores above their queries' thresholds as candidates."""
        if not self._pieces:
            return
        top = self.top
        queries = np.concatenate([piece.queries for piece in self._pieces])
        threshold = self._thresholds(queries)
        top.threshold[queries] = threshold
        sizes = [len(piece.queries) for piece in self._pieces]
        widths = np.repeat([piece.width for piece in self._pieces], sizes)
        ends = np.cumsum(widths)
        scores = self._scores[: self._used]
        # Of rows without a threshold, or with many survivors, the best alone.
        self._push_best(np.isneginf(threshold))
        threshold[np.isneginf(threshold)] = np.inf
        if len(sizes) == 1:
            passed = scores.reshape(sizes[0], -1) > threshold[:, None]
        else:
            passed = scores > np.repeat(threshold, widths)
        found = passed.ravel().nonzero()[0]
        row = np.searchsorted(ends, found, "right")
        many = np.bincount(row, minlength=len(queries)) > top.room
        if many.any():
            self._push_best(many)
            kept = ~many[row]
            found, row = found[kept], row[kept]
        if len(found):
            column = found - (ends - widths)[row]
            self._push(row, queries[row], self._positions(row, column), scores[found])
        self.scan.threshold[queries] = self._thresholds(queries)
        self._pieces, self._used = [], 0

    def _positions(self, row: Ints, column: Ints) -> Ints:
        """Return the positions (m,) of rows; *row* (m,) is sorted."""
        starts = np.cumsum([0, *(len(piece.queries) for piece in self._pieces)])
        cuts = np.searchsorted(row, starts).tolist()
        found: Ints = np.concatenate(
            [
                piece.positions(column[first:last])
                for piece, first, last in zip(
                    self._pieces, cuts[:-1], cuts[1:], strict=True
                )
            ]
        )
        return found

    def _push(self, row: Ints, queries: Ints, places: Ints, scores: Float32) -> None:
        tests = self.scan.tests
        if tests is not None and any(piece.tested for piece in self._pieces):
            kept = tests.pairs(queries, places)
            queries, places, scores = queries[kept], places[kept], scores[kept]
        if len(self._pieces) > 1:
            order = np.argsort(queries, kind="stable")
            queries, places, scores = queries[order], places[order], scores[order]
        self.top.push(queries, places, scores)

    def _push_best(self, chosen: NDArray[np.bool_]) -> None:
        """Offer the best scores of the *chosen* rows (M,) of the pieces."""
        if not chosen.any():
            return
        start = offset = 0
        for piece in self._pieces:
            count, width = len(piece.queries), piece.width
            mine = np.flatnonzero(chosen[start : start + count])
            if len(mine):
                scores = self._scores[offset : offset + count * width]
                self._push_best_of(piece, mine, scores.reshape(count, width)[mine])
            start, offset = start + count, offset + count * width

    def _push_best_of(self, piece: _Piece, mine: Ints, scores: Float32) -> None:
        scores[np.isnan(scores)] = -np.inf
        queries = piece.queries[mine]
        if piece.tested and self.scan.tests is not None:
            scores[~self.scan.tests.grid(queries, piece.rows)] = -np.inf
        places = piece.positions(np.arange(piece.width))
        self.top.push_best(queries, places, scores)


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
