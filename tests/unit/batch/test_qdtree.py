"""qd-trees: every row in one leaf, conditions that hold, cuts that save."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pgembed.batch.qdtree import grow


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
