"""NumPy arrays through a real server and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pgembed.errors import VectorError
from pgembed.postgres import vectors
from pgembed.postgres.vectors import Float32, VectorArray
from tests.conftest import Connect

Connection = psycopg.Connection[Any]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 40))
matrices = arrays.arrays(np.float32, shapes, elements=finite)
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def fetch(connection: Connection, query: str, *values: Any, binary: bool = True) -> Any:
    row = connection.execute(query.encode(), values, binary=binary).fetchone()
    assert row is not None
    return row[0]


def as_text(value: Float32) -> str:
    return "[" + ",".join(map(repr, value.tolist())) + "]"


@quick
@given(values=matrices, binary=st.booleans())
def test_array_round_trip(
    connection: Connection, values: Float32, binary: bool
) -> None:
    back = fetch(connection, "SELECT %s", VectorArray(values), binary=binary)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, values)


@quick
@given(values=matrices)
def test_elements_are_what_pgvector_reads(
    connection: Connection, values: Float32
) -> None:
    rows = connection.execute(
        "SELECT v::text, public.vector_dims(v) FROM unnest(%s) AS v",
        (VectorArray(values),),
    ).fetchall()
    for (text, dimensions), expected in zip(rows, values, strict=True):
        assert dimensions == len(expected)
        np.testing.assert_array_equal(
            np.array(text[1:-1].split(","), np.float32), expected
        )


@quick
@given(data=st.data(), values=matrices)
def test_masked_elements_are_null(
    connection: Connection, data: st.DataObject, values: Float32
) -> None:
    n = len(values)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    rows = connection.execute(
        "SELECT v FROM unnest(%s) WITH ORDINALITY AS u (v, i) ORDER BY i",
        (VectorArray(values, mask),),
    ).fetchall()
    for (back,), hidden, expected in zip(rows, mask, values, strict=True):
        if hidden:
            assert back is None
        else:
            np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("binary", [True, False])
def test_no_elements(connection: Connection, binary: bool) -> None:
    empty = VectorArray(np.empty((0, 3), np.float32))
    assert fetch(connection, "SELECT cardinality(%s)", empty) == 0
    assert fetch(connection, "SELECT %s", empty, binary=binary).shape == (0, 0)


@quick
@given(
    value=arrays.arrays(np.float32, st.integers(1, 40), elements=finite),
    binary=st.booleans(),
)
def test_vector_round_trip(
    connection: Connection, value: Float32, binary: bool
) -> None:
    back = fetch(connection, "SELECT %s", value, binary=binary)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, value)
    assert fetch(
        connection, "SELECT %s::text::public.vector = %s", as_text(value), value
    )


@pytest.mark.parametrize("binary", [True, False])
def test_halfvec_results(connection: Connection, binary: bool) -> None:
    query = "SELECT '[0.5,-2,65504]'::public.halfvec"
    back = fetch(connection, query, binary=binary)
    assert (back.dtype, back.tolist()) == (np.float32, [0.5, -2.0, 65504.0])
    query = "SELECT ARRAY['[1,2]','[3,4]']::public.halfvec[]"
    back = fetch(connection, query, binary=binary)
    assert (back.dtype, back.tolist()) == (np.float32, [[1, 2], [3, 4]])


@pytest.mark.parametrize("binary", [True, False])
def test_arrays_numpy_cannot_hold(connection: Connection, binary: bool) -> None:
    with pytest.raises(VectorError, match="NULL"):
        fetch(connection, "SELECT ARRAY['[1]', NULL]::public.vector[]", binary=binary)
    with pytest.raises(VectorError, match="different lengths"):
        fetch(
            connection, "SELECT ARRAY['[1]', '[1,2]']::public.vector[]", binary=binary
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unusable_numbers_are_refused(connection: Connection, bad: float) -> None:
    values = np.array([[1, 2], [3, bad]], np.float32)
    with pytest.raises(VectorError, match="NaN or infinity"):
        VectorArray(values)
    with pytest.raises(VectorError, match="NaN or infinity"):
        connection.execute("SELECT %s", (values[1],))
    hidden = VectorArray(values, np.array([False, True]))
    assert fetch(connection, "SELECT cardinality(%s)", hidden) == 2


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((1, 2, 3)), np.zeros((2, 0)), np.zeros((1, 16001))]
)
def test_other_shapes_are_refused(values: Any) -> None:
    with pytest.raises(VectorError):
        VectorArray(values)


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.zeros(3, int)])
def test_mask_must_fit(mask: Any) -> None:
    with pytest.raises(VectorError, match=r"mask must be bool \(3,\)"):
        VectorArray(np.zeros((3, 2), np.float32), mask)


def test_a_matrix_is_not_a_vector(connection: Connection) -> None:
    with pytest.raises(VectorError, match="VectorArray"):
        connection.execute("SELECT %s", (np.zeros((2, 2), np.float32),))


def test_other_dtypes_become_float32(connection: Connection) -> None:
    for dtype in (np.float64, np.float16, np.int64, ">f4"):
        value = np.arange(3).astype(dtype)
        assert fetch(connection, "SELECT %s", value).tolist() == [0, 1, 2]
        array = VectorArray(value.reshape(1, 3))
        assert fetch(connection, "SELECT %s", array).tolist() == [[0, 1, 2]]


def test_largest_vector(connection: Connection) -> None:
    values = np.arange(32_000, dtype=np.float32).reshape(2, 16_000)
    np.testing.assert_array_equal(
        fetch(connection, "SELECT %s", VectorArray(values)), values
    )


def test_type_is_found_off_the_search_path(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    assert not vectors.register(connection)
    connection.execute("CREATE SCHEMA types")
    connection.execute("CREATE EXTENSION vector SCHEMA types")
    connection.execute("CREATE DOMAIN public.vector AS text")
    assert vectors.register(connection)
    assert fetch(connection, "SELECT '[1]'::types.vector").tolist() == [1]
    assert fetch(connection, "SELECT 'x'::public.vector") == "x"
