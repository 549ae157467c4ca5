"""How far queries look into posting lists, chosen from samples."""

from __future__ import annotations

import numpy as np
import pytest

from pgembed.batch.probing import Sample, calibrate

_LISTS = 200


def sample(random: np.random.Generator, scale: float, queries: int) -> Sample:
    """Queries whose neighbours are in lists up to about *scale* farther."""
    needed = np.sort(random.random((queries, _LISTS)) * 10, axis=1).astype(np.float32)
    values = random.exponential(scale, (queries, 10)).astype(np.float32)
    return Sample(needed, values, np.ones((queries, 10), bool))


@pytest.mark.parametrize("recall", [0.9, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_other_queries_find_what_was_asked_for(recall: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    scales = (0.05, 0.3, 1.0, 0.3, 0.1)
    groups = [(np.arange(500), sample(random, scale, 24)) for scale in scales]
    found = calibrate(groups, np.full(_LISTS, 10), recall)
    shares = [
        sample(random, scale, 500).shares(np.full(500, f.limit, np.float32)).mean()
        for scale, f in zip(scales, found, strict=True)
    ]
    assert np.mean(shares) >= recall
    assert found[0].limit < found[2].limit
    assert found[0].rows < found[2].rows < 10 * _LISTS


def test_less_recall_looks_at_less() -> None:
    random = np.random.default_rng(1)
    group = [(np.arange(500), sample(random, 1.0, 48))]
    half, most = (calibrate(group, np.full(_LISTS, 10), r)[0] for r in (0.5, 0.99))
    assert half.limit < most.limit
    assert half.lists < most.lists


def test_what_the_nearest_lists_hold_needs_nothing() -> None:
    needed = np.full((20, _LISTS), np.inf, np.float32)
    needed[:, 0] = -np.inf
    values = np.full((20, 3), -np.inf, np.float32)
    counts = np.ones((20, 3), bool)
    counts[0] = False  # nothing to be found
    group = [(np.arange(100), Sample(needed, values, counts))]
    (found,) = calibrate(group, np.full(_LISTS, 7), 0.99)
    assert found.lists == 1
    assert found.rows == 7


def test_what_cannot_be_foreseen_is_searched_whole() -> None:
    random = np.random.default_rng(2)
    known = sample(random, 0.001, 20)
    values = known.values.copy()
    values[0] = 10  # unlike all others
    groups = [(np.arange(500), Sample(known.needed, values, known.counts))]
    (found,) = calibrate(groups, np.full(_LISTS, 10), 0.99)
    assert found.limit == np.inf
    assert found.rows == 10 * _LISTS
