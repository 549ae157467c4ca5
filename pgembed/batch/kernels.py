"""Machine code for what would take NumPy many passes, and Python's lock in each.

Compiled when first imported, which takes a second or two, and kept in a cache: beside
this file, or in the user's cache directory, or where NUMBA_CACHE_DIR says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_STRIDE = 64
"""Scores that are looked at together, with vector instructions."""


def _given(type_: Any, dimensions: int) -> Any:
    return types.Array(type_, dimensions, "C", readonly=True)


def _compiled(signature: Any) -> Callable[[Function], Function]:
    """Compile a function that needs no lock; without a cache where none can be."""

    def compiled(function: Function) -> Function:
        made: Function
        try:
            made = numba.njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):
            made = numba.njit(signature, nogil=True)(function)
        return made

    return compiled


_OFFER = types.void(
    types.float32[:, ::1],
    _given(types.float32, 1),
    _given(types.float32, 1),
    _given(types.int64, 1),
    types.int64,
    _given(types.int64, 1),
    _given(types.uint64, 2),
    _given(types.uint64, 2),
    _given(types.uint64, 2),
    types.boolean,
    types.float32[:, ::1],
    types.int32[:, ::1],
    types.float32[::1],
)


@_compiled(types.boolean(*[_given(types.uint64, 2)] * 3, *[types.int64] * 2))
def _meets(words: Words, masks: Words, values: Words, place: int, query: int) -> bool:
    for number in range(len(words)):
        if words[number, place] & masks[query, number] != values[query, number]:
            return False
    return True


@_compiled(types.void(types.float32[::1], types.int32[::1], types.float32, types.int64))
def _replace_lowest(
    heap: Float32, places: NDArray[np.int32], score: float, place: int
) -> None:
    """Put a score, and its place, where the lowest of a heap is now."""
    # The children move up until the score fits.
    hole, child, width = 0, 1, len(heap)
    while child < width:
        if child + 1 < width and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= score:
            break
        heap[hole], places[hole] = heap[child], places[child]
        hole = child
        child = 2 * hole + 1
    heap[hole], places[hole] = score, place


@_compiled(types.boolean(types.float32[::1], types.float32[::1]))
def _any_above(scores: Float32, least: Float32) -> bool:
    # A known number of steps and no way out: these become vector instructions.
    above = np.int32(0)
    for number in range(_STRIDE):
        above = above if scores[number] <= least[number] else np.int32(1)
    return bool(above)


@_compiled(_OFFER)
def offer(
    scores: Float32,
    scale: Float32,
    bias: Float32,
    queries: Ints,
    first: int,
    rows: Ints,
    words: Words,
    masks: Words,
    values: Words,
    tested: bool,
    best: Float32,
    positions: NDArray[np.int32],
    threshold: Float32,
) -> None:
    """Offer the *scores* (r, m) of rows to the heaps of *queries* (m,).

    A score counts as score * *scale* (r,) + *bias* (r,), where they are not empty; its
    position is that in *rows* (r,), or counts from *first* if that is empty. If
    *tested*, only rows count whose *words* (w, n) have, in the bits of the query's
    *masks* (q, w), its *values* (q, w).

    *best* (q, width) and *positions* are a heap for each query, the lowest score at
    its root; *threshold* (q,) is the highest root that any thread has seen.
    """
    count = len(queries)
    # Few queries: several rows are looked at together.
    together = -(-_STRIDE // count)
    least = np.empty(together * count, np.float32)
    for number in range(len(least)):
        query = queries[number % count]
        least[number] = max(best[query, 0], threshold[query])
    for start in range(0, len(scores), together):
        end = min(start + together, len(scores))
        line = scores[start:end].reshape(-1)
        for row in range(start, end):
            if len(scale):
                for column in range(count):
                    scores[row, column] *= scale[row]
            if len(bias):
                for column in range(count):
                    scores[row, column] += bias[row]
        for left in range(0, len(line), _STRIDE):
            right = min(left + _STRIDE, len(line))
            if len(line) >= _STRIDE and not _any_above(
                line[right - _STRIDE : right], least[right - _STRIDE : right]
            ):
                continue
            for number in range(left, right):
                score = line[number]
                if not score > least[number]:
                    continue
                query, row = queries[number % count], start + number // count
                place = rows[row] if len(rows) else first + row
                if tested and not _meets(words, masks, values, place, query):
                    continue
                _replace_lowest(best[query], positions[query], score, place)
                lowest = best[query, 0]
                for other in range(number % count, len(least), count):
                    least[other] = max(least[other], lowest)
    for number in range(count):
        query = queries[number]
        threshold[query] = max(threshold[query], least[number])
