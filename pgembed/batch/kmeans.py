"""k-means by matrix products: centres trained on a sample, every row assigned."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_ITERATIONS = 10
_PER_CENTRE = 48
_BLOCK = 2048
_SETTLED = 0.01


def sample_size(rows: int, centres: int) -> int:
    """Return how many rows to train so many centres on."""
    return min(rows, max(4096, _PER_CENTRE * centres))


def train(sample: Float32, centres: int, *, seed: int = 0, threads: int = 1) -> Float32:
    """Return at most *centres* centres (c, d) of *sample* (n, d); none is empty."""
    random = np.random.default_rng(seed)
    count = min(centres, len(sample))
    found = sample[random.choice(len(sample), count, replace=False)].copy()
    before = np.full(len(sample), -1)
    for _ in range(_ITERATIONS):
        lists, distances = assign(found, len(sample), sample.__getitem__, threads)
        found = _means(sample, lists, found, distances)
        if np.count_nonzero(lists != before) < _SETTLED * len(sample):
            break
        before = lists
    used = np.unique(assign(found, len(sample), sample.__getitem__, threads)[0])
    return found[used] if len(used) else found


def _means(
    sample: Float32, lists: Ints, centres: Float32, distances: Float32
) -> Float32:
    order = np.argsort(lists, kind="stable")
    counts = np.bincount(lists, minlength=len(centres))
    starts = np.cumsum(counts) - counts
    full = counts > 0
    means = np.empty_like(centres)
    means[full] = (
        np.add.reduceat(sample[order], starts[full], axis=0) / counts[full][:, None]
    )
    # An empty list begins again at one of the rows that fit worst.
    empty = np.flatnonzero(~full)
    means[empty] = sample[np.argsort(distances)[::-1][: len(empty)]]
    return means


def assign(
    centres: Float32,
    rows: int,
    values: Callable[[slice], Float32],
    threads: int,
) -> tuple[Ints, Float32]:
    """Return the nearest centre (n,) of each row, and its squared distance to it.

    *values* returns the vectors of a slice of the rows.
    """
    lists = np.empty(rows, np.int64)
    distances = np.empty(rows, np.float32)
    halves = np.einsum("cd,cd->c", centres, centres) / 2

    def block(start: int) -> None:
        part = slice(start, min(rows, start + _BLOCK))
        found = values(part)
        # With vectors that are so long, batches do not look into lists.
        with np.errstate(over="ignore", invalid="ignore"):
            scores = found @ centres.T
            scores -= halves
        best = scores.argmax(axis=1)
        lists[part] = best
        nearest = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        distances[part] = np.einsum("nd,nd->n", found, found) - 2 * nearest

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(block, range(0, rows, _BLOCK)))
    return lists, np.maximum(distances, 0)
