"""The planner: the cheaper way, for the recall asked for, and a way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest

from tests.harness.models import register_model
from tests.integration.search.support import (
    Connection,
    Matrix,
    adopt,
    create_items,
    explain,
    plan_of,
    search,
    unsafe,
)

ROWS, WIDTH = 20_000, 8


def vectors() -> Matrix:
    """Return 20,000 vectors of 8 dimensions."""
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def planned(shared: Connection) -> Connection:
    """Rows with a category (0 to 9), an indexed number, and a side of the space."""
    data = vectors()
    columns = {
        "category": ("int", [i % 10 for i in range(ROWS)]),
        "n": ("int", range(ROWS)),
        "side": ("text", ["left" if x < 0 else "right" for x in data[:, 0]]),
    }
    create_items(shared, "items", data, columns=columns)
    shared.execute("CREATE INDEX items_n ON items (n); ANALYZE items")
    shared.execute("CREATE INDEX items_hnsw ON items USING hnsw (v vector_l2_ops)")
    adopt(shared, "items", distance="l2")
    shared.execute("SET pgembed.cost_dimension = 0.2")  # as if vectors were wide
    return shared


def test_few_rows_are_compared_and_many_are_not(planned: Connection) -> None:
    query = np.ones(WIDTH)
    few = explain(planned, "items", query, filter={"n": {"lt": 500}})
    many = explain(planned, "items", query, filter={"n": {"gte": 500}})
    assert (few["strategy"], many["strategy"]) == ("exact", "index")
    assert few["exact_us"] < few["index_us"]
    assert many["exact_us"] > many["index_us"]
    assert "rows pass" in few["reason"]
    assert "items_n" in plan_of(planned, few, query)
    assert "items_hnsw" in plan_of(planned, many, query)


def test_more_recall_takes_more_effort(planned: Connection) -> None:
    query = np.ones(WIDTH)
    efforts = [
        int(
            explain(planned, "items", query, recall=recall, mode="index")["settings"][
                "hnsw.ef_search"
            ]
        )
        for recall in (0.5, 0.9, 0.99)
    ]
    assert efforts == sorted(set(efforts))
    certain = explain(planned, "items", query, recall=1)
    assert certain["strategy"] == "exact"
    assert "recall of 1" in certain["reason"]


@pytest.mark.parametrize("recall", [-0.1, 1.1, None, float("nan")])
def test_recall_out_of_range(planned: Connection, recall: float | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="recall is"):
        search(planned, "items", np.ones(WIDTH), recall=recall)


def test_auto_holds_the_recall(planned: Connection) -> None:
    data, hits = vectors(), 0
    queries = data[::1000] + np.float32(0.1)
    mask = np.arange(ROWS) % 10 < 5
    for query in queries:
        distances = np.linalg.norm(data - query, axis=1)
        expected = set(np.flatnonzero(mask)[distances[mask].argsort()[:10]].tolist())
        found = search(planned, "items", query, filter={"category": {"lt": 5}})
        assert len(found) == 10
        hits += len({i for i, _ in found} & expected)
    assert hits >= 0.99 * 10 * len(queries)


def test_rows_on_the_far_side_are_found_exactly(planned: Connection) -> None:
    """Half of the rows pass, but none near the query: the index gives up in time."""
    query = np.zeros(WIDTH, dtype=np.float32)
    query[0] = 12
    data = vectors()
    left = np.flatnonzero(data[:, 0] < 0)
    expected = left[np.linalg.norm(data[left] - query, axis=1).argsort()[:10]]
    report = explain(planned, "items", query, filter={"side": "left"})
    found = search(planned, "items", query, filter={"side": "left"})
    assert (report["strategy"], report["fallback"]) == ("index", True)
    assert [i for i, _ in found] == expected.tolist()


def test_an_index_on_the_rows_that_pass(planned: Connection) -> None:
    with planned.transaction(force_rollback=True):
        planned.execute("DROP INDEX items_hnsw")
        planned.execute(
            "CREATE INDEX items_three ON items USING hnsw (v vector_l2_ops) "
            "WHERE category = 3"
        )
        query = vectors()[3]
        implying: list[Any] = [{"category": 3}, {"category": [3], "n": {"gte": 0}}]
        for where in implying:
            report = explain(planned, "items", query, filter=where, mode="index")
            assert report["index"] == "items_three", where
            assert "items_three" in plan_of(planned, report, query)
        found = search(planned, "items", query, filter={"category": 3}, mode="index")
        assert found[0] == (3, 0)
        assert all(i % 10 == 3 for i, _ in found)
        others: list[Any] = [{"category": 4}, {"category": [3, 4]}, {}]
        for where in others:
            report = explain(planned, "items", query, filter=where, mode="index")
            assert (report["strategy"], report["index"]) == ("exact", None), where


def test_costs_can_be_set(planned: Connection) -> None:
    with planned.transaction(force_rollback=True):
        planned.execute("SET LOCAL pgembed.cost_visit = 1000000")
        report = explain(planned, "items", np.ones(WIDTH), filter={"n": {"gte": 500}})
        assert report["strategy"] == "exact"


@pytest.mark.parametrize("cost", ["3", "0.0015", ".5", "1e-05", " +2.E1 ", ""])
def test_costs_are_numbers(planned: Connection, cost: str) -> None:
    row = planned.execute(
        "SELECT pgembed._cost('planner') FROM "
        "set_config('pgembed.cost_planner', %s, true)",
        (cost,),
    ).fetchone()
    assert row == (float(cost) if cost else 9,)


@pytest.mark.parametrize(
    "cost", ["x", "-1", "nan", "inf", "1e308", "1e-300", "1 2", "9" * 400]
)
def test_what_is_no_cost(planned: Connection, cost: str) -> None:
    says = f"pgembed.cost_visit is '{cost}', but must be a number of microseconds"
    with planned.transaction(force_rollback=True):
        planned.execute("SELECT set_config('pgembed.cost_visit', %s, true)", (cost,))
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=says) as caught:
            search(planned, "items", np.ones(WIDTH))
    hint = caught.value.diag.message_hint
    assert hint is not None
    assert hint.startswith("RESET pgembed.cost_visit, ")
    limits = "at most 20 digits before the point and 2 in the exponent"
    assert limits in str(caught.value)


def test_a_table_in_memory_has_cheap_pages(planned: Connection) -> None:
    """Whatever the server thinks of pages; a table that is too big has the server's."""
    query = np.ones(WIDTH)

    def exact(pages: str, cache: str) -> dict[str, Any]:
        with planned.transaction(force_rollback=True):
            planned.execute(unsafe(f"SET LOCAL random_page_cost = {pages}"))
            planned.execute(unsafe(f"SET LOCAL effective_cache_size = '{cache}'"))
            return explain(planned, "items", query, mode="exact", filter={"n": 5})

    cheap, dear = exact("4", "1GB"), exact("40", "1GB")
    assert cheap["settings"]["random_page_cost"] == "0.15"
    assert (cheap["exact_us"], cheap["rows"]) == (dear["exact_us"], 1)
    cheap, dear = exact("4", "8kB"), exact("40", "8kB")
    assert cheap["settings"] == dear["settings"] == {}
    assert cheap["exact_us"] < dear["exact_us"]


def test_rows_in_memory_need_no_bitmap(planned: Connection) -> None:
    query = np.ones(WIDTH)
    with planned.transaction(force_rollback=True):
        planned.execute("CREATE INDEX items_category ON items (category)")
        report = explain(planned, "items", query, mode="exact", filter={"category": 3})
        assert "Index Scan using items_category" in plan_of(planned, report, query)
        report["settings"] = {}
        assert "Bitmap Index Scan on items_category" in plan_of(planned, report, query)


def test_chunks_count_for_what_fits_into_memory(planned: Connection) -> None:
    with planned.transaction(force_rollback=True):
        register_model(planned, dimensions=WIDTH)
        planned.execute(
            "CREATE TABLE docs (id int PRIMARY KEY, body text); "
            "SELECT pgembed.create_embedding('docs', 'body', 'tiny', "
            "chunk_tokens => 8); "
            "INSERT INTO docs SELECT i, 'x' FROM generate_series(1, 100) AS i; "
            "INSERT INTO docs_body_chunk SELECT i, c, 'x', array_fill(i, ARRAY[8]) "
            "FROM generate_series(1, 100) AS i, generate_series(1, 20) AS c; "
            "ANALYZE docs; ANALYZE docs_body_chunk"
        )
        query = np.ones(WIDTH)
        report = explain(planned, "docs", query, mode="exact")
        assert "seq_page_cost" in report["settings"]
        planned.execute("SET LOCAL effective_cache_size = '80kB'")
        again = explain(planned, "docs", query, mode="exact")
        assert again["settings"] == {}
        assert again["exact_us"] > report["exact_us"]


def test_an_index_on_all_rows_with_vectors_is_one_on_all_rows(
    planned: Connection,
) -> None:
    with planned.transaction(force_rollback=True):
        planned.execute(
            "DROP INDEX items_hnsw; CREATE INDEX items_some ON items "
            "USING hnsw (v vector_l2_ops) WHERE v IS NOT NULL"
        )
        for where in (None, {"n": {"gte": 500}}):
            report = explain(
                planned, "items", np.ones(WIDTH), filter=where, mode="index"
            )
            assert (report["strategy"], report["index"]) == ("index", "items_some")


def test_estimates_of_a_table_whose_name_has_two_lines(planned: Connection) -> None:
    with planned.transaction(force_rollback=True):
        planned.execute(
            'CREATE TABLE "two\nlines" (id int PRIMARY KEY, v vector(2)); '
            "INSERT INTO \"two\nlines\" SELECT i, '[1,1]' "
            'FROM generate_series(1, 500) AS i; ANALYZE "two\nlines"'
        )
        adopt(planned, '"two\nlines"')
        report = explain(
            planned, '"two\nlines"', np.ones(2), filter={"id": {"lte": 50}}
        )
        assert 25 < report["estimated_rows"] < 100


def test_partitions_nobody_analyzed(planned: Connection) -> None:
    with planned.transaction(force_rollback=True):
        planned.execute(
            "CREATE TABLE parted (id int PRIMARY KEY, v vector(2)) "
            "PARTITION BY RANGE (id); "
            "CREATE TABLE parted_one PARTITION OF parted DEFAULT; "
            "INSERT INTO parted SELECT i, '[1,1]' FROM generate_series(1, 5000) AS i"
        )
        adopt(planned, "parted")
        report = explain(planned, "parted", np.ones(2))
        assert 100 < report["estimated_rows"] < 50_000


@pytest.mark.parametrize("mode", ["auto", "index"])
def test_a_table_nobody_analyzed(planned: Connection, mode: str) -> None:
    planned.execute("DROP TABLE IF EXISTS fresh; CREATE TABLE fresh (LIKE items)")
    planned.execute("ALTER TABLE fresh ADD PRIMARY KEY (id)")
    planned.execute("INSERT INTO fresh SELECT * FROM items WHERE id < 300")
    planned.execute(unsafe("CREATE INDEX ON fresh USING ivfflat (v vector_l2_ops)"))
    adopt(planned, "fresh", distance="l2", name=f"fresh_{mode}")
    found = search(planned, "fresh", vectors()[7], k=300, mode=mode)
    assert len(found) == 300
    planned.execute("SELECT pgembed.drop_embedding(%s)", (f"fresh_{mode}",))


def test_calibration(planned: Connection) -> None:
    names = {"planner", "distance", "dimension", "search", "visit"}
    names |= {"visit_dimension", "overhead"}
    with planned.transaction(force_rollback=True):
        rows = planned.execute("SELECT name, value FROM pgembed.calibrate('items_v')")
        measured = dict(rows)
        assert measured.keys() == {f"cost_{name}" for name in names}
        assert all(0 <= value < 1e6 for value in measured.values())
        assert measured["cost_planner"] > 0
        assert measured["cost_overhead"] > 0
        # Of what a vector costs, each dimension has the share that it has by default.
        share = measured["cost_distance"] * 0.0015 / 0.1
        # Both are rounded, and nothing where the machine was busy for a moment.
        assert measured["cost_dimension"] == pytest.approx(share, rel=0.01, abs=1e-6)
        stored = planned.execute(
            "SELECT s.setconfig::text FROM pg_db_role_setting s "
            "JOIN pg_database d ON d.oid = s.setdatabase "
            "WHERE s.setrole = 0 AND d.datname = current_database()"
        ).fetchone()
        assert stored is not None
        assert "pgembed.cost_planner" in stored[0]
        assert explain(planned, "items", np.ones(WIDTH), filter={"n": 5})["rows"] == 1


def test_calibration_of_a_table_of_any_name(planned: Connection) -> None:
    with planned.transaction(force_rollback=True):
        planned.execute('ALTER TABLE items RENAME TO "it$2ems"')
        rows = planned.execute("SELECT FROM pgembed.calibrate('items_v', false)")
        assert len(rows.fetchall()) == 7


def test_calibration_needs_rows(planned: Connection) -> None:
    with planned.transaction(force_rollback=True):
        planned.execute("CREATE TABLE tiny (id int PRIMARY KEY, v vector(2))")
        adopt(planned, "tiny")
        with pytest.raises(psycopg.Error, match="too small"):
            planned.execute("SELECT pgembed.calibrate('tiny_v')")


def test_an_index_that_lost_its_way_is_not_believed(planned: Connection) -> None:
    """More sentinels than can be are nearer than what the index found."""
    query = np.zeros(WIDTH, dtype=np.float32)
    report = explain(planned, "items", query, mode="index")
    assert "ANY ($5)" in report["statement"]
    assert (report["rows"], report["fallback"]) == (10, False)
    row = planned.execute(
        "SELECT cardinality(s.places), s.share FROM pgembed._table_size('items') AS t, "
        "LATERAL pgembed._sentinels('items', t.rows, t.pages) AS s"
    ).fetchone()
    assert row == (256, pytest.approx(256 / ROWS))
    # The rows around the query are hidden from the graph, not from the sentinels.
    with planned.transaction(force_rollback=True):
        planned.execute("CREATE TABLE moved (LIKE items)")
        planned.execute("ALTER TABLE moved ADD PRIMARY KEY (id)")
        planned.execute("INSERT INTO moved SELECT * FROM items WHERE id % 2 = 0")
        planned.execute("INSERT INTO moved SELECT * FROM items WHERE id % 2 = 1")
        planned.execute("ANALYZE moved")
        planned.execute("CREATE INDEX moved_v ON moved USING hnsw (v vector_l2_ops)")
        adopt(planned, "moved", distance="l2")
        near = explain(planned, "moved", query, mode="index")
        assert not near["fallback"]
        lost = planned.execute(
            "SELECT count(*) FROM pgembed._run_search(NULL::moved, %s::vector, 10, "
            "%s, %s, NULL, (SELECT array_agg(ctid) FROM (SELECT ctid FROM moved "
            "ORDER BY v <-> %s::vector LIMIT 50) AS nearest))",
            (
                str(query.tolist()),
                near["statement"],
                [each for pair in near["settings"].items() for each in pair],
                str(query.tolist()),
            ),
        ).fetchone()
        assert lost == (0,)


@pytest.mark.parametrize("mode", ["auto", "index", "exact"])
@pytest.mark.parametrize(
    "given",
    [
        {"filter": {"id": []}},
        {"filter": {"or": []}},
        {"predicate": "false"},
        {"filter": {"n": {"lt": 0}}},
    ],
)
def test_what_no_row_passes(
    planned: Connection, given: dict[str, Any], mode: str
) -> None:
    query = np.zeros(WIDTH)
    assert search(planned, "items", query, mode=mode, **given) == []
    assert explain(planned, "items", query, mode=mode, **given)["rows"] == 0


def test_rights_on_columns_are_enough(planned: Connection) -> None:
    """Where a role may not read places, no sentinels are looked at."""
    query = np.zeros(WIDTH)
    whole = search(planned, "items", query, mode="index")
    with planned.transaction(force_rollback=True):
        planned.execute("CREATE ROLE reader; SELECT pgembed.grant_search('reader')")
        planned.execute("GRANT SELECT (id, v, category, n, side) ON items TO reader")
        planned.execute("SET LOCAL ROLE reader")
        assert search(planned, "items", query, mode="index") == whole
        assert "$5" not in explain(planned, "items", query, mode="index")["statement"]
        planned.execute("RESET ROLE; GRANT SELECT (ctid) ON items TO reader")
        planned.execute("SET LOCAL ROLE reader")
        assert search(planned, "items", query, mode="index") == whole
        assert "$5" in explain(planned, "items", query, mode="index")["statement"]
