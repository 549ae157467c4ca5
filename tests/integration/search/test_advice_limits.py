"""What advice takes in and what it leaves out; what it may and may not drop."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgembed.search import advice
from tests.integration.search.support import (
    Connection,
    adopt,
    create_items,
    explain,
    search,
    unsafe,
)
from tests.integration.search.workloads import ROWS, recorded, vectors, workload


def sampled(connection: Connection, count: int | None) -> dict[str, tuple[float, ...]]:
    """Return the filters of the workload, how often seen and standing for how many."""
    rows = connection.execute(
        "SELECT w.filter, w.searches, w.weight FROM pgembed.embedding AS e "
        "CROSS JOIN LATERAL pgembed._workload_filters(e, 'workload', %s) AS w "
        "WHERE e.name = 'items_v'",
        [count],
    )
    return {json.dumps(where): (seen, weight) for where, seen, weight in rows}


def test_a_sample_stands_for_the_whole_workload(advised: Connection) -> None:
    one: tuple[dict[str, Any], int] = ({"kind": 1}, 300)
    workload(advised, one, *(({"n": i}, 1) for i in range(600)))
    assert len(sampled(advised, None)) == 601
    assert sampled(advised, 601) == sampled(advised, None)
    found = sampled(advised, 90)
    assert found == sampled(advised, 90)
    assert sum(weight for _, weight in found.values()) == pytest.approx(900)
    assert found['{"kind": 1}'] == (300, 300)
    assert {pair for where, pair in found.items() if where != '{"kind": 1}'} == {
        (1, 10)
    }


def test_many_filters_that_differ_hide_no_others(advised: Connection) -> None:
    """300 searches by one column, and 900 by another one: none asks for the same."""
    wheres: list[tuple[dict[str, Any], int]]
    wheres = [({"id": {"lt": 3000 + i}}, 1) for i in range(300)]
    wheres += [({"n": {"gte": i}, "kind": i % 5}, 1) for i in range(900)]
    workload(advised, *wheres)
    found = advice.advise(advised, "items_v", workload="workload", budget_mb=20)
    served = [each for each in found if each.filter and "kind" in each.filter]
    assert sum(each.searches for each in served) == pytest.approx(0.75, abs=0.1)
    advised.execute(
        "CREATE INDEX pgembed_wide ON items USING hnsw (v vector_l2_ops) WHERE kind = 4"
    )
    (number,) = advised.execute(
        "SELECT id FROM pgembed.embedding WHERE name = 'items_v'"
    ).fetchone() or (0,)
    name = f"pgembed_{number}_by_hand"
    advised.execute(unsafe(f"ALTER INDEX pgembed_wide RENAME TO {name}"))
    try:
        advised.execute(
            unsafe(f'COMMENT ON INDEX {name} IS \'pgembed: {{"kind": {{"eq": 4}}}}\'')
        )
        (known,) = advice.advised_indexes(advised, "items_v", workload="workload")
        assert known.searches == 180
    finally:
        advised.execute(unsafe(f"DROP INDEX {name}"))


def test_what_was_seen_once_counts_once(advised: Connection) -> None:
    """A filter of the sample stands for others, but an index for it serves only it."""
    workload(advised, *(({"id": {"ne": i}, "n": {"ne": i}}, 1) for i in range(1000)))
    found = advice.advise(advised, "items_v", workload="workload", budget_mb=20)
    partial = [each.searches for each in found if each.filter]
    assert all(share == pytest.approx(1 / 1000) for share in partial)


def test_an_index_made_by_hand_is_not_called_unused(advised: Connection) -> None:
    """Without its comment nobody knows what it serves; with it, the filter is exact."""
    advised.execute("ALTER TABLE items ADD price numeric DEFAULT 0.5")
    where = '{"price": {"lt": 12345678901234567890.123456789}}'
    advised.execute(
        "DROP TABLE IF EXISTS workload; CREATE TABLE workload (filter jsonb)"
    )
    advised.execute(
        "INSERT INTO workload SELECT %s FROM generate_series(1, 9)", [where]
    )
    advised.execute("ANALYZE items")
    (found,) = advice.advise(advised, "items_v", workload="workload", budget_mb=20)
    advised.execute(unsafe(found.statement))
    try:
        (known,) = advice.advised_indexes(advised, "items_v", workload="workload")
        assert (known.filter, known.searches) == (None, None)
        assert advice.drop_unused(advised, "items_v", workload="workload") == []
        advised.execute(unsafe(found.comment))
        (known,) = advice.advised_indexes(advised, "items_v", workload="workload")
        assert known.searches == 9
        advised.execute(unsafe(f"COMMENT ON INDEX {found.index_name} IS NULL"))
        advice.apply(advised, found)
        (known,) = advice.advised_indexes(advised, "items_v", workload="workload")
        assert known.searches == 9
    finally:
        advised.execute(unsafe(f"DROP INDEX IF EXISTS {found.index_name}"))
        advised.execute("ALTER TABLE items DROP price")


def test_what_is_measured_is_what_the_table_understands(advised: Connection) -> None:
    """In numbers with all their digits, and without columns that are gone."""
    advised.execute(
        "DROP TABLE IF EXISTS workload; CREATE TABLE workload (filter jsonb)"
    )
    advised.execute(
        "INSERT INTO workload VALUES ('{\"gone\": 1}'), ('[1]'), ('5'), (NULL), "
        '(\'{"and": [1]}\'), (\'{"n": {"in": 5}}\'), '
        '(\'{"n": {"lt": 3000.00000000000000000000}}\')'
    )
    assert advice.advise(advised, "items_v", workload="workload") is not None
    filters = advice.sample_filters(advised, "items_v", workload="workload")
    assert filters == '[{"n": {"lt": 3000.00000000000000000000}}]'
    assert advice.measure(advised, "items_v", filters)[0] >= 0.9
    workload(advised)
    assert advice.sample_filters(advised, "items_v", workload="workload") == "{}"


def test_what_is_no_filter_breaks_nothing(recording: Connection) -> None:
    """Whoever may search may call _record_filter, with anything."""
    (number,) = recording.execute(
        "SELECT id FROM pgembed.embedding WHERE name = 'items_v'"
    ).fetchone() or (0,)
    for given in ("[1]", "5", "null", '"x"'):
        recording.execute("SELECT pgembed._record_filter(%s::int, %s)", [number, given])
    assert recorded(recording) == []
    broken = ['{"and": [1]}', '{"n": {"in": 5}}', '{"and": {"n": 1}}', '{"n": {}}']
    broken += ['{"n": {"between": 5}}', '{"or": 1}']
    broken += ['{"and":[' * 850 + '{"kind": 1}' + "]}" * 850]
    for given in broken + ['{"kind": 1}'] * 9:
        recording.execute("SELECT pgembed._record_filter(%s::int, %s)", [number, given])
    recording.execute(
        "INSERT INTO pgembed.recorded_filter (embedding, filter) VALUES (%s, '[1]')",
        [number],
    )
    found = advice.advise(recording, "items_v")
    assert [each.filter for each in found] == [{"kind": {"eq": 1}}]
    advice.apply(recording, found[0])
    (known,) = advice.advised_indexes(recording, "items_v")
    assert known.searches == 9
    assert advice.drop_unused(recording, "items_v") == []
    recording.execute(unsafe(f"DROP INDEX {found[0].index_name}"))


@pytest.mark.parametrize(
    "given",
    ["{}", '{"and": []}', '{"not": {"or": []}}', '{"n": {"not_in": []}}'],
)
def test_a_filter_that_all_rows_pass_does_not_stop_advice(
    recording: Connection, given: str
) -> None:
    for where in ({"kind": 1}, json.loads(given)):
        for _ in range(5):
            assert search(recording, "items", vectors()[0], filter=where)
    assert len(recorded(recording)) == 10
    found = advice.advise(recording, "items_v")
    assert [each.filter for each in found] == [{"kind": {"eq": 1}}]
    assert {"kind": 1} in json.loads(advice.sample_filters(recording, "items_v"))


def advised_filters(connection: Connection, name: str, *wheres: str) -> list[Any]:
    """Return the filters for which partial indexes are advised."""
    workload(connection, *((json.loads(where), 20) for where in wheres))
    found = advice.advise(connection, name, workload="workload", budget_mb=100)
    return [each.filter for each in found if each.filter]


@pytest.mark.parametrize(
    ("kind", "value", "lasting"),
    [
        ("timestamptz", '{"lt": "now"}', False),
        ("timestamptz", '{"lt": "2100-01-01"}', True),
        ("timestamp", '{"lt": "Tomorrow 10:00"}', False),
        ("date", '{"in": ["2020-01-01", "today"]}', False),
        ("date", '{"in": ["2020-01-01"]}', True),
        ("tstzrange", '{"contains": "[2020-01-01,now]"}', False),
        ("text", '{"ne": "now"}', True),
        ("text", '{"not_in": ["now", "today"]}', True),
        ("mood", '"now"', True),
    ],
)
def test_values_that_mean_something_else_tomorrow(
    connection: Connection, kind: str, value: str, *, lasting: bool
) -> None:
    connection.execute("CREATE TYPE mood AS ENUM ('now', 'then')")
    connection.execute(unsafe(f"CREATE TABLE typed (id int PRIMARY KEY, at {kind})"))
    row = connection.execute(
        "SELECT pgembed._indexable_filter('typed', %s)",
        [f'{{"and": [{{"at": {value}}}], "id": 1}}'],
    ).fetchone()
    assert row == (lasting,)


def test_advice_does_not_freeze_the_time(advised: Connection) -> None:
    times = ["2100-01-01" if i % 2 else "2020-01-01" for i in range(ROWS)]
    columns: dict[str, tuple[str, list[Any]]] = {
        "at": ("timestamptz", times),
        "kind": ("int", [0, 1] * (ROWS // 2)),
    }
    create_items(advised, "events", vectors(), columns=columns)
    name = adopt(advised, "events", distance="l2")
    fixed = '{"at": {"lt": "2030-01-01"}}'
    assert advised_filters(advised, name, fixed) == [json.loads(fixed)]
    assert advised_filters(advised, name, '{"at": {"lt": "now"}}') == []
    both = '{"at": {"lt": "now"}, "kind": 0}'
    assert advised_filters(advised, name, both) == [{"kind": {"eq": 0}}]


def test_an_advised_index_has_the_parameters_of_the_full_one(
    advised: Connection,
) -> None:
    """PostgreSQL would read the full one, if that has fewer links, all the same."""
    with advised.transaction(force_rollback=True):
        advised.execute(
            "DROP INDEX items_v_all; CREATE INDEX items_few ON items "
            "USING hnsw (v vector_l2_ops) WITH (m = 8, ef_construction = 40)"
        )
        workload(advised, ({"kind": 1}, 9))
        (found,) = advice.advise(advised, "items_v", workload="workload")
        assert " WITH (m=8, ef_construction=40) WHERE " in found.statement
        advised.execute(unsafe(found.statement.replace(" CONCURRENTLY", "")))
        advised.execute("ANALYZE items")
        report = explain(advised, "items", vectors()[0], filter={"kind": 1})
        assert report["index"] == found.index_name


def test_an_advised_index_serves_only_what_it_was_made_for(advised: Connection) -> None:
    """A time without a zone is another one, where the zone is another one."""
    with advised.transaction(force_rollback=True):
        advised.execute("SET LOCAL timezone = 'UTC'")
        advised.execute("ALTER TABLE items ADD at timestamptz")
        advised.execute(
            "UPDATE items SET at = '2024-12-01'::timestamptz + id * '1h'::interval"
        )
        where = {"at": {"gte": "2025-01-01"}}
        workload(advised, (where, 9))
        (found,) = advice.advise(advised, "items_v", workload="workload")
        advised.execute(unsafe(found.statement.replace(" CONCURRENTLY", "")))
        advised.execute("ANALYZE items")
        query = vectors()[0]
        report = explain(advised, "items", query, filter=where, mode="index")
        assert report["index"] == found.index_name
        advised.execute("SET LOCAL timezone = 'Asia/Tokyo'")
        other = explain(advised, "items", query, filter=where, mode="index")
        assert other["index"] == "items_v_all"
        efforts = [int(each["settings"]["hnsw.ef_search"]) for each in (report, other)]
        assert efforts[0] < efforts[1]


def test_vectors_that_no_index_can_hold(connection: Connection) -> None:
    connection.execute("SET pgembed.cost_dimension = 1")
    connection.execute(
        "CREATE TABLE plain (id int PRIMARY KEY, kind int, wide vector(2001), "
        "half halfvec(2001), free vector)"
    )
    connection.execute(
        "INSERT INTO plain SELECT i, i % 3, array_fill(i, ARRAY[2001])::vector, "
        "array_fill(i, ARRAY[2001])::halfvec, array_fill(i, ARRAY[3])::vector "
        "FROM generate_series(1, 2000) AS i"
    )
    connection.execute("ANALYZE plain")
    for column, there in [("wide", False), ("half", True), ("free", False)]:
        name = adopt(connection, "plain", column)
        found = advised_filters(connection, name, '{"kind": 1}')
        assert bool(found) == there, column


def test_numbers_that_are_text_are_not_in_order(advised: Connection) -> None:
    """Of codes "9" comes after "10": the index for what is below 10 lacks it."""
    columns = {"code": ("text", [str(i % 12) for i in range(ROWS)])}
    create_items(advised, "parts", vectors(), columns=columns)
    name = adopt(advised, "parts", distance="l2")
    below: list[dict[str, Any]] = [{"code": {"lt": 10}}, {"code": {"lt": 9}}]
    workload(advised, *((where, 9) for where in below))
    advised_ones = advice.advise(advised, name, workload="workload", budget_mb=20)
    shares = {json.dumps(each.filter): each.searches for each in advised_ones}
    assert shares == {json.dumps(where): 0.5 for where in below}
    for each in advised_ones:
        advice.apply(advised, each, workload="workload")
    known = advice.advised_indexes(advised, name, workload="workload")
    assert [each.searches for each in known] == [9, 9]


def test_advice_on_a_domain_over_an_enum(connection: Connection) -> None:
    connection.execute("SET pgembed.cost_dimension = 1")
    connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    connection.execute("CREATE DOMAIN temper AS mood")
    columns = {"temper": ("temper", ["sad", "ok"] * (ROWS // 2))}
    create_items(connection, "people", vectors(), columns=columns)
    name = adopt(connection, "people", distance="l2")
    where = {"temper": {"eq": "sad"}}
    workload(connection, (where, 20))
    (found,) = advice.advise(connection, name, workload="workload")
    assert found.filter == where
    assert advice.apply(connection, found, workload="workload") is None
    report = explain(connection, "people", vectors()[0], filter=where)
    assert (report["index"], report["rows"]) == (found.index_name, 10)


def test_vectors_of_any_length_are_not_covered(connection: Connection) -> None:
    """A longer one than those of today could not be inserted."""
    connection.execute("SET pgembed.cost_dimension = 0.1")
    connection.execute(
        "CREATE TABLE plain (id int PRIMARY KEY, kind int, fixed vector(3), "
        "free vector)"
    )
    connection.execute(
        "INSERT INTO plain SELECT i, i % 50, ARRAY[i, 1, 0]::vector, "
        "ARRAY[i, 1, 0]::vector FROM generate_series(1, 9000) AS i"
    )
    connection.execute("ANALYZE plain")
    workload(connection, *(({"kind": {"lt": i}}, 1) for i in range(1, 50)))
    for column, columns in [("fixed", [["kind"]]), ("free", [])]:
        name = adopt(connection, "plain", column)
        found = advice.advise(connection, name, workload="workload", budget_mb=100)
        assert [each.columns for each in found if each.columns] == columns


def test_columns_that_no_index_can_hold(connection: Connection) -> None:
    if connection.info.server_version < 180000:
        pytest.skip("virtual generated columns came with PostgreSQL 18")
    connection.execute("SET pgembed.cost_dimension = 1")
    connection.execute(
        "CREATE TABLE items (id int PRIMARY KEY, v vector(3), price int, "
        "kept int GENERATED ALWAYS AS (price % 3) STORED, "
        "made int GENERATED ALWAYS AS (price % 3) VIRTUAL)"
    )
    connection.execute(
        "INSERT INTO items (id, v, price) SELECT i, ARRAY[random(), random(), i], i "
        "FROM generate_series(1, 6000) AS i"
    )
    connection.execute("ANALYZE items")
    name = adopt(connection, "items")
    for column, there in [("kept", True), ("made", False), ('\\"made\\"', False)]:
        workload(
            connection, *((json.loads(f'{{"{column}": {i}}}'), 9) for i in (0, 1, 2))
        )
        found = advice.advise(connection, name, workload="workload")
        assert bool(found) == there, column
        for each in found:
            connection.execute(unsafe(each.statement))


def test_the_index_that_is_read_is_told(advised: Connection) -> None:
    """A name like an advised index's says nothing: the planner looks at predicates."""
    workload(advised, ({"kind": 1}, 50))
    (found,) = advice.advise(advised, "items_v", workload="workload")
    other = found.statement.replace("'1'", "'2'")
    assert other != found.statement
    advised.execute(unsafe(other))
    try:
        report = explain(
            advised, "items", vectors()[1], filter={"kind": 1}, mode="index"
        )
        assert report["index"] == "items_v_all"
        assert report["rows"] == 10
    finally:
        advised.execute(unsafe(f"DROP INDEX {found.index_name}"))
