"""pgembed.max_sim: ColBERT's MaxSim, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import errors

from pgembed.postgres.vectors import Float32, VectorArray
from tests.harness.sql_worker import value

Connection = psycopg.Connection[Any]

MAX_SIM = "SELECT pgembed.max_sim(%s::vector[], %s::vector[])"


def max_sim(query: Float32, document: Float32) -> float:
    """Return the sum over *query* of the largest inner product with *document*."""
    products = query.astype(np.float64) @ document.astype(np.float64).T
    return float(products.max(axis=1).sum())


@pytest.mark.parametrize(
    ("queries", "documents", "dimensions"),
    [(1, 1, 1), (1, 7, 3), (7, 1, 3), (32, 100, 128), (5, 5, 384)],
)
def test_it_is_what_numpy_says(
    connection: Connection, queries: int, documents: int, dimensions: int
) -> None:
    random = np.random.default_rng(queries * documents * dimensions)
    query = random.standard_normal((queries, dimensions)).astype(np.float32)
    document = random.standard_normal((documents, dimensions)).astype(np.float32)
    found = value(connection, MAX_SIM, VectorArray(query), VectorArray(document))
    assert found == pytest.approx(max_sim(query, document), rel=1e-5, abs=1e-4)


def test_normalised_vectors_give_the_cosine(connection: Connection) -> None:
    found = value(connection, MAX_SIM, ["[0.6,0.8]"], ["[0.8,0.6]", "[0,1]"])
    assert found == pytest.approx(0.96)
    # Not divided by the norms: an inner product.
    assert value(connection, MAX_SIM, ["[3,4]"], ["[8,6]"]) == 48


def test_it_ranks_documents(connection: Connection) -> None:
    random = np.random.default_rng(3)
    query = random.standard_normal((4, 8)).astype(np.float32)
    documents = random.standard_normal((20, 6, 8)).astype(np.float32)
    connection.execute("CREATE TABLE passages (id int, vectors vector[])")
    for i, document in enumerate(documents):
        connection.execute(
            "INSERT INTO passages VALUES (%s, %s)", (i, VectorArray(document))
        )
    connection.execute("INSERT INTO passages VALUES (98, NULL), (99, '{}')")
    ranked = connection.execute(
        "SELECT id FROM passages "
        "ORDER BY pgembed.max_sim(%s::vector[], vectors) DESC NULLS LAST",
        (VectorArray(query),),
    ).fetchall()
    wanted = np.argsort([-max_sim(query, document) for document in documents])
    assert [row[0] for row in ranked[:20]] == wanted.tolist()
    assert {row[0] for row in ranked[20:]} == {98, 99}


@pytest.mark.parametrize(
    ("query", "document", "wanted"),
    [
        (None, ["[1,2]"], None),
        (["[1,2]"], None, None),
        ([], ["[1,2]"], None),
        (["[1,2]"], [], None),
        ([None], ["[1,2]"], None),
        (["[1,2]"], [None], None),
        ([None, "[1,2]"], ["[1,2]"], 5.0),
        (["[1,2]"], [None, "[1,2]"], 5.0),
        (["[1,2]"], ["[-1,-2]"], -5.0),
        (["[0,0]"], ["[1,2]"], 0.0),
    ],
)
def test_what_is_missing_does_not_count(
    connection: Connection,
    query: list[str | None] | None,
    document: list[str | None] | None,
    wanted: float | None,
) -> None:
    found = value(connection, MAX_SIM, query, document)
    assert found == wanted
    assert str(found) == str(wanted)  # no negative zero


def test_dimensions_must_agree(connection: Connection) -> None:
    with pytest.raises(errors.DataException, match="different vector dimensions 2 and"):
        value(connection, MAX_SIM, ["[1,2]"], ["[1,2]", "[1,2,3]"])


def test_parallel_workers_may_run_it(connection: Connection) -> None:
    row = connection.execute(
        "SELECT provolatile, proparallel, proisstrict FROM pg_proc "
        "WHERE oid = 'pgembed.max_sim(vector[], vector[])'::regprocedure"
    ).fetchone()
    assert row == ("i", "s", True)
