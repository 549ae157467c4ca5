"""pgembed.recall measures searches against exact ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.integration.search.support import (
    Connection,
    adopt,
    create_items,
    unsafe,
    vector_text,
)

COLUMNS = "filter_shape, queries, recall, worst, short, ms, exact_ms"


@pytest.fixture(scope="module")
def measured(shared: Connection) -> Connection:
    """3,000 rows in three storages, each with an index."""
    vectors = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)
    for storage, opclass in (
        ("vector", "vector_cosine_ops"),
        ("halfvec", "halfvec_cosine_ops"),
        ("bit", "bit_hamming_ops"),
    ):
        table = f"items_{storage}"
        columns = {"n": ("int", range(3000))}
        create_items(shared, table, vectors, columns=columns, kind=storage)
        shared.execute(unsafe(f"CREATE INDEX ON {table} USING hnsw (v {opclass})"))
        adopt(shared, table, name=storage)
    return shared


def measure(connection: Connection, embedding: str, **arguments: Any) -> list[Any]:
    """Call pgembed.recall and return its rows."""
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return connection.execute(
        unsafe(f"SELECT {COLUMNS} FROM pgembed.recall(%(embedding)s{named})"),
        arguments | {"embedding": embedding},
    ).fetchall()


@pytest.mark.parametrize("storage", ["vector", "halfvec", "bit"])
def test_exact_searches_find_everything(measured: Connection, storage: str) -> None:
    (row,) = measure(measured, storage, sample=10, mode="exact")
    assert row[:5] == ({}, 10, 1.0, 1.0, 0)
    assert row[5] > 0
    assert row[6] > 0


def test_an_index_finds_nearly_everything(measured: Connection) -> None:
    (row,) = measure(measured, "vector", sample=40, mode="index")
    assert 0.97 <= row[2] <= 1
    assert row[3] <= row[2]


@pytest.mark.parametrize(
    ("answer", "truth", "share"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 2.5], 2 / 3),
        ([1.0, 2.5], [1.0, 2.0, 2.5, 2.5], 0.5),
        ([], [1.0], 0),
        (None, [1.0], 0),
        ([-3.0, -1.0], [-3.0, -2.0], 0.5),
        (None, None, 1),
    ],
)
def test_recall_counts_distances(
    measured: Connection, answer: Any, truth: Any, share: float
) -> None:
    row = measured.execute(
        "SELECT pgembed._recall_of(%s::float8[], %s::float8[])", (answer, truth)
    ).fetchone()
    assert row == (pytest.approx(share),)


def test_recall_is_told_per_shape_of_filter(measured: Connection) -> None:
    filters = [{"n": {"lt": 9}}, {"n": {"lt": 2000}}, {"or": [{"n": [1, 2]}]}]
    rows = measure(measured, "vector", sample=5, filter=json.dumps(filters))
    by_shape = {json.dumps(row[0]): row for row in rows}
    assert by_shape.keys() == {'{"n": {"lt": "?"}}', '{"or": [{"n": ["?"]}]}'}
    assert by_shape['{"n": {"lt": "?"}}'][1] == 10
    assert all(row[4] == 0 for row in rows)


def test_a_workload_brings_its_queries(measured: Connection) -> None:
    measured.execute("CREATE TABLE workload (embedding vector(24), filter jsonb)")
    query = vector_text(np.ones(24))
    for where in ('{"n": 5}', '{"n": 6}', None):
        measured.execute("INSERT INTO workload VALUES (%s, %s)", (query, where))
    rows = measure(measured, "vector", workload="workload")
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ({}, 1, 1),
        ({"n": "?"}, 2, 1),
    ]


def test_vectors_without_a_direction_are_no_queries(connection: Connection) -> None:
    """Under cosine distance, neither of the table nor of a workload."""
    connection.execute(
        "CREATE TABLE items (id int PRIMARY KEY, v vector(2), h halfvec(2));"
        "INSERT INTO items VALUES (1, '[0,0]', '[0,0]'), (2, '[1,0]', '[1,0]');"
        "CREATE TABLE workload AS SELECT v AS embedding FROM items"
    )
    for column, distance, queries in [("v", "cosine", 1), ("h", "l2", 2)]:
        name = adopt(connection, "items", column, distance=distance)
        (row,) = measure(connection, name)
        assert row[1] == queries
        (row,) = measure(connection, name, workload="workload")
        assert row[1] == queries


def test_a_workload_of_bits(measured: Connection) -> None:
    measured.execute(
        "CREATE TABLE bits AS SELECT v AS embedding FROM items_bit LIMIT 3"
    )
    (row,) = measure(measured, "bit", workload="bits", mode="exact")
    assert row[:5] == ({}, 3, 1.0, 1.0, 0)


def test_measuring_is_not_recorded(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE items (id int PRIMARY KEY, v vector(2));"
        "INSERT INTO items VALUES (1, '[1,0]')"
    )
    name = adopt(connection, "items")
    search = "SELECT pgembed.search(NULL::items, '[1,0]'::vector, filter => '{}')"
    with connection.transaction():
        measure(connection, name, filter='{"id": 1}')  # before it was ever set
    connection.execute("SET pgembed.record_filters = 1")
    with connection.transaction():
        measure(connection, name, filter='{"id": 1}')
        connection.execute(search)
    rows = connection.execute("SELECT filter FROM pgembed.recorded_filter")
    assert rows.fetchall() == [({},)]


@pytest.mark.parametrize("given", ["[]", "5", "[[]]", '["kind"]'])
def test_what_is_no_filter(measured: Connection, given: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="filter: an object"):
        measure(measured, "vector", filter=given)


def test_what_is_refused(measured: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedObject, match="no embedding 'nope'"):
        measure(measured, "nope")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="sample is 0"):
        measure(measured, "vector", sample=0)
    with pytest.raises(psycopg.errors.UndefinedColumn, match="no column embedding"):
        measure(measured, "vector", workload="items_bit")
