"""COPY BINARY into NumPy."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import psycopg
import pytest

from pgembed.errors import VectorError
from pgembed.postgres.copying import copy_columns

Connection = psycopg.Connection[Any]


@pytest.fixture
def items(connection: Connection) -> Connection:
    """Return a connection to a database with 1000 rows of many types."""
    connection.execute(
        """
        CREATE TABLE items AS SELECT i AS id, i::smallint AS small, -i::bigint AS big,
            repeat('ä', i % 7) AS words,
            CASE WHEN i % 3 = 0 THEN i::numeric END AS maybe,
            i % 2 = 0 AS even, i / 4.0::real AS single, i / 3.0::float8 AS double,
            md5(i::text)::uuid AS uid, date '1999-12-31' + i AS day,
            timestamptz '1999-12-31 23:00+00' + i * interval '1 hour' AS moment,
            ARRAY[i, -i, i / 8.0]::public.vector AS v,
            ARRAY[i, -i, i / 8.0]::public.halfvec AS h
        FROM generate_series(1, 1000) AS i
        """
    )
    return connection


def columns(connection: Connection, query: str, block_rows: int = 300) -> list[Any]:
    blocks = list(copy_columns(connection, query, block_rows=block_rows))
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]


def test_vectors(items: Connection) -> None:
    found = columns(items, "SELECT v FROM items ORDER BY id")[0]
    numbers = np.arange(1, 1001, dtype=np.float32)
    np.testing.assert_array_equal(
        found, np.stack([numbers, -numbers, numbers / 8], axis=1)
    )
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    halves = columns(items, "SELECT h FROM items ORDER BY id LIMIT 100")[0]
    np.testing.assert_array_equal(halves, found[:100])


@pytest.mark.parametrize("block_rows", [1, 7, 999, 1000, 1001])
def test_every_type(items: Connection, block_rows: int) -> None:
    names = "id, words, small, maybe, big, v, even, single, double, uid, day, moment"
    query = f"SELECT {names} FROM items ORDER BY id"
    found = columns(items, query, block_rows)
    rows = items.execute(query.encode()).fetchall()
    for index, name in enumerate(names.split(", ")):
        expected = [row[index] for row in rows]
        actual = found[index]
        if name == "v":
            np.testing.assert_array_equal(actual, np.stack(expected))
        elif name == "uid":
            assert [uuid.UUID(bytes=item.tobytes()) for item in actual] == expected
        elif name == "moment":
            naive = [moment.replace(tzinfo=None) for moment in expected]
            assert actual.tolist() == naive
        else:
            assert actual.tolist() == expected
    assert [array.dtype.kind for array in found] == list("iOiOifbffVMM")


def test_no_rows(items: Connection) -> None:
    assert list(copy_columns(items, "SELECT id, v FROM items WHERE false")) == []


def test_nulls_are_refused_and_the_connection_lives(items: Connection) -> None:
    for column in ("v", "id"):
        query = f"SELECT nullif({column}, {column}) AS {column} FROM items"
        with pytest.raises(VectorError, match=f"'{column}' holds NULLs"):
            columns(items, query)
    assert columns(items, "SELECT v FROM items")[0].shape == (1000, 3)


def test_different_lengths_are_refused(items: Connection) -> None:
    with pytest.raises(VectorError, match="'v' holds vectors of different lengths"):
        columns(items, "SELECT v FROM items UNION ALL SELECT '[1]'")


def test_failure_on_the_way(items: Connection) -> None:
    query = "SELECT v FROM items WHERE 1 / (1000 - id) >= 0"
    with pytest.raises(psycopg.errors.DivisionByZero):
        columns(items, query)
    assert items.info.transaction_status.name == "IDLE"


def test_stopping_early_leaves_a_usable_connection(items: Connection) -> None:
    blocks = copy_columns(items, "SELECT v FROM items", block_rows=10)
    assert next(blocks)[0].shape == (10, 3)
    blocks.close()  # type: ignore[attr-defined]
    assert columns(items, "SELECT v FROM items")[0].shape == (1000, 3)
