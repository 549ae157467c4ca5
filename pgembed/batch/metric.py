"""Distances as scores that a matrix product yields: the higher, the nearer.

The score is a float32 estimate within a known tolerance; :meth:`Metric.exact` computes
pgvector's distance in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.source import Source
from pgembed.batch.vectors import Vectors
from pgembed.batch.workload import Workload
from pgembed.errors import VectorError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Fetch = Callable[[Ints], Float32]
Tile = tuple[slice, slice]

ZERO = "has length zero, which has no cosine distance: pass vectors with a direction"
_NONE = np.empty(0, np.float32)
_UNIT = 2.0**-24
_LONGEST = 2.0**62
"""The square of the distance between two vectors of this length fits a float32."""
_SHORTEST = 2.0**-57
"""The square of such a length has all digits of a float32, added up in one, too."""
_EXACT_BYTES = 4 << 20
"""What stays in a cache, and in memory that is used again (measured)."""
_FETCH_BYTES = 16 << 20
"""Vectors that are fetched at a time; reading them takes as much again, and more."""


class Metric:
    """How queries (q, d) compare with vectors, by *distance*.

    score = query · vector · scale + bias, where scale (n,) and bias (n,) may be None.
    *fetch* returns the vectors (m, d) of positions (m,) as they were before rounding;
    it is called for distinct ones, and only when *vectors* are rounded.
    """

    def __init__(
        self,
        distance: str,
        queries: Float32,
        vectors: Vectors,
        fetch: Fetch | None = None,
    ) -> None:
        self.distance, self.queries, self.vectors = distance, queries, vectors
        self._fetch = fetch or vectors.take
        squares = np.einsum("qd,qd->q", queries, queries, dtype=np.float64)
        lengths = np.sqrt(squares)
        self._lengths = lengths
        norms = vectors.norms
        largest = float(np.sqrt(norms.max(initial=0.0)))
        self.scale: NDArray[np.float32] | None = None
        self.bias: NDArray[np.float32] | None = None
        self.scan_queries = queries
        size = lengths * largest
        # By Cauchy and Schwarz: the product with what rounding took away.
        rounding = lengths * vectors.rounding.length
        if distance == "cosine":
            self.scan_queries = np.empty(queries.shape, np.float32)
            np.divide(queries, lengths[:, None], self.scan_queries, casting="same_kind")
            size = np.ones(len(queries))
            rounding = size * vectors.rounding.share
            self._cosine(norms, vectors.dimensions)
        elif distance == "l2":
            self.bias = -norms / np.float32(2)
            size = lengths * largest + largest**2
        self.tolerance = (2 * vectors.dimensions + 16) * _UNIT * size + rounding

    def _cosine(self, norms: NDArray[np.float32], dimensions: int) -> None:
        if (np.abs(norms - 1) > dimensions * _UNIT).any():
            # A vector without a direction has no distance: NaN exceeds no threshold.
            positive = np.where(norms > 0, norms, np.float32(np.nan))
            self.scale = np.asarray(1 / np.sqrt(positive), np.float32)

    def factors(self, rows: slice | Ints) -> tuple[Float32, Float32]:
        """Return the scale (r,) and the bias (r,) of *rows*; empty for None."""
        scale = _NONE if self.scale is None else self.scale[rows]
        return scale, _NONE if self.bias is None else self.bias[rows]

    def exact(self, chosen: Ints, positions: Ints) -> tuple[Float64, Float64]:
        """Return distances and scores (m, w) of queries *chosen* (m,) to *positions*.

        Where a position is -1, the distance is infinite and the score minus infinity.
        """
        distances = np.full(positions.shape, np.inf)
        scores = np.full(positions.shape, -np.inf)
        for tile in self._portions(positions):
            there = positions[tile] >= 0
            if there.any():
                found = self._together(chosen[tile[0]], positions[tile])
                distances[tile][there] = found[0][there]
                scores[tile][there] = found[1][there]
        return distances, scores

    def _portions(self, positions: Ints) -> Iterator[Tile]:
        """Cut *positions* into what is fetched together."""
        if self.vectors.rounding.lossless:
            return iter([(slice(None), slice(None))])
        return _tiles(positions.shape, _FETCH_BYTES // (4 * self.vectors.dimensions))

    def _together(self, chosen: Ints, positions: Ints) -> tuple[Float64, Float64]:
        """As :meth:`exact`; for -1, any position stands in."""
        take: Fetch = self.vectors.take
        places = np.where(positions >= 0, positions, positions.max())
        if not self.vectors.rounding.lossless:
            distinct, inverse = np.unique(places, return_inverse=True)
            take = _taker(self._fetch(distinct))
            places = inverse.reshape(positions.shape)
        distances, scores = np.empty(places.shape), np.empty(places.shape)
        for tile in _tiles(places.shape, _EXACT_BYTES // (8 * self.vectors.dimensions)):
            rows = take(places[tile].ravel()).astype(np.float64)
            rows = rows.reshape(*places[tile].shape, -1)
            distances[tile], scores[tile] = self._exact(chosen[tile[0]], rows)
        return distances, scores

    def _exact(self, chosen: Ints, rows: Float64) -> tuple[Float64, Float64]:
        queries = self.queries[chosen].astype(np.float64)
        # Not a matrix product: its last digits depend on where a row stands in it,
        # and equal vectors must be at equal distances.
        if self.distance == "l2":
            rows -= queries[:, None]
            squares = np.einsum("qwd,qwd->qw", rows, rows)
            return np.sqrt(squares), (self._lengths[chosen][:, None] ** 2 - squares) / 2
        products = np.einsum("qwd,qd->qw", rows, queries)
        if self.distance == "inner_product":
            return -products, products
        norms = np.einsum("qwd,qwd->qw", rows, rows)
        own = np.einsum("qd,qd->q", queries, queries)
        # Where nothing was found, a row stands in that may have no direction.
        with np.errstate(invalid="ignore"):
            similarity = np.clip(products / np.sqrt(norms * own[:, None]), -1, 1)
        return 1 - similarity, similarity


def _tiles(shape: tuple[int, ...], most: int) -> Iterator[Tile]:
    """Cut an array (m, w) into tiles of at most *most* elements: whole rows, if so."""
    columns = max(1, min(shape[1], most))
    rows = max(1, most // columns)
    for top in range(0, shape[0], rows):
        for left in range(0, shape[1], columns):
            yield slice(top, top + rows), slice(left, left + columns)


def _taker(values: Float32) -> Fetch:
    return lambda positions: values.take(positions, axis=0)


def overflows(queries: Float32, norms: Float32) -> bool:
    """Whether a distance between *queries* (q, d) and others may exceed a float32.

    *norms* (n,) are the squared lengths of the others.
    """
    largest = max(float(queries.max(initial=0)), -float(queries.min(initial=0)))
    longest = largest * math.sqrt(queries.shape[1])
    return max(longest, math.sqrt(norms.max(initial=0))) > _LONGEST


def underflows(queries: Float32, norms: Float32) -> bool:
    """Whether a length of *queries* (q, d) or others, not 0, is lost in a float32.

    *norms* (n,) are the squared lengths of the others.
    """
    squares = np.einsum("qd,qd->q", queries, queries, dtype=np.float64)
    return any(((s > 0) & (s < _SHORTEST**2)).any() for s in (squares, norms))


def comparable(workload: Workload, source: Source) -> Workload:
    """Return *workload* with its queries as PostgreSQL compares them with *source*.

    Raises VectorError for queries that have no distance to what it holds.
    """
    if source.storage == "halfvec" and len(workload):
        with np.errstate(over="ignore"):
            rounded = workload.queries.astype(np.float16).astype(np.float32)
        infinite = np.argwhere(np.isinf(rounded))
        if len(infinite):
            query, place = infinite[0]
            raise VectorError(
                f"query {query} has the value {workload.queries[query, place]:g}, but "
                f"the embedding {source.name!r} stores halfvec, whose values are at "
                "most 65504: make it with the model that made the vectors"
            )
        workload = dataclasses.replace(workload, queries=rounded)
    check_queries(workload, source)
    return workload


def check_queries(workload: Workload, source: Source) -> None:
    """Raise VectorError for queries that have no distance to what *source* holds."""
    found = workload.queries.shape[1]
    if len(workload) and found != source.dimensions:
        raise VectorError(
            f"the queries have {found} dimensions, the embedding {source.name!r} has "
            f"{source.dimensions}: make them with the model that made the vectors"
        )
    zero = np.flatnonzero(~workload.queries.any(axis=1))
    if len(zero) and source.distance == "cosine":
        raise VectorError(f"query {zero[0]} {ZERO}")
