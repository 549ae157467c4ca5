"""float16 in layouts: what it keeps, what it may move, what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from pgembed.batch import metric as metrics
from pgembed.batch.metric import Metric
from pgembed.batch.precision import (
    LOSSLESS,
    check_precision,
    check_rounding,
    measure,
    widened,
)
from pgembed.batch.vectors import Kept, Vectors, squared_norms
from pgembed.errors import SettingError, VectorError

Float32 = NDArray[np.float32]


def rounded(values: Float32) -> Vectors:
    """Return vectors that stand for *values*, in two parts of float16 and float32."""
    cut = len(values) // 2
    parts: list[Kept] = [values[:cut].astype(np.float16), values[cut:]]
    return Vectors(parts, squared_norms(values), measure(values, "float16"))


def test_every_float16_is_widened_to_itself() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    found = widened(finite)
    assert found.dtype == np.float32
    expected = finite.astype(np.float32)
    assert (found.view(np.uint32) == expected.view(np.uint32)).all()


def test_float32_is_left_as_it_is() -> None:
    values = np.ones((2, 2), np.float32)
    assert widened(values) is values
    assert measure(values * 1e9, "float32") == LOSSLESS


MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 6), st.integers(1, 9)),
    elements=st.floats(-1000, 1000, width=32)
    | st.sampled_from([2.0**-24, 2.0**-26, 1e-30, 2049.0, 65504.0]),
)


@settings(max_examples=300, deadline=None)
@given(values=MATRICES, seed=st.integers(0, 99))
@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_estimates_are_within_the_tolerance(
    distance: str, values: Float32, seed: int
) -> None:
    values = np.concatenate([np.ones_like(values[:1]), values])
    values = values[squared_norms(values) > 1e-30]
    vectors = rounded(values)
    random = np.random.default_rng(seed)
    queries = random.standard_normal((3, values.shape[1])).astype(np.float32)
    # The worst that can be asked: along what rounding took away.
    kept = vectors.slice(0, len(values))
    queries = np.concatenate([queries, values - kept])
    queries = queries[squared_norms(queries) > 1e-30]
    metric = Metric(distance, queries, vectors, values.__getitem__)
    scores = metric.scan_queries @ kept.T
    scale, bias = metric.factors(slice(0, len(values)))
    scores = scores * (scale if len(scale) else 1) + (bias if len(bias) else 0)
    every = np.tile(np.arange(len(values)), (len(queries), 1))
    _, exact = metric.exact(np.arange(len(queries)), every)
    assert (np.abs(scores - exact) <= metric.tolerance[:, None]).all()


@settings(deadline=None)
@given(values=MATRICES)
def test_rounding_is_known(values: Float32) -> None:
    found = measure(values, "float16")
    kept = values.astype(np.float16).astype(np.float64)
    assert found.lossless == bool((kept == values).all())
    moved = np.linalg.norm(kept - values, axis=1)
    assert moved.max() == pytest.approx(found.length)
    ordinary = np.abs(values).min(axis=1) > 1e-4
    share = moved[ordinary] / np.linalg.norm(values[ordinary].astype(float), axis=1)
    assert share.max(initial=0) <= min(2.0**-11, found.share * (1 + 1e-9))


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_distances_are_those_of_what_was_rounded(
    distance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are fetched once each, a bounded number at a time."""
    monkeypatch.setattr(metrics, "_FETCH_BYTES", 4 * 8 * 10)
    monkeypatch.setattr(metrics, "_EXACT_BYTES", 8 * 8 * 4)
    random = np.random.default_rng(3)
    values = random.standard_normal((40, 8)).astype(np.float32)
    queries = random.standard_normal((7, 8)).astype(np.float32)
    asked: list[NDArray[Any]] = []

    def fetch(positions: NDArray[np.int64]) -> Float32:
        asked.append(positions)
        return np.asarray(values[positions])

    plain = Vectors([values], squared_norms(values))
    positions = random.integers(-1, 40, (7, 25))
    positions[3] = -1
    positions[:, :4] = 17
    chosen = np.arange(7)
    expected = Metric(distance, queries, plain, fetch).exact(chosen, positions)
    assert not asked
    found = Metric(distance, queries, rounded(values), fetch).exact(chosen, positions)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine == theirs).all()
    assert asked
    for each in asked:
        assert 1 <= len(each) <= 10
        assert (np.diff(each) > 0).all()
        assert each[0] >= 0


@pytest.mark.parametrize("value", [65520.0, -70000.0, 3e38])
def test_what_is_too_large_is_refused(value: float) -> None:
    values = np.array([[1, 2], [3, value]], np.float32)
    with pytest.raises(
        VectorError, match=re.escape(f"the value {values[1, 1]}, which")
    ):
        measure(values, "float16")


def test_what_is_too_small_is_refused() -> None:
    values = np.array([[1, 2], [3e-7, 4e-7]], np.float32)
    norms = squared_norms(values)
    check_rounding(measure(values, "float16"), "l2", norms)
    with pytest.raises(VectorError, match=r"of its own length.*with precision float32"):
        check_rounding(measure(values, "float16"), "cosine", norms)
    with pytest.raises(VectorError, match="of the usual length"):
        check_rounding(measure(values[1:], "float16"), "l2", norms[1:])
    check_rounding(LOSSLESS, "l2", norms[:0])


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_one_vector_that_is_far_larger_is_refused(distance: str) -> None:
    values = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    check_rounding(measure(values, "float16"), distance, squared_norms(values))
    values[7] *= 1000
    found, norms = measure(values, "float16"), squared_norms(values)
    if distance == "cosine":
        check_rounding(found, distance, norms)
    else:
        with pytest.raises(VectorError, match="larger than those of others"):
            check_rounding(found, distance, norms)


@pytest.mark.parametrize("precision", ["float64", "FLOAT16", "", None, 16, ["float16"]])
def test_other_precisions_are_refused(precision: Any) -> None:
    with pytest.raises(SettingError, match="must be 'float32' or 'float16'"):
        check_precision(precision)
