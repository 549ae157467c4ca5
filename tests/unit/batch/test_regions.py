"""Coarse centroids: rows at the nearest, queries at the nearest few."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pgembed.batch import regions

ROWS = np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32)


def space(rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return ROWS[rows]


def test_rows_are_at_their_nearest_centroid() -> None:
    found = regions.find(len(ROWS), 12, space, 2)
    assert 1 < len(found) <= 12
    apart = ((ROWS[:, None] - found.centroids) ** 2).sum(axis=2)
    nearest = np.take_along_axis(apart, found.rows[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(nearest, apart.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("distance", ["l2", "inner_product"])
def test_queries_count_once_at_the_nearest_centroids(distance: str) -> None:
    found = regions.find(len(ROWS), 12, space, 2)
    queries = np.random.default_rng(1).standard_normal((50, 6)).astype(np.float32)
    for i, query in enumerate(queries):
        near = found.demand(query[None], np.array([i % 3]), 3, distance).near
        others = [condition for condition in range(3) if condition != i % 3]
        assert not near[:, others].any()
        parts = near[:, i % 3]
        assert parts.sum() == pytest.approx(1)
        apart = ((found.centroids - query) ** 2).sum(axis=1)
        if distance == "inner_product":
            apart = -found.centroids @ query
        order = np.argsort(apart)
        assert (np.diff(parts[order]) <= 0).all()
        assert parts[order[0]] > parts[order[1]] > parts[order[4]] == 0
    members = np.arange(50) % 3
    queries[:9] = 0
    together = found.demand(queries, members, 3, distance)
    assert together.anywhere.tolist() == [3, 3, 3]
    np.testing.assert_allclose(together.near.sum(axis=0), np.bincount(members[9:]))


@pytest.mark.parametrize("rows", [0, 1, 3000])
def test_one_centroid_is_that_of_all_rows(rows: int) -> None:
    found = regions.find(rows, 1, space, 1)
    assert (found.rows == np.zeros(rows)).all()
    demand = found.demand(ROWS[:4], np.array([0, 1, 1, 1]), 2, "l2")
    assert demand.anywhere.tolist() == [1, 3]
    assert demand.near.tolist() == [[0, 0]]
