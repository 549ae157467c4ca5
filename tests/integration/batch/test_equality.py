"""Exact batches against plain SQL, over random tables, keys, filters and queries."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgembed.batch.layout import build_layout
from pgembed.batch.search import knn_join, search_batch
from pgembed.errors import VectorError
from tests.integration.batch.oracle import nearest
from tests.integration.batch.tables import KEYS, create, vectors
from tests.integration.search.support import Connection, adopt, unsafe, vector_text

_numbers = itertools.count(1)

FILTERS: list[tuple[dict[str, Any] | None, str]] = [
    (None, "true"),
    ({"n": 1}, "n = 1"),
    ({"n": {"lt": 2}}, "n < 2"),
    ({"n": {"is_null": True}}, "n IS NULL"),
    ({"not": {"n": 1}}, "NOT n = 1"),
    ({"s": ["a", "b'"]}, "s IN ('a', 'b''')"),
    ({"or": [{"s": "a"}, {"n": {"gt": 1}}]}, "s = 'a' OR n > 1"),
    ({"n": 99}, "false"),
]
PREDICATES = [None, "n >= 0", "s <> 'a' -- not those", "n IN (SELECT 1 UNION SELECT 2)"]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A table, and queries on it."""
    width = draw(st.integers(1, 5))
    row = st.tuples(
        st.none() | vectors(width) | st.just([0] * width),
        st.none() | st.integers(-1, 3),
        st.none() | st.sampled_from(["a", "b'", "c"]),
    )
    query = st.tuples(
        vectors(width),
        st.sampled_from(range(len(FILTERS))),
        st.sampled_from(PREDICATES),
        st.integers(1, 12),
    )
    return {
        "width": width,
        "key": draw(st.sampled_from(sorted(KEYS))),
        "distance": draw(st.sampled_from(["cosine", "l2", "inner_product"])),
        "partitioned": draw(st.booleans()),
        "rows": draw(st.lists(row, max_size=40)),
        "queries": draw(st.lists(query, min_size=1, max_size=8)),
        "order": draw(st.randoms(use_true_random=False)),
    }


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_exact_batches_are_what_sql_answers(
    shared: Connection, case: dict[str, Any]
) -> None:
    table = f"t{next(_numbers)}"
    create(shared, table, case)
    name = adopt(shared, table, distance=case["distance"])
    queries = case["queries"]
    array = np.array([q for q, *_ in queries], np.float32)
    try:
        result = search_batch(
            shared,
            name,
            array,
            filters=[FILTERS[f][0] for _, f, _, _ in queries],
            predicates=[p for _, _, p, _ in queries],
            k=[k for *_, k in queries],
            recall=1.0,
        )
        for i, (_, where, predicate, k) in enumerate(queries):
            both = f"({FILTERS[where][1]}) AND ({predicate or 'true'}\n)"
            expected = nearest(
                shared,
                table,
                array[i],
                where=both,
                k=k,
                distance=case["distance"],
                keys=[column for column, _ in KEYS[case["key"]]],
            )
            assert result[i] == expected
    finally:
        shared.execute(unsafe(f"DROP TABLE {table}"))
        shared.execute("SELECT pgembed.drop_embedding(%s)", [name])


def real_table(
    connection: Connection, rows: int, width: int, kind: str
) -> NDArray[Any]:
    """Create table r with random vectors; return queries."""
    random = np.random.default_rng(5)
    centres = random.standard_normal((20, width)) * 2
    connection.execute(
        unsafe(f"CREATE TABLE r (id int PRIMARY KEY, n int, v {kind}({width}))")
    )
    values = centres[random.integers(0, 20, rows)] + random.standard_normal(
        (rows, width)
    )
    with connection.cursor().copy("COPY r FROM STDIN") as copy:
        for i, row in enumerate(values):
            copy.write_row((i, i % 50, vector_text(row.astype(np.float32))))
    connection.execute("ANALYZE r")
    return np.asarray(
        centres[random.integers(0, 20, 60)] + random.standard_normal((60, width))
    ).astype(np.float16)


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("threads", [1, 3])
def test_real_vectors(
    connection: Connection, distance: str, kind: str, threads: int
) -> None:
    queries = real_table(connection, 5000, 40, kind).astype(np.float32)
    name = adopt(connection, "r", distance=distance)
    filters = [None, {"n": {"lt": 30}}, {"n": 7}, {"n": {"gt": 45}}] * 15
    texts = ["true", "n < 30", "n = 7", "n > 45"] * 15
    result = search_batch(
        connection,
        name,
        queries,
        filters=filters,
        recall=1.0,
        threads=threads,
    )
    for i, text in enumerate(texts):
        # Distances of halfvecs are compared on vectors: what halfvec stores is exact.
        expected = nearest(
            connection,
            "(SELECT id, n, v::vector FROM r) AS r",
            queries[i],
            where=text,
            distance=distance,
        )
        found = result[i]
        assert [k for k, _ in found] == [k for k, _ in expected]
        np.testing.assert_allclose(
            [d for _, d in found], [d for _, d in expected], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_halfvec_compares_queries_as_it_stores_vectors(
    connection: Connection, distance: str
) -> None:
    queries = real_table(connection, 3000, 24, "halfvec").astype(np.float32) / 3
    rounded = queries.astype(np.float16).astype(np.float32)
    assert (rounded != queries).any()
    name = adopt(connection, "r", distance=distance)
    result = search_batch(connection, name, queries, recall=1.0, few_by_sql=False)
    for i, query in enumerate(rounded):
        expected = nearest(
            connection,
            "(SELECT id, v::vector FROM r) AS r",
            query,
            distance=distance,
        )
        assert [key for key, _ in result[i]] == [key for key, _ in expected]
        np.testing.assert_allclose(
            [d for _, d in result[i]], [d for _, d in expected], rtol=1e-6, atol=1e-7
        )
    queries[7, 3] = -65536
    with pytest.raises(VectorError, match=r"query 7 has the value -65536, .* 65504"):
        search_batch(connection, name, queries, few_by_sql=False)


def test_many_equal_rows(connection: Connection) -> None:
    connection.execute("CREATE TABLE e (id int PRIMARY KEY, v vector(7))")
    connection.execute(
        "INSERT INTO e SELECT 20000 - i, "
        "CASE WHEN i % 2 = 0 THEN '[.1,.2,.3,.4,.5,.6,.7]' "
        "ELSE '[.2,.1,.4,.3,.6,.5,.8]' END::vector FROM generate_series(1, 20000) AS i"
    )
    name = adopt(connection, "e")
    queries = np.array(
        [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.2, 0.1, 0.4, 0.3, 0.6, 0.5, 0.8]],
        np.float32,
    )
    result = search_batch(connection, name, queries, recall=1.0)
    assert result.keys.tolist() == [list(range(0, 20, 2)), list(range(1, 20, 2))]


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("ordinary", [0, 30])
def test_vectors_whose_distances_overflow(
    connection: Connection, tmp_path: Path, distance: str, ordinary: int
) -> None:
    """Some distances are infinite, or no number, in SQL."""
    connection.execute("CREATE TABLE e (id int PRIMARY KEY, n int, v vector(2))")
    connection.execute(
        "INSERT INTO e SELECT 50 - i, i %% 2, format('[%%se19,-3e18]', i)::vector "
        "FROM generate_series(1, 30) AS i UNION ALL "
        "SELECT 100 + i, i %% 2, format('[%%s,1]', i)::vector "
        "FROM generate_series(1, %s) AS i",
        [ordinary],
    )
    name = adopt(connection, "e", distance=distance)
    queries = np.array([[1, 1], [-3e20, 1], [4e19, 2e19]], np.float32)
    build_layout(connection, name, root=tmp_path)
    for layout in (False, True):
        result = search_batch(
            connection,
            name,
            queries,
            filters=[None, {"n": 1}, None],
            k=40,
            recall=1.0,
            layout=layout,
            layouts=tmp_path,
            few_by_sql=False,
        )
        for i, where in enumerate(("true", "n = 1", "true")):
            expected = nearest(
                connection, "e", queries[i], where=where, k=40, distance=distance
            )
            assert result[i] == expected
    related = knn_join(connection, name, k=60, recall=1.0)
    assert len(related) == 30 + ordinary
    for key, answer in zip(related.keys.tolist(), related.related.keys, strict=True):
        assert key not in answer.tolist()


@pytest.mark.parametrize("least", ["1e-25", "1e-22", "1e-18"])
def test_vectors_whose_lengths_underflow(
    connection: Connection, tmp_path: Path, least: str
) -> None:
    """Some have no length, or one of few digits, in SQL."""
    connection.execute("CREATE TABLE e (id int PRIMARY KEY, v vector(2))")
    connection.execute(
        "INSERT INTO e SELECT i, format('[%s,1]', i)::vector "
        "FROM generate_series(1, 30) AS i UNION ALL SELECT 31, '[0,0]'"
    )
    name = adopt(connection, "e")
    queries = np.array([[1, 1], [3 * float(least), float(least)]], np.float32)

    def compare(queries: NDArray[np.float32], layout: bool) -> None:
        result = search_batch(
            connection,
            name,
            queries,
            k=50,
            recall=1.0,
            layout=layout,
            layouts=tmp_path,
            few_by_sql=False,
        )
        for i, query in enumerate(queries):
            assert result[i] == nearest(connection, "e", query, k=50)

    compare(queries[1:], layout=False)
    connection.execute(
        "INSERT INTO e SELECT 50 - i, "
        "format('[%%s%%s,-%%s]', i, substr(%(least)s, 2), %(least)s)::vector "
        "FROM generate_series(1, 9) AS i",
        {"least": least},
    )
    build_layout(connection, name, root=tmp_path)
    for layout in (False, True):
        compare(queries[:1], layout)
