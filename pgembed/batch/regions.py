"""Coarse centroids: the rows nearest to each, and what queries ask for around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pgembed.batch import kmeans
from pgembed.batch.cuts import Demand

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_NEAR = 4
"""Centroids that a query counts at."""
_ASKING = 1024
"""Rows by which it is found out where the nearest are."""


@dataclasses.dataclass(frozen=True)
class Regions:
    """Coarse centroids (c, d), and the one (n,) that each row is nearest to."""

    centroids: Float32
    rows: Ints
    parts: Float64
    """The share of what is nearest to a row that is at the centroid to which the row is
    nearest, at the next one, and so on."""

    def __len__(self) -> int:
        return len(self.centroids)

    def demand(
        self, queries: Float32, members: Ints, conditions: int, distance: str
    ) -> Demand:
        """Return how many of *queries* have which condition, and look where.

        *queries* (q, d) are in the space of the centroids, or zeros, when nobody knows
        where they look; *members* (q,) are their conditions.
        """
        located = queries.any(axis=1) & (len(self) > 1)
        anywhere = np.bincount(members[~located], minlength=conditions).astype(float)
        near = np.zeros((len(self), conditions))
        if located.any():
            nearest = self._nearest(queries[located], distance)
            for column, part in zip(nearest.T, self.parts, strict=True):
                np.add.at(near, (column, members[located]), part)
        return Demand(anywhere, near)

    def _nearest(self, queries: Float32, distance: str) -> Ints:
        apart = _apart(queries, self.centroids)
        if distance == "inner_product":
            apart = -queries @ self.centroids.T
        return np.argsort(apart, axis=1, kind="stable")[:, : len(self.parts)]


def find(
    total: int, count: int, values: Callable[[Ints], Float32], threads: int
) -> Regions:
    """Train at most *count* coarse centroids on a sample of *total* rows.

    If it is one, that stands for all rows, wherever it is. *values* returns the vectors
    (m, d) of rows with numbers (m,), which are sorted.
    """
    if count < 2:
        origin = np.zeros((1, values(np.arange(0)).shape[1]), np.float32)
        return Regions(origin, np.zeros(total, np.int64), np.ones(1))
    random = np.random.default_rng(0)
    size = kmeans.sample_size(total, count)
    chosen = np.sort(random.choice(total, size, replace=False))
    sample = values(chosen)
    centroids = kmeans.train(sample, count, threads=threads)
    numbers = np.arange(total)
    rows, _ = kmeans.assign(
        centroids, total, lambda part: values(numbers[part]), threads
    )
    return Regions(centroids, rows, _parts(sample, centroids))


def _parts(sample: Float32, centroids: Float32) -> Float64:
    """Find out at which centroids the nearest of the other rows of *sample* are."""
    asking = min(_ASKING, len(sample))
    apart = _apart(sample[:asking], sample)
    np.fill_diagonal(apart, np.inf)
    ranks = _apart(sample, centroids).argsort(axis=1, kind="stable")
    found = ranks[apart.argmin(axis=1), 0]
    counts = np.count_nonzero(ranks[:asking] == found[:, None], axis=0)[:_MOST_NEAR]
    return np.asarray(counts / max(1, counts.sum()))


def _apart(rows: Float32, others: Float32) -> Float32:
    """Return (n, m): half the squared distance, but for what depends on *rows* only."""
    return np.asarray(np.einsum("md,md->m", others, others) / 2 - rows @ others.T)
