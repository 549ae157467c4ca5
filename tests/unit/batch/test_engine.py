"""The engine against NumPy's own sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import types

from pgembed.batch import kernels
from pgembed.batch.engine import Scan, Task
from pgembed.batch.kmeans import assign, train
from pgembed.batch.metric import Metric
from pgembed.batch.vectors import Spool, Vectors, squared_norms


def vectors(count: int, width: int, seed: int = 0) -> Vectors:
    values = np.random.default_rng(seed).standard_normal((count, width))
    rows = values.astype(np.float32)
    return Vectors([rows[: count // 3], rows[count // 3 :]], squared_norms(rows))


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("threads", [1, 2])
def test_scan_finds_the_best(distance: str, threads: int) -> None:
    given_vectors = vectors(5000, 16)
    queries = np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32)
    metric = Metric(distance, queries, given_vectors)
    scan = Scan(metric, 12, asked=np.arange(300), tests=None, threads=threads)
    chosen = np.arange(0, 5000, 3)
    scan.run(
        [
            Task(np.arange(150), slice(0, 5000)),
            Task(np.arange(150, 300), chosen[:900]),
            Task(np.arange(150, 300), chosen[900:]),
        ]
    )
    _, found = scan.best(np.arange(300))
    every = np.tile(np.arange(5000), (300, 1))
    distances, _ = metric.exact(np.arange(300), every)
    distances[150:, np.setdiff1d(np.arange(5000), chosen)] = np.inf
    expected = np.argsort(distances, axis=1)[:, :12]
    assert (np.sort(found, axis=1) == np.sort(expected, axis=1)).all()
    assert scan.products == 150 * (5000 + len(chosen))


def test_an_error_in_a_thread_is_raised() -> None:
    metric = Metric("l2", np.ones((1, 4), np.float32), vectors(10, 4))
    scan = Scan(metric, 2, asked=np.arange(1), tests=None, threads=2)
    with pytest.raises(IndexError):
        scan.run([Task(np.array([0]), np.array([99]))] * 5)


def test_kernels_need_no_cache() -> None:
    """Code without a file has none, like code in a file system that is read-only."""
    scope: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", scope)  # noqa: S102
    double = kernels._compiled(types.int64(types.int64))(scope["double"])
    assert double.nopython_signatures
    assert double(21) == 42


def test_spooled_vectors_are_the_same() -> None:
    values = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    kept, spooled = Spool(8, 1 << 20), Spool(8, 1000)
    for block in np.split(values, 10):
        kept.add(block)
        spooled.add(block)
    for each in (kept.finish(), spooled.finish()):
        assert (each.slice(0, 100) == values).all()
        assert (each.take(np.array([5, 99, 5])) == values[[5, 99, 5]]).all()
        np.testing.assert_allclose(each.norms, (values**2).sum(axis=1), rtol=1e-5)


def test_kmeans_finds_separate_clusters() -> None:
    random = np.random.default_rng(3)
    centres = random.standard_normal((8, 5)) * 50
    labels = random.integers(0, 8, 2000)
    rows = (centres[labels] + random.standard_normal((2000, 5))).astype(np.float32)
    found = train(rows, 24, threads=2)
    lists, distances = assign(found, len(rows), rows.__getitem__, 2)
    for number in range(len(found)):
        members = labels[lists == number]
        assert len(members)
        assert (members == members[0]).all()
    assert distances.mean() < 6


def test_kmeans_with_fewer_different_rows_than_centres() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    found = train(rows, 10)
    lists, distances = assign(found, len(rows), rows.__getitem__, 1)
    assert len(np.unique(lists)) == len(found) >= 3
    assert distances.max() < 1e-6
