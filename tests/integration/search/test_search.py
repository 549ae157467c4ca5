"""Exact search against NumPy, for every distance, storage and kind of source."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from tests.integration.search.support import (
    Connection,
    Matrix,
    adopt,
    create_items,
    explain,
    search,
    unsafe,
    vector_text,
)


def numbers(rows: int, width: int, seed: int = 0) -> Matrix:
    """Return random float32 vectors (rows, width)."""
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def distances(vectors: Matrix, query: NDArray[Any], distance: str) -> NDArray[Any]:
    """Return pgvector's distance of each of *vectors* (n, d) to *query* (d,)."""
    x, q = vectors.astype(np.float64), query.astype(np.float64)
    if distance == "l2":
        return np.asarray(np.linalg.norm(x - q, axis=1))
    if distance == "inner_product":
        return np.asarray(-x @ q)
    return np.asarray(1 - x @ q / np.linalg.norm(x, axis=1) / np.linalg.norm(q))


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_exact_search_is_numpy(
    connection: Connection, distance: str, storage: str
) -> None:
    vectors = numbers(300, 8)
    if storage == "halfvec":
        vectors = vectors.astype(np.float16).astype(np.float32)
    prices = [i % 7 for i in range(300)]
    create_items(
        connection, "items", vectors, columns={"price": ("int", prices)}, kind=storage
    )
    adopt(connection, "items", distance=distance)
    query = vectors[17] + 0.1 if storage == "vector" else vectors[17]
    expected = distances(vectors, query, distance)
    for where, mask in [
        (None, np.full(300, True)),
        ({"price": {"lt": 3}}, np.array(prices) < 3),
        ({"price": 99}, np.full(300, False)),
    ]:
        found = search(connection, "items", query, k=12, filter=where)
        ids = np.flatnonzero(mask)
        order = ids[np.argsort(expected[ids], kind="stable")][:12]
        assert [i for i, _ in found] == order.tolist()
        np.testing.assert_allclose([d for _, d in found], expected[order], atol=1e-5)


def test_bits_are_compared_by_hamming_distance(connection: Connection) -> None:
    vectors = numbers(200, 64)
    create_items(connection, "items", vectors, kind="bit")
    adopt(connection, "items")
    query = numbers(1, 64, seed=1)[0]
    expected = ((vectors > 0) != (query > 0)).sum(axis=1)
    found = search(connection, "items", query, k=50)
    order = np.lexsort((np.arange(200), expected))[:50]
    assert [i for i, _ in found] == order.tolist()
    assert [d for _, d in found] == expected[order].tolist()


def test_the_item_is_the_whole_row(connection: Connection) -> None:
    create_items(
        connection, "items", np.eye(2, dtype=np.float32), columns={"t": ("text", "ab")}
    )
    connection.execute("ALTER TABLE items ADD gone int; ALTER TABLE items DROP gone")
    connection.execute("ALTER TABLE items ADD items text DEFAULT 'itself'")
    adopt(connection, "items")
    rows = connection.execute(
        "SELECT (item).*, distance FROM pgembed.search(NULL::items, '[0,1]'::vector, 1)"
    ).fetchall()
    assert [row[:1] + row[2:] for row in rows] == [(1, "b", "itself", 0)]


def test_ties_are_broken_by_the_key(connection: Connection) -> None:
    create_items(connection, "items", np.ones((40, 2), dtype=np.float32))
    connection.execute("UPDATE items SET id = 100 - id")
    adopt(connection, "items")
    found = search(connection, "items", np.ones(2), k=5)
    assert [i for i, _ in found] == [61, 62, 63, 64, 65]


def test_rows_without_a_distance_are_not_returned(connection: Connection) -> None:
    create_items(connection, "items", np.eye(4, dtype=np.float32))
    connection.execute("UPDATE items SET v = NULL WHERE id = 0")
    connection.execute("UPDATE items SET v = '[0,0,0,0]' WHERE id = 1")
    adopt(connection, "items")
    found = search(connection, "items", np.ones(4), k=10)
    assert [i for i, _ in found] == [2, 3]


def test_filter_and_predicate_both_hold(connection: Connection) -> None:
    create_items(
        connection,
        "items",
        np.eye(4, dtype=np.float32),
        columns={"n": ("int", range(4))},
    )
    adopt(connection, "items")
    for predicate in (
        "items.n < 3",
        "n < 3 -- a comment",
        "n < 1 OR n > 0 AND n < 3 /* , */",
        "EXISTS (SELECT 1 FROM items i WHERE i.n = items.n AND i.n < 3)",
    ):
        found = search(
            connection,
            "items",
            np.ones(4),
            filter={"n": {"gt": 0}},
            predicate=predicate,
        )
        assert [i for i, _ in found] == [1, 2], predicate


@pytest.mark.parametrize(
    "predicate",
    [
        "n < 1) OR (n > 2",
        "true ORDER BY n",
        "true); DROP TABLE items; SELECT (1",
        "true; DROP TABLE items",
        "no_such_column = 1",
        "(",
        " ",
    ],
)
def test_predicates_stay_in_their_parentheses(
    connection: Connection, predicate: str
) -> None:
    create_items(
        connection,
        "items",
        np.eye(4, dtype=np.float32),
        columns={"n": ("int", range(4))},
    )
    adopt(connection, "items")
    with pytest.raises(psycopg.Error):
        search(connection, "items", np.ones(4), predicate=predicate)
    assert connection.execute("SELECT count(*) FROM items").fetchone() == (4,)


def test_names_that_need_quotes(connection: Connection) -> None:
    connection.execute('CREATE SCHEMA "My Schema"')
    connection.execute(
        'CREATE TABLE "My Schema"."Od""d.Tàble" '
        '("The Key" text, "sub key" date, "select" int, "a vector" vector(2), '
        'PRIMARY KEY ("sub key", "The Key"))'
    )
    table = '"My Schema"."Od""d.Tàble"'
    connection.execute(
        unsafe(
            f"INSERT INTO {table} VALUES ('x''', '2024-01-01', 1, '[1,0]'), "
            "('y', '2024-01-01', 2, '[1,0]'), ('a', '2025-01-01', 2, '[1,0]')"
        )
    )
    adopt(connection, table, "a vector", name='na"me')
    found = search(
        connection,
        table,
        np.array([1.0, 0]),
        key='"The Key"',
        embedding='na"me',
        filter={"select": [1, 2]},
        predicate='"select" > 0',
    )
    assert found == [("x'", 0), ("y", 0), ("a", 0)]


def test_partitioned_tables(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE items (id int, region text, v vector(4), "
        "PRIMARY KEY (region, id)) "
        "PARTITION BY LIST (region)"
    )
    vectors = numbers(200, 4)
    for name in "ab":
        connection.execute(
            unsafe(
                f"CREATE TABLE items_{name} PARTITION OF items FOR VALUES IN ('{name}')"
            )
        )
    connection.cursor().executemany(
        "INSERT INTO items VALUES (%s, %s, %s::text::vector)",
        [(i, "ab"[i % 2], vector_text(v)) for i, v in enumerate(vectors)],
    )
    connection.execute("CREATE INDEX ON items USING hnsw (v vector_l2_ops)")
    adopt(connection, "items", distance="l2")
    query = numbers(1, 4, seed=1)[0]
    order = np.argsort(distances(vectors, query, "l2"))
    for mode in ("exact", "index"):
        found = search(connection, "items", query, k=20, mode=mode)
        assert [i for i, _ in found] == order[:20].tolist()
        odd = search(
            connection, "items", query, k=20, mode=mode, filter={"region": "b"}
        )
        assert [i for i, _ in odd] == order[order % 2 == 1][:20].tolist()
    assert explain(connection, "items", query, mode="index")["fallback"] is False
    with pytest.raises(psycopg.errors.UndefinedObject, match="is a partition of"):
        search(connection, "items_a", query)


def test_rows_inherited_later_are_found(connection: Connection) -> None:
    create_items(connection, "items", np.eye(2, dtype=np.float32))
    adopt(connection, "items")
    connection.execute("CREATE TABLE more (extra text) INHERITS (items)")
    connection.execute("INSERT INTO more VALUES (7, '[1,1]', 'x')")
    found = search(connection, "items", np.ones(2))
    assert [i for i, _ in found] == [7, 0, 1]


def test_the_search_sees_its_own_transaction(connection: Connection) -> None:
    create_items(connection, "items", np.eye(2, dtype=np.float32))
    adopt(connection, "items")
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("INSERT INTO items VALUES (5, '[1,1]')")
        assert [i for i, _ in search(connection, "items", np.ones(2), k=1)] == [5]
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        assert [i for i, _ in search(connection, "items", np.ones(2), k=1)] == [5]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, psycopg.errors.InvalidParameterValue, "k is 0"),
        ({"k": 10001}, psycopg.errors.InvalidParameterValue, "k is 10001"),
        ({"k": None}, psycopg.errors.InvalidParameterValue, "k is NULL"),
        ({"mode": "fast"}, psycopg.errors.InvalidParameterValue, "mode is 'fast'"),
        ({"mode": None}, psycopg.errors.InvalidParameterValue, "mode is NULL"),
        (
            {"embedding": "other_v"},
            psycopg.errors.UndefinedObject,
            "of table public.other",
        ),
        ({"embedding": "nope"}, psycopg.errors.UndefinedObject, "no embedding 'nope'"),
    ],
)
def test_arguments_that_make_no_sense(
    connection: Connection,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    for table in ("items", "other"):
        create_items(connection, table, np.eye(3, dtype=np.float32))
        adopt(connection, table)
    with pytest.raises(error, match=message) as caught:
        search(connection, "items", np.ones(3), **arguments)
    assert isinstance(caught.value, psycopg.Error)
    assert caught.value.diag.message_hint


def test_queries_that_make_no_sense(connection: Connection) -> None:
    create_items(connection, "items", np.eye(3, dtype=np.float32))
    adopt(connection, "items")
    with pytest.raises(psycopg.DataError, match=r"has 2 dimensions.*'items_v' has 3"):
        search(connection, "items", np.ones(2))
    with pytest.raises(psycopg.DataError, match="length zero"):
        search(connection, "items", np.zeros(3))
    with pytest.raises(psycopg.DataError, match="NaN not allowed"):
        search(connection, "items", np.full(3, np.nan))
    create_items(connection, "halves", np.eye(3, dtype=np.float32), kind="halfvec")
    adopt(connection, "halves")
    with pytest.raises(psycopg.DataError, match="length zero as a halfvec"):
        search(connection, "halves", np.full(3, 1e-9))
    with pytest.raises(psycopg.errors.NullValueNotAllowed):
        connection.execute("SELECT pgembed.search(NULL::items, NULL::vector)")
    with pytest.raises(psycopg.errors.DatatypeMismatch, match="not integer"):
        connection.execute("SELECT pgembed.search(1, '[1,2,3]'::vector)")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="has no model"):
        connection.execute("SELECT pgembed.search(NULL::items, 'text')")


def test_which_embedding(connection: Connection) -> None:
    create_items(connection, "items", np.eye(3, dtype=np.float32))
    with pytest.raises(psycopg.errors.UndefinedObject, match="has no embedding"):
        search(connection, "items", np.ones(3))
    connection.execute("ALTER TABLE items ADD w vector(2) DEFAULT '[1,0]'")
    adopt(connection, "items")
    adopt(connection, "items", "w", distance="l2")
    with pytest.raises(psycopg.Error, match="several embeddings: items_v, items_w"):
        search(connection, "items", np.ones(3))
    assert len(search(connection, "items", np.ones(3), embedding="items_v")) == 3
    assert search(connection, "items", np.zeros(2), embedding="items_w")[0] == (0, 1)


def test_texts_are_embedded_once(connection: Connection) -> None:
    """The call to the worker is replaced: what counts is who calls it how often."""
    connection.execute("CREATE SEQUENCE calls")
    connection.execute(
        "CREATE OR REPLACE FUNCTION pgembed.embed_query(model text, content text) "
        "RETURNS vector LANGUAGE plpgsql STABLE AS $$ BEGIN "
        "PERFORM nextval('public.calls'); "
        "RETURN CASE WHEN content ~ '\\S' THEN '[1,2,3]'::public.vector END; END $$"
    )
    connection.execute(
        "INSERT INTO pgembed.model "
        "(name, hash, source, dimensions, distance, max_tokens, options) "
        "VALUES ('tiny', sha256('x'), 'test', 3, 'cosine', 8, '{}')"
    )
    create_items(connection, "items", numbers(50, 3))
    connection.execute("CREATE INDEX ON items USING hnsw (v vector_cosine_ops)")
    adopt(connection, "items", model="tiny")
    by_text = connection.execute(
        "SELECT (item).id, distance FROM pgembed.search(NULL::items, 'red shoes', 5)"
    ).fetchall()
    assert connection.execute("SELECT last_value FROM calls").fetchone() == (1,)
    assert by_text == search(connection, "items", np.array([1, 2, 3]), k=5)
    connection.execute(
        "SELECT pgembed.explain_search(NULL::items, 'red', mode => 'index')"
    )
    assert connection.execute("SELECT last_value FROM calls").fetchone() == (2,)
    with pytest.raises(psycopg.errors.NullValueNotAllowed, match="blank"):
        connection.execute("SELECT pgembed.search(NULL::items, ' ')")
