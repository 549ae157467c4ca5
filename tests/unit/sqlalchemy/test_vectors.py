"""Query vectors as text are read as the float32 that they are."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed.errors import VectorError
from pgembed.sqlalchemy.vectors import query_vector

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
# As pgvector does.
strtof = ctypes.CDLL(None).strtof
strtof.restype, strtof.argtypes = ctypes.c_float, [ctypes.c_char_p, ctypes.c_void_p]


@given(st.lists(FLOATS, min_size=1, max_size=9))
def test_any_floats(values: list[float]) -> None:
    check(values)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9))
def test_floats_of_like_size(values: list[float]) -> None:
    check(values)


@pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0],
        [1e-45, -1.5e-45],
        [1.1754944e-38, 1.1754942e-38],
        [3.4028235e38, -3.4028233e38],
        [3.4028235e38, 1e-45],
        [1.0, 1.0000001, 0.99999994],
        [137438953471.0, 1.0],
        [137438953472.0, 1.0],
    ],
)
def test_the_ends_of_the_scale(values: list[float]) -> None:
    check(values)


@pytest.mark.parametrize(
    "given", [np.array([1j, 1]), np.ma.array([1.0, 2.0], mask=[True, False]), [1j]]
)
def test_what_float32_would_drop(given: object) -> None:
    with pytest.raises(VectorError, match="is no query"):
        query_vector(given)


def check(values: list[float]) -> None:
    """Read the texts of a vector back."""
    wanted = np.array(values, np.float32)
    vector = query_vector(values)
    for text in (str(vector), vector.digits()):
        assert (text[0], text[-1]) == ("[", "]")
        found = [strtof(part.encode(), None) for part in text[1:-1].split(",")]
        assert found == wanted.tolist()
