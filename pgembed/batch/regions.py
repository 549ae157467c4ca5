"""Coarse centroids: the rows nearest to each, and what queries ask for around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pgembed.batch import kmeans

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

_NEAR = 1 / np.arange(1, 5)
"""How many of a query's nearest rows are at the centroid that it is nearest to, at the
next, and so on, in proportion (measured)."""


@dataclasses.dataclass(frozen=True)
class Regions:
    """Coarse centroids (c, d), and the one (n,) that each row is nearest to."""

    centroids: Float32
    rows: Ints

    def __len__(self) -> int:
        return len(self.centroids)

    def near(
        self, queries: Float32, members: Ints, conditions: int, distance: str
    ) -> Float64:
        """Return (c, f): how many queries have each condition around each centroid.

        *queries* (q, d) are in the space of the centroids, *members* (q,) are their
        conditions. Each counts 1, in parts at the centroids that it is near.
        """
        found = np.zeros((len(self), conditions))
        if not len(queries):
            return found
        scores = queries @ self.centroids.T
        if distance != "inner_product":
            scores -= np.einsum("cd,cd->c", self.centroids, self.centroids) / 2
        parts = _NEAR[: len(self)] / _NEAR[: len(self)].sum()
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, : len(parts)]
        for column, part in zip(nearest.T, parts, strict=True):
            np.add.at(found, (column, members), part)
        return found


def find(
    total: int, count: int, values: Callable[[Ints], Float32], threads: int
) -> Regions:
    """Train at most *count* coarse centroids on a sample of *total* rows.

    If it is one, that stands for all rows, wherever it is. *values* returns the vectors
    (m, d) of rows with numbers (m,), which are sorted.
    """
    if count < 2:
        origin = np.zeros((1, values(np.arange(0)).shape[1]), np.float32)
        return Regions(origin, np.zeros(total, np.int64))
    random = np.random.default_rng(0)
    size = kmeans.sample_size(total, count)
    chosen = np.sort(random.choice(total, size, replace=False))
    centroids = kmeans.train(values(chosen), count, threads=threads)
    numbers = np.arange(total)
    rows, _ = kmeans.assign(
        centroids, total, lambda part: values(numbers[part]), threads
    )
    return Regions(centroids, rows)
