"""qd-trees: every row in one leaf, conditions that hold, cuts that save."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgembed.batch.qdtree import Tree, grow

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(0, 31), min_size=1, max_size=200),
    weights=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    least=st.integers(1, 30),
    probed=st.integers(1, 300),
)
def test_leaves(words: list[int], weights: list[int], least: int, probed: int) -> None:
    rows = np.array(words, np.uint64)
    tree = grow(
        rows, np.array(weights, float), least_rows=least, probed_rows=float(probed)
    )
    assert sum(leaf.rows for leaf in tree.leaves) == len(rows)
    assert tree.touched <= tree.touched_before
    for number, leaf in enumerate(tree.leaves):
        members = rows[tree.leaf == number]
        assert len(members) == leaf.rows
        assert len(members) >= least or len(tree.leaves) == 1
        for condition in leaf.holds:
            assert (members >> np.uint64(condition) & np.uint64(1)).all()
        for condition in leaf.fails:
            assert not (members >> np.uint64(condition) & np.uint64(1)).any()


def test_the_cut_that_saves_most_comes_first() -> None:
    random = np.random.default_rng(0)
    common, rare = random.random(10_000) < 0.5, random.random(10_000) < 0.1
    words = common.astype(np.uint64) | rare.astype(np.uint64) << np.uint64(1)
    tree = grow(words, np.array([1.0, 50.0]), least_rows=100, probed_rows=100)
    # Queries for the rare rows are 50 times as many: they look at 100, not 1,000.
    assert any(1 in leaf.holds for leaf in tree.leaves)
    assert tree.touched < 0.2 * tree.touched_before


def test_no_condition_no_cut() -> None:
    tree = grow(np.zeros(50, np.uint64), np.ones(1), least_rows=1, probed_rows=10)
    assert [leaf.rows for leaf in tree.leaves] == [50]


def test_no_cut_that_costs_the_others_more_than_it_saves() -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 1 << 8, 10_000).astype(np.uint64)
    even, one = np.ones(8), np.eye(8)[0] * 50 + 1
    for weights, cut in ((even, False), (one, True)):
        tree = grow(words, weights, least_rows=100, probed_rows=100)
        assert (len(tree.leaves) > 1) == cut


def touched(
    words: Words, centroids: Ints, anywhere: Floats, near: Floats, leaf: Ints
) -> float:
    """Count row by row what each kind of query touches in each leaf."""
    found = 0.0
    for number in range(int(leaf.max()) + 1):
        for condition in range(len(anywhere)):
            met = words >> np.uint64(condition) & np.uint64(1) == 1
            for queries, around in [
                (anywhere[condition], None),
                *((near[c, condition], centroids == c) for c in range(len(near))),
            ]:
                seen = leaf == number if around is None else around & (leaf == number)
                rows, meeting = int(seen.sum()), int((seen & met).sum())
                if meeting and around is None:
                    lists = 10 * rows / meeting
                    found += queries * min(rows, lists, 2 * meeting)
                elif meeting and around is not None:
                    lists = 10 * math.sqrt(rows / around.sum())
                    lists *= (rows / meeting) ** 0.25
                    found += queries * min(rows, lists, 2 * met.sum())
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 600),
    conditions=st.integers(1, 6),
    count=st.integers(1, 6),
    least=st.integers(1, 20),
    most=st.integers(1, 12),
    located=st.booleans(),
)
def test_leaves_of_centroids(
    seed: int,
    rows: int,
    conditions: int,
    count: int,
    least: int,
    most: int,
    located: bool,
) -> None:
    random = np.random.default_rng(seed)
    centroids = random.integers(0, count, rows)
    words = random.integers(0, 1 << conditions, rows).astype(np.uint64)
    unknown = (random.random(conditions) < 0.3) & (not located)
    anywhere = unknown.astype(np.float64)
    near = np.zeros((count, conditions))
    asked = random.integers(0, conditions, count)
    near[np.arange(count), asked] = random.choice([0, 50], count)
    tree = grow(
        words,
        anywhere,
        least_rows=least,
        probed_rows=10,
        most_leaves=most,
        centroids=centroids,
        near=near,
    )
    whole = np.zeros(rows, np.int64)
    for leaf, found in ((whole, tree.touched_before), (tree.leaf, tree.touched)):
        expected = touched(words, centroids, anywhere, near, leaf)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert tree.touched <= tree.touched_before * (1 + 1e-9)
    assert len(tree.leaves) <= most
    for number, one in enumerate(tree.leaves):
        inside = tree.leaf == number
        assert inside.sum() == one.rows >= min(least, rows)
        assert np.isin(centroids[inside], one.centroids).all()
        for condition in one.holds:
            assert (words[inside] >> np.uint64(condition) & np.uint64(1)).all()
        for condition in one.fails:
            assert not (words[inside] >> np.uint64(condition) & np.uint64(1)).any()


def hot(least: int = 100) -> tuple[Tree, Tree, Words, Ints]:
    """Around centroid 3 all ask for one condition, which is of no use elsewhere.

    Returns the tree that knows where they look, that which does not, the rows.
    """
    random = np.random.default_rng(0)
    centroids = random.integers(0, 8, 16_000)
    # All rows meet condition 0.
    words = random.integers(0, 1 << 3, 16_000).astype(np.uint64) | np.uint64(1)
    near = np.zeros((8, 3))
    near[:, 0], near[3] = 200, (0, 400, 0)

    def grown(weights: Floats, near: Floats | None) -> Tree:
        return grow(
            words,
            weights,
            least_rows=least,
            probed_rows=200,
            centroids=centroids,
            near=near,
        )

    return grown(np.zeros(3), near), grown(near.sum(axis=0), None), words, centroids


def test_a_condition_pays_around_one_centroid() -> None:
    for least in (100, 900):
        tree, other, words, centroids = hot(least)
        assert len(other.leaves) == 1
        cut = [leaf for leaf in tree.leaves if leaf.centroids == (3,)]
        assert {(leaf.holds, leaf.fails) for leaf in cut} == {((1,), ()), ((), (1,))}
        (met,) = (i for i, leaf in enumerate(tree.leaves) if leaf.holds == (1,))
        expected = (centroids == 3) & (words >> np.uint64(1) & np.uint64(1) == 1)
        assert ((tree.leaf == met) == expected).all()


def test_no_leaf_is_cut_too_small() -> None:
    # Around the centroid are 2,000 rows, half of which meet the condition.
    tree = hot(1_100)[0]
    assert all(leaf.rows >= 1_100 for leaf in tree.leaves)
    assert (3,) not in [leaf.centroids for leaf in tree.leaves]


def test_the_same_rows_make_the_same_tree() -> None:
    one, two = hot()[0], hot()[0]
    assert (one.leaf == two.leaf).all()
    assert [(leaf.centroids, leaf.holds, leaf.fails) for leaf in one.leaves] == [
        (leaf.centroids, leaf.holds, leaf.fails) for leaf in two.leaves
    ]


@pytest.mark.parametrize("queries", [100, 1000, 10_000])
def test_a_workload_that_is_the_same_everywhere_is_not_cut_by_centroids(
    queries: int,
) -> None:
    """Chance alone makes some conditions more frequent at some of the centroids."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        centroids = random.integers(0, 31, 50_000)
        shares = np.array([0.5, 0.3, 0.1, 0.1, 0.05, 0.02, 1.0])
        bits = random.random((50_000, 7)) < shares
        words = (bits << np.arange(7)).sum(axis=1).astype(np.uint64)
        near = np.zeros((31, 7))
        where, which = random.integers(0, 31, queries), random.integers(0, 7, queries)
        np.add.at(near, (where, which), 1)
        tree = grow(
            words,
            np.zeros(7),
            least_rows=100,
            probed_rows=400,
            centroids=centroids,
            near=near,
        )
        assert all(len(leaf.centroids) == 31 for leaf in tree.leaves)
