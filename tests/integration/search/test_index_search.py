"""Search through the vector index: recall, never too few rows, nothing left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest

from tests.integration.search.support import (
    Connection,
    Matrix,
    adopt,
    create_items,
    explain,
    plan_of,
    search,
    unsafe,
    vector_text,
)

ROWS, WIDTH = 5000, 32
SETTINGS = (
    "hnsw.ef_search",
    "hnsw.iterative_scan",
    "enable_sort",
    "jit",
    "random_page_cost",
    "cpu_index_tuple_cost",
)


def clustered(rows: int, width: int) -> Matrix:
    """Return vectors (rows, width) around 50 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, width))
    noise = 0.7 * rng.standard_normal((rows, width))
    return (centres[rng.integers(0, 50, rows)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def indexed(shared: Connection) -> Connection:
    """5,000 rows with an HNSW and an IVFFlat index on columns of their own."""
    vectors = clustered(ROWS, WIDTH)
    columns = {
        "n": ("int", range(ROWS)),
        "third": ("int", [i % 3 for i in range(ROWS)]),
    }
    for table, method in (("graph", "hnsw"), ("lists", "ivfflat")):
        create_items(shared, table, vectors, columns=columns)
        shared.execute(
            unsafe(
                f"CREATE INDEX {table}_v_idx ON {table} "
                f"USING {method} (v vector_l2_ops)"
            )
        )
        adopt(shared, table, distance="l2")
    return shared


def truth(query: Matrix, ids: Any, k: int) -> set[int]:
    """Return the k of *ids* that are nearest to *query* (d,)."""
    vectors = clustered(ROWS, WIDTH)[ids]
    return set(np.asarray(ids)[np.linalg.norm(vectors - query, axis=1).argsort()[:k]])


@pytest.mark.parametrize("table", ["graph", "lists"])
@pytest.mark.parametrize("where", [None, {"third": 1}])
def test_recall_through_the_index(
    indexed: Connection, table: str, where: dict[str, int] | None
) -> None:
    queries = clustered(ROWS, WIDTH)[::250] + np.float32(0.2)
    ids = np.arange(ROWS)[slice(1, None, 3) if where else slice(None)]
    hits = 0
    for query in queries:
        found = search(indexed, table, query, filter=where, mode="index")
        assert len(found) == 10
        assert [d for _, d in found] == sorted(d for _, d in found)
        hits += len({i for i, _ in found} & truth(query, ids, 10))
    assert hits / (10 * len(queries)) >= 0.97
    report = explain(indexed, table, queries[0], filter=where, mode="index")
    assert (report["strategy"], report["fallback"]) == ("index", False)
    assert report["index"] == f"{table}_v_idx"
    assert f"using {table}_v_idx" in plan_of(indexed, report, queries[0])


@pytest.mark.parametrize("mode", ["auto", "index", "exact"])
@pytest.mark.parametrize("table", ["graph", "lists"])
def test_rare_rows_are_all_found(indexed: Connection, table: str, mode: str) -> None:
    query = clustered(ROWS, WIDTH)[0]
    for where, ids in [
        ({"n": 4321}, [4321]),
        ({"n": {"lt": 7}}, list(range(7))),
        ({"n": [9, 99, 999, -1]}, [9, 99, 999]),
        ({"n": {"lt": 0}}, []),
    ]:
        found = search(indexed, table, query, filter=where, mode=mode)
        assert sorted(i for i, _ in found) == ids
    found = search(indexed, table, query, k=30, mode=mode, predicate="n % 137 = 0")
    expected = truth(query, np.arange(0, ROWS, 137), 30)
    assert len(found) == 30
    assert len({i for i, _ in found} & expected) >= (27 if mode == "index" else 30)


def test_exact_search_does_not_use_the_vector_index(indexed: Connection) -> None:
    query = clustered(ROWS, WIDTH)[0]
    report = explain(indexed, "graph", query, mode="exact", filter={"id": {"lt": 50}})
    plan = plan_of(indexed, report, query)
    assert "graph_v_idx" not in plan
    assert "Index Cond: (id < 50)" in plan
    assert "Index Cond: (id = q.id)" in plan
    assert report["index"] is None


def test_exact_search_reads_a_covering_index(indexed: Connection) -> None:
    query = clustered(ROWS, WIDTH)[0]
    where = {"n": {"lt": 900}}
    before = explain(indexed, "graph", query, filter=where)
    indexed.execute("CREATE INDEX covering ON graph (n, third) INCLUDE (id, v)")
    indexed.execute("VACUUM ANALYZE graph")
    try:
        report = explain(indexed, "graph", query, filter=where)
        assert report["strategy"] == "exact"
        assert report["exact_us"] < before["exact_us"]
        plan = plan_of(indexed, report, query)
        assert "Index Only Scan using covering on graph" in plan
        found = {i for i, _ in search(indexed, "graph", query, filter=where)}
        assert found == truth(query, np.arange(900), 10)
    finally:
        indexed.execute("DROP INDEX covering")


def test_what_explain_search_says(indexed: Connection) -> None:
    query = clustered(ROWS, WIDTH)[0]
    report = explain(indexed, "graph", query, filter={"n": {"lt": 40}}, k=5)
    assert report["strategy"] == "exact"
    assert "rows pass" in report["reason"]
    assert 20 <= report["estimated_rows"] <= 60
    assert (report["k"], report["rows"]) == (5, 5)
    assert report["embedding"] == "graph_v"
    assert report["planning_ms"] > 0
    assert report["execution_ms"] > 0
    rare = explain(indexed, "graph", query, filter={"n": 7}, mode="index")
    assert (rare["fallback"], rare["rows"]) == (True, 1)


def settings_now(connection: Connection) -> list[Any]:
    """Return the settings that a search may touch."""
    names = ", ".join(f"current_setting('{name}', true)" for name in SETTINGS)
    row = connection.execute(unsafe(f"SELECT {names}")).fetchone()
    assert row is not None
    return list(row)


def test_settings_end_with_the_search(indexed: Connection) -> None:
    query = clustered(ROWS, WIDTH)[0]
    indexed.execute("SET hnsw.ef_search = 33")
    before = settings_now(indexed)
    with indexed.transaction():
        search(indexed, "graph", query, mode="index")
        search(indexed, "graph", query, mode="exact", filter={"n": 3})
        search(indexed, "graph", query, mode="index", filter={"n": 7})  # falls back
        assert settings_now(indexed) == before
    with indexed.transaction():
        indexed.execute("SET LOCAL hnsw.ef_search = 44")
        search(indexed, "graph", query, mode="index", filter={"n": 3})
        assert settings_now(indexed)[0] == "44"
    assert settings_now(indexed) == before


def test_settings_end_with_a_search_that_fails(indexed: Connection) -> None:
    query = clustered(ROWS, WIDTH)[0]
    before = settings_now(indexed)
    failing = {"mode": "index", "predicate": "1 / (n - n) > 0"}
    with pytest.raises(psycopg.errors.DivisionByZero):
        search(indexed, "graph", query, **failing)
    assert settings_now(indexed) == before
    with indexed.transaction():
        with pytest.raises(psycopg.errors.DivisionByZero), indexed.transaction():
            search(indexed, "graph", query, **failing)
        assert settings_now(indexed) == before
        assert len(search(indexed, "graph", query, mode="index")) == 10
        assert settings_now(indexed) == before


def test_a_search_inside_a_search(indexed: Connection) -> None:
    """A predicate may search too; the settings of both come and go."""
    query = vector_text(clustered(ROWS, WIDTH)[0])
    before = settings_now(indexed)
    inner = (
        "id IN (SELECT (item).id FROM pgembed.search(NULL::lists, "
        f"'{query}'::vector, 20, mode => 'index'))"
    )
    found = search(
        indexed, "graph", clustered(ROWS, WIDTH)[0], mode="index", predicate=inner
    )
    assert {i for i, _ in found} == truth(
        clustered(ROWS, WIDTH)[0], np.arange(ROWS), 10
    )
    assert settings_now(indexed) == before


def test_modes_without_an_index(indexed: Connection) -> None:
    create_items(indexed, "bare", clustered(50, 4))
    adopt(indexed, "bare")
    report = explain(indexed, "bare", np.ones(4), mode="index")
    assert report["strategy"] == "exact"
    assert "no valid index" in report["reason"]
    indexed.execute("CREATE INDEX ON bare USING hnsw (v vector_l2_ops)")
    assert explain(indexed, "bare", np.ones(4), mode="index")["strategy"] == "exact"
    indexed.execute("CREATE INDEX ON bare USING hnsw (v vector_cosine_ops)")
    assert explain(indexed, "bare", np.ones(4), mode="index")["strategy"] == "index"


@pytest.mark.parametrize("storage", ["halfvec", "bit"])
def test_other_storages_have_indexes_too(indexed: Connection, storage: str) -> None:
    table, vectors = f"items_{storage}", clustered(500, 16)
    create_items(indexed, table, vectors, kind=storage)
    adopt(indexed, table, distance="inner_product")
    opclass = {"halfvec": "halfvec_ip_ops", "bit": "bit_hamming_ops"}[storage]
    indexed.execute(unsafe(f"CREATE INDEX ON {table} USING hnsw (v {opclass})"))
    exact = search(indexed, table, vectors[3], k=20, mode="exact")
    through_index = search(indexed, table, vectors[3], k=20, mode="index")
    assert [d for _, d in exact] == [d for _, d in through_index]
    assert explain(indexed, table, vectors[3], mode="index")["strategy"] == "index"
