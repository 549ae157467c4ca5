"""Machine code for what would take NumPy many passes, and Python's lock in each.

Compiled when first imported, which takes a second, and kept in a cache then: beside
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
    """Offer the scores (m, r) of *queries* (m,) to their heaps.

    A score counts as score * *scale* (r,) + *bias* (r,), where they are not empty; its
    position is that in *rows* (r,), or counts from *first* if that is empty. If
    *tested*, only rows count whose *words* (w, n) have, in the bits of the query's
    *masks* (q, w), its *values* (q, w).

    *best* (q, width) and *positions* are a heap for each query, the lowest score at
    its root; *threshold* (q,) is the highest root that any thread has seen.
    """
    width = best.shape[1]
    for row in range(len(queries)):
        query = queries[row]
        heap, places, line = best[query], positions[query], scores[row]
        if len(scale):
            for column in range(len(line)):
                line[column] *= scale[column]
        if len(bias):
            for column in range(len(line)):
                line[column] += bias[column]
        least = max(heap[0], threshold[query])
        for start in range(0, len(line), _STRIDE):
            end = min(start + _STRIDE, len(line))
            above = 0
            for column in range(start, end):
                above += line[column] > least
            if above == 0:
                continue
            for column in range(start, end):
                score = line[column]
                if not score > least:
                    continue
                place = rows[column] if len(rows) else first + column
                if tested and not _meets(words, masks, values, place, query):
                    continue
                # The lowest makes room: its children move up until the score fits.
                hole = 0
                child = 1
                while child < width:
                    if child + 1 < width and heap[child + 1] < heap[child]:
                        child += 1
                    if heap[child] >= score:
                        break
                    heap[hole], places[hole] = heap[child], places[child]
                    hole = child
                    child = 2 * hole + 1
                heap[hole], places[hole] = score, place
                least = max(least, heap[0])
        threshold[query] = max(threshold[query], least)
