"""Recording of filters, and advice on indexes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest

from pgembed.errors import EmbeddingError, PgembedError
from pgembed.postgres.connection import fetch_one
from pgembed.search import advice
from tests.conftest import Connect
from tests.integration.search.support import (
    Connection,
    adopt,
    create_items,
    explain,
    search,
    unsafe,
)
from tests.integration.search.workloads import recorded, vectors, workload


def test_nothing_is_recorded_unless_asked(advised: Connection) -> None:
    advised.execute("TRUNCATE pgembed.recorded_filter")
    search(advised, "items", vectors()[0], filter={"kind": 1})
    assert recorded(advised) == []


def test_filters_are_recorded(recording: Connection) -> None:
    where = {"kind": 1, "n": {"lt": 50}}
    assert len(search(recording, "items", vectors()[0], filter=where)) == 10
    search(recording, "items", vectors()[0])
    search(recording, "items", vectors()[0], predicate="n = 77")
    assert recorded(recording) == [where]


def test_a_share_of_the_filters_is_recorded(recording: Connection) -> None:
    recording.execute("SET pgembed.record_filters = '0.3'; SELECT setseed(0.5)")
    for _ in range(60):
        search(recording, "items", vectors()[0], filter={"n": 5})
    assert 5 <= len(recorded(recording)) <= 35


def test_read_only_transactions_search_and_record_nothing(
    recording: Connection,
) -> None:
    with recording.transaction():
        recording.execute("SET TRANSACTION READ ONLY")
        assert len(search(recording, "items", vectors()[0], filter={"kind": 1})) == 10
    assert recorded(recording) == []


def test_a_rollback_takes_the_record_back(recording: Connection) -> None:
    with recording.transaction(force_rollback=True):
        search(recording, "items", vectors()[0], filter={"kind": 1})
        assert len(recorded(recording)) == 1
    assert recorded(recording) == []


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_the_record_does_not_grow_for_ever(
    recording: Connection, isolation: str
) -> None:
    recording.execute(
        "INSERT INTO pgembed.recorded_filter (embedding, filter) "
        "SELECT e.id, '{}' FROM pgembed.embedding AS e, generate_series(1, 100)"
    )
    recording.execute(
        "SELECT setval(pg_get_serial_sequence('pgembed.recorded_filter', 'id'), "
        "(SELECT max(id) FROM pgembed.recorded_filter) / 1000 * 1000 + 200999)"
    )
    with recording.transaction():
        recording.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        search(recording, "items", vectors()[0], filter={"kind": 1})
    assert recorded(recording) == [{"kind": 1}]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_what_others_trimmed_from_the_record_fails_no_search(
    recording: Connection, connect: Connect, isolation: str
) -> None:
    sequence = "pg_get_serial_sequence('pgembed.recorded_filter', 'id')"
    (start,) = fetch_one(
        recording,
        "INSERT INTO pgembed.recorded_filter (embedding, filter) "
        "SELECT e.id, '{}' FROM pgembed.embedding AS e RETURNING id / 1000 * 1000",
    )
    other = connect(recording.info.dsn, purpose="test")
    other.execute("SET pgembed.record_filters = 1")
    with other.transaction():
        other.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        other.execute("SELECT FROM pgembed.recorded_filter")
        recording.execute(f"SELECT setval({sequence}, {start + 200999})".encode())
        search(recording, "items", vectors()[0], filter={"kind": 1})
        assert recorded(recording) == [{"kind": 1}]
        recording.execute(f"SELECT setval({sequence}, {start + 201999})".encode())
        assert len(search(other, "items", vectors()[0], filter={"kind": 2})) == 10
    assert recorded(recording) == [{"kind": 1}, {"kind": 2}]


@pytest.mark.parametrize("share", ["1e-5", "1E-05", " 1. ", ".5e0", "0.000"])
def test_shares_as_programs_write_them(recording: Connection, share: str) -> None:
    recording.execute("SELECT set_config('pgembed.record_filters', %s, false)", [share])
    assert len(search(recording, "items", vectors()[0], filter={"kind": 1})) == 10


@pytest.mark.parametrize("share", ["-1", "1.5", "often", "1e9", "1e", "1e-400"])
def test_a_share_that_makes_no_sense(recording: Connection, share: str) -> None:
    recording.execute("SELECT set_config('pgembed.record_filters', %s, false)", [share])
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="from 0 to 1"):
        search(recording, "items", vectors()[0], filter={"kind": 1})


def test_what_pays_most_for_its_size_comes_first(advised: Connection) -> None:
    workload(advised, ({"kind": 1}, 50), ({"kind": 2}, 5), ({"n": 7}, 9))
    found = advice.advise(advised, "items_v", workload="workload")
    assert [each.filter for each in found][:2] == [
        {"kind": {"eq": 1}},
        {"kind": {"eq": 2}},
    ]
    assert found[0].searches == pytest.approx(50 / 64)
    assert 1000 <= found[0].rows <= 1400
    assert 1 < found[0].speedup < found[1].speedup
    assert not found[0].present


def test_one_index_serves_what_its_filter_is_part_of(advised: Connection) -> None:
    wheres = [{"kind": 3, "n": {"gte": bound}} for bound in (100, 200, 300)]
    workload(advised, *((where, 10) for where in wheres))
    found = advice.advise(advised, "items_v", workload="workload", budget_mb=0.7)
    assert [each.filter["kind"] for each in found if each.filter] == [{"eq": 3}]
    assert found[0].searches == 1


def test_the_budget_is_kept(advised: Connection) -> None:
    workload(advised, *(({"kind": kind}, 10) for kind in range(5)))
    one = advice.advise(advised, "items_v", workload="workload")[0].bytes
    found = advice.advise(
        advised, "items_v", workload="workload", budget_mb=2.5 * one / 2**20
    )
    assert len(found) == 2
    assert advice.advise(advised, "items_v", workload="workload", budget_mb=0) == []
    for most in (1e308, float("inf")):
        found = advice.advise(advised, "items_v", workload="workload", budget_mb=most)
        assert len(found) >= 2


def test_without_a_budget_it_is_the_size_of_a_full_index(advised: Connection) -> None:
    pairs = itertools.combinations(range(5), 2)
    workload(advised, *(({"kind": {"in": list(pair)}}, 10) for pair in pairs))
    (full,) = fetch_one(advised, "SELECT pg_relation_size('items_v_all')")
    sizes = {
        budget_mb: sum(
            each.bytes
            for each in advice.advise(
                advised, "items_v", workload="workload", budget_mb=budget_mb
            )
        )
        for budget_mb in (None, full / 2**20, 1000)
    }
    assert 0 < sizes[None] == sizes[full / 2**20] <= full < sizes[1000]


def test_filters_that_the_table_no_longer_has(recording: Connection) -> None:
    (number,) = recording.execute(
        "SELECT id FROM pgembed.embedding WHERE name = 'items_v'"
    ).fetchone() or (0,)
    for where in ({"gone": 1}, {"kind": "x"}, {"kind": 4}):
        recording.execute(
            "SELECT pgembed._record_filter(%s::int, %s)", [number, json.dumps(where)]
        )
    found = advice.advise(recording, "items_v")
    assert [each.filter for each in found] == [{"kind": {"eq": 4}}]


def test_apply_use_and_drop(advised: Connection) -> None:
    """From the advice to searches through the index, and back."""
    workload(advised, ({"kind": 1}, 50), ({"kind": 2}, 20))
    found = advice.advise(advised, "items_v", workload="workload")
    for each in found:
        advice.apply(advised, each)
        advice.apply(advised, each)
    again = advice.advise(advised, "items_v", workload="workload")
    assert [each.index_name for each in again] == [each.index_name for each in found]
    assert all(each.present for each in again)
    report = explain(
        advised, "items", vectors()[3], filter={"kind": 1, "n": {"gte": 0}}
    )
    assert report["index"] == found[0].index_name
    assert not report["fallback"]
    advised.execute("SELECT pg_stat_force_next_flush()")
    known = advice.advised_indexes(advised, "items_v", workload="workload")
    by_filter = {json.dumps(each.filter): each for each in known}
    assert by_filter['{"kind": {"eq": 1}}'].searches == 50
    assert by_filter['{"kind": {"eq": 1}}'].scans > 0
    assert all(each.valid and each.bytes > 0 for each in known)
    recall, ms = advice.measure(advised, "items_v", '[{"kind": 1}, {"kind": 2}]')
    assert recall >= 0.95
    assert ms > 0

    workload(advised, ({"kind": 2}, 20))
    (dropped,) = advice.drop_unused(advised, "items_v", workload="workload")
    assert dropped.filter == {"kind": {"eq": 1}}
    workload(advised)
    with pytest.raises(EmbeddingError, match="no filters are recorded"):
        advice.drop_unused(advised, "items_v", workload="workload")
    workload(advised, ({"n": 1}, 1))
    assert len(advice.drop_unused(advised, "items_v", workload="workload")) == 1
    assert advice.advised_indexes(advised, "items_v") == []


def test_the_index_for_a_range_is_found_without_the_planner(
    advised: Connection,
) -> None:
    """Between is two bounds."""
    between: dict[str, object] = {"n": {"between": [0, 1199]}}
    workload(advised, (between, 50))
    (found,) = advice.advise(advised, "items_v", workload="workload")
    advice.apply(advised, found)
    for where in (between, {"n": {"lte": 1199, "gte": 0}}):
        report = explain(advised, "items", vectors()[1], filter=where)
        assert (report["index"], report["estimated_rows"]) == (found.index_name, 1200)
    advised.execute(unsafe(f"DROP INDEX {found.index_name}"))


def test_the_index_for_a_filter_is_found_without_the_planner(
    advised: Connection,
) -> None:
    """However the filter is written; and a name alone is not believed."""
    workload(advised, ({"kind": 1}, 50))
    (found,) = advice.advise(advised, "items_v", workload="workload")
    advice.apply(advised, found)
    query = (
        "SELECT i.rows, i.passing FROM pgembed.embedding AS e "
        "CROSS JOIN LATERAL pgembed._advised_index(e, %s) AS i "
        "WHERE e.name = 'items_v'"
    )
    for where in ({"kind": 1}, {"kind": {"eq": 1}}):
        assert advised.execute(query, [json.dumps(where)]).fetchall() == [(1200, 1200)]
        report = explain(advised, "items", vectors()[1], filter=where)
        assert (report["index"], report["estimated_rows"]) == (found.index_name, 1200)
        assert report["rows"] == 10
    narrower = {"n": {"gte": 3000}, "kind": 1}
    assert advised.execute(query, [json.dumps(narrower)]).fetchall() == [(1200, None)]
    report = explain(advised, "items", vectors()[1], filter=narrower)
    assert report["index"] == found.index_name
    assert 400 < report["estimated_rows"] < 800
    other = json.dumps({"kind": 2})
    assert advised.execute(query, [other]).fetchall() == [(None, None)]
    advised.execute(unsafe(f"DROP INDEX {found.index_name}"))
    advised.execute(unsafe(f"CREATE INDEX {found.index_name} ON items (n)"))
    same = json.dumps({"kind": 1})
    assert advised.execute(query, [same]).fetchall() == [(None, None)]
    advised.execute(unsafe(f"DROP INDEX {found.index_name}"))


def with_few_links(found: advice.Advice) -> advice.Advice:
    """Return advice on an index that misses rows, as one of vectors that repeat may."""
    statement = found.statement.replace(
        " WHERE ", " WITH (m = 2, ef_construction = 4) WHERE ", 1
    )
    assert statement != found.statement
    return dataclasses.replace(found, statement=statement)


def test_an_index_that_misses_rows_is_dropped_again(advised: Connection) -> None:
    """By searches for vectors of the table under the filters of the workload."""
    workload(advised, ({"kind": 1, "n": {"gte": 0}}, 50), ({"kind": 1}, 10))
    (found,) = advice.advise(advised, "items_v", workload="workload")
    recall = advice.apply(advised, with_few_links(found), workload="workload")
    assert recall is not None
    assert recall < advice.LEAST_RECALL
    assert advice.advised_indexes(advised, "items_v") == []
    advised.execute(unsafe(with_few_links(found).statement))
    assert advice.apply(advised, found) == pytest.approx(recall, abs=0.3)
    assert advice.apply(advised, found, workload="workload") is None
    assert advice.apply(advised, with_few_links(found), workload="workload") is None
    assert [each.valid for each in advice.advised_indexes(advised, "items_v")] == [True]
    advised.execute(unsafe(f"DROP INDEX {found.index_name}"))


def test_the_vectors_of_a_workload_are_searched_for(advised: Connection) -> None:
    workload(advised, ({"kind": 1}, 3), ({"kind": 2}, 3))
    with advised.transaction(force_rollback=True):
        advised.execute(
            'ALTER TABLE workload RENAME TO "50% off"; '
            'ALTER TABLE "50% off" ADD embedding vector(16)'
        )
        where, name = '[{"kind": 1}]', '"50% off"'
        assert advice.measure(advised, "items_v", where)[1] > 0
        none = (1.0, 0.0)
        assert advice.measure(advised, "items_v", where, workload=name) == none
        advised.execute(
            'UPDATE "50% off" SET embedding = array_fill(1, ARRAY[16])::vector '
            "WHERE filter @> '{\"kind\": 2}'"
        )
        assert advice.measure(advised, "items_v", where, workload=name) == none
        where = '{"kind": 2.0}'
        assert advice.measure(advised, "items_v", where, workload=name)[1] > 0


@pytest.fixture
def covered(advised: Connection) -> Iterator[Connection]:
    """Rows whose columns can, or cannot, lie in an index beside the vectors."""
    count = 30_000
    columns = {
        "kind": ("int", [i % 40 for i in range(count)]),
        "n": ("int", range(count)),
        "price": ("numeric(8,2)", [i % 997 for i in range(count)]),
        "label": ("text", [str(i % 40) for i in range(count)]),
        "code": ("varchar(8)", [str(i % 40) for i in range(count)]),
    }
    drawn = np.random.default_rng(1).standard_normal((count, 32), dtype=np.float32)
    create_items(advised, "wares", drawn, columns=columns)
    advised.execute("CREATE INDEX ON wares (kind); CREATE INDEX ON wares (n)")
    advised.execute("VACUUM ANALYZE wares")
    adopt(advised, "wares", distance="l2", name="wares_v")
    advised.execute("RESET pgembed.cost_dimension")
    yield advised
    advised.execute("SELECT pgembed.drop_embedding('wares_v'); DROP TABLE wares")
    advised.execute("SET pgembed.cost_dimension = 1")


def test_what_any_search_costs_counts_in_the_prediction(covered: Connection) -> None:
    workload(covered, ({"kind": 1, "price": {"lt": 100}}, 40))
    predicted = []
    for overhead in (0, 1000, 20_000):
        covered.execute(f"SET pgembed.cost_overhead = {overhead}")
        predicted.append(advice.advise(covered, "wares_v", workload="workload"))
    covered.execute("RESET pgembed.cost_overhead")
    low, middle, high = predicted
    assert [e.statement for e in low] == [e.statement for e in high] != []
    assert low[-1].speedup > middle[-1].speedup > high[-1].speedup > 1
    assert low[-1].saved_ms == high[-1].saved_ms


def test_columns_of_changing_filters_are_covered(covered: Connection) -> None:
    wheres = [{"kind": i, "price": {"lt": 100 + i}} for i in range(40)]
    workload(covered, *((where, 1) for where in wheres))
    found = advice.advise(covered, "wares_v", workload="workload")
    assert [(each.columns, each.filter) for each in found] == [
        (["kind", "price"], None)
    ]
    assert found[0].searches == 1
    assert found[0].speedup > 1.2
    assert "(kind, price) INCLUDE (id, v)" in found[0].statement
    for _ in range(2):
        advice.apply(covered, found[0])
    covered.execute("VACUUM wares")
    (again,) = advice.advise(covered, "wares_v", workload="workload")
    assert (again.index_name, again.present) == (found[0].index_name, True)
    known = advice.advised_indexes(covered, "wares_v", workload="workload")
    assert [(each.columns, each.filter, each.searches) for each in known] == [
        (["kind", "price"], None, 40)
    ]
    assert found[0].bytes == pytest.approx(known[0].bytes, rel=0.25)
    report = explain(covered, "wares", np.ones(32), filter={"kind": 7})
    assert (report["strategy"], report["rows"]) == ("exact", 10)
    workload(covered, ({"n": 5}, 1))
    (dropped,) = advice.drop_unused(covered, "wares_v", workload="workload")
    assert dropped.columns == ["kind", "price"]


@pytest.mark.parametrize(
    ("name", "coverable"),
    [
        ("kind", True),
        ("price", True),
        ("code", True),
        ("label", False),
        ("v", False),
        ("gone", False),
        ("or", False),
    ],
)
def test_what_may_be_too_long_for_an_index_is_not_covered(
    covered: Connection, name: str, coverable: bool
) -> None:
    row = covered.execute(
        "SELECT pgembed._coverable(e, %s) FROM pgembed.embedding AS e "
        "WHERE e.name = 'wares_v'",
        [name],
    ).fetchone()
    assert row == (coverable,)


def test_an_index_of_an_interrupted_build_is_built_anew(advised: Connection) -> None:
    workload(advised, ({"kind": 0}, 5))
    (found,) = advice.advise(advised, "items_v", workload="workload")
    advice.apply(advised, found)
    advised.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
        [f"public.{found.index_name}"],
    )
    assert not advice.advised_indexes(advised, "items_v")[0].valid
    advice.apply(advised, found)
    assert advice.advised_indexes(advised, "items_v")[0].valid
    advised.execute(unsafe(f"DROP INDEX {found.index_name}"))


@contextlib.contextmanager
def building(connection: Connection, found: advice.Advice) -> Iterator[None]:
    """Let another session build the index, which waits until the block is left."""
    dsn = connection.info.dsn
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(dsn) as writer,
        psycopg.connect(dsn, autocommit=True) as builder,
    ):
        writer.execute("LOCK TABLE items IN ROW EXCLUSIVE MODE")
        build = pool.submit(builder.execute, unsafe(found.statement))
        try:
            while not advice.advised_indexes(connection, "items_v"):
                time.sleep(0.02)
            yield
        finally:
            writer.rollback()
            build.result()


def test_an_index_that_another_session_builds_is_left_alone(
    advised: Connection,
) -> None:
    workload(advised, ({"kind": 0}, 5))
    (found,) = advice.advise(advised, "items_v", workload="workload")
    advised.execute("SET lock_timeout = '5s'")
    with building(advised, found):
        with pytest.raises(EmbeddingError, match="is building an index on table"):
            advice.apply(advised, found)
        with pytest.raises(EmbeddingError, match="cannot be dropped now"):
            advice.drop_unused(advised, "items_v", workload="workload")
    assert advised.execute("SHOW lock_timeout").fetchone() == ("5s",)
    advised.execute("RESET lock_timeout")
    assert [each.valid for each in advice.advised_indexes(advised, "items_v")] == [True]
    advised.execute(unsafe(f"DROP INDEX {found.index_name}"))


def test_indexes_are_not_built_inside_transactions(advised: Connection) -> None:
    workload(advised, ({"kind": 0}, 5))
    (found,) = advice.advise(advised, "items_v", workload="workload")
    with advised.transaction(), pytest.raises(PgembedError, match="not idle"):
        advice.apply(advised, found)


def test_what_is_refused(advised: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedObject, match="no embedding 'nope'"):
        advice.advise(advised, "nope")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="budget is -1 MB"):
        advice.advise(advised, "items_v", budget_mb=-1)
    with pytest.raises(psycopg.errors.UndefinedColumn, match="no column filter"):
        advice.advise(advised, "items_v", workload="items")
