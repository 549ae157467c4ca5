"""The language of filters: what passes, and what is refused with which words."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest

from tests.integration.search.support import Connection, compiled, passing, unsafe

TABLE = """
CREATE TABLE things (
    id int PRIMARY KEY, price numeric(10, 2), brand text, padded char(6), label name,
    tags text[], grid int[], meta jsonb, plain json, span int4range,
    spans int4multirange, net inet, place point, "and" int, "or" text,
    "od""d.na me" text, "ümlaut" int, gone int,
    total numeric GENERATED ALWAYS AS (price * 2) STORED, v vector(3)
);
ALTER TABLE things DROP COLUMN gone;
INSERT INTO things (id, price, brand, padded, label, tags, grid, meta, plain, span,
    spans, net, place, "and", "or", "od""d.na me", "ümlaut")
VALUES
    (1, 10.00, 'acme', 'ab', 'x_1', '{a,b}', '{{1,2},{3,4}}',
     '{"a": {"b": 5}, "t": ["x"]}', '{}', '[1,5)', '{[1,3),[7,9)}', '10.1.0.0/16',
     '(1,1)', 1, 'o', 'q', 1),
    (2, 20.50, '100%', 'abc', 'x%1', '{b,"c,d"}', '{5}', '{"a": {"b": 6}, "t": []}',
     '{}', '[5,9)', '{[3,7)}', '10.2.0.1', '(2,2)', 2, 'or', 'r', 2),
    (3, NULL, 'back\\slash "q"', NULL, 'y', '{}', NULL, '[1, null]',
     NULL, 'empty', '{}', '::1', NULL, NULL, NULL, NULL, 3),
    (4, 99.99, NULL, 'ABC', 'X_1', NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
"""


@pytest.fixture(scope="module")
def things(shared: Connection) -> Connection:
    """A table of many kinds of columns, with awkward names."""
    shared.execute(unsafe(TABLE))
    return shared


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({}, [1, 2, 3, 4]),
        ({"price": {"gte": 10, "lt": 50}}, [1, 2]),
        ({"price": {"lt": 50}, "brand": "acme"}, [1]),
        ({"total": 41}, [2]),
        ({"price": {"between": [20.5, 99.99]}}, [2, 4]),
        ({"price": {"between": [99, 20]}}, []),
        ({"and": []}, [1, 2, 3, 4]),
        ({"or": []}, []),
        ({"not": {"or": []}}, [1, 2, 3, 4]),
        ({"not": {}}, []),
        ({"and": [{"price": {"gt": 10}}, {"brand": None}]}, [4]),
        ({"or": [{"price": {"lt": 15}}, {"brand": None}]}, [1, 4]),
        ({"or": [{"id": 1}, {"and": [{"id": 2}, {"not": {"id": 2}}]}]}, [1]),
        ({"not": {"price": {"gt": 15}}}, [1]),
        ({"or": [{"id": 1}], "price": 20.5}, []),
        ({"brand": ["acme", None]}, [1, 4]),
        ({"brand": {"ne": "acme"}}, [2, 3]),
        ({"brand": {"like": "%e"}}, [1]),
        ({"brand": {"ilike": "A%"}}, [1]),
        ({"brand": {"like": "100\\%"}}, [2]),
        ({"brand": {"contains": "%"}}, [2]),
        ({"brand": {"contains": '\\slash "'}}, [3]),
        ({"brand": {"contains": ""}}, [1, 2, 3]),
        ({"padded": {"ilike": "abc%"}}, [2, 4]),
        ({"padded": "ab"}, [1]),
        ({"label": {"contains": "_"}}, [1, 4]),
        ({"label": {"like": "x_1"}}, [1, 2]),
        ({"tags": {"contains": "b"}}, [1, 2]),
        ({"tags": {"contains": ["b", "c,d"]}}, [2]),
        ({"tags": {"contains": []}}, [1, 2, 3]),
        ({"tags": {"eq": ["a", "b"]}}, [1]),
        ({"tags": [["a", "b"], []]}, [1, 3]),
        ({"tags": {"not_in": [["a", "b"], None]}}, [2, 3]),
        ({"grid": {"contains": 4}}, [1]),
        ({"grid": {"eq": [[1, 2], [3, 4]]}}, [1]),
        ({"meta": {"contains": {"a": {"b": 5}}}}, [1]),
        ({"meta": {"contains": {"t": ["x"]}}}, [1]),
        ({"meta": {"contains": [1]}}, [3]),
        ({"meta": {"eq": [1, None]}}, [3]),
        ({"meta": {"is_null": True}}, [4]),
        ({"plain": {"is_null": False}}, [1, 2]),
        ({"span": {"contains": 3}}, [1]),
        ({"span": {"contains": "[2,4)"}}, [1]),
        ({"span": {"contains": "empty"}}, [1, 2, 3]),
        ({"spans": {"contains": 3}}, [2]),
        ({"spans": {"contains": "{[1,2),[7,8)}"}}, [1]),
        ({"net": {"contains": "10.1.2.3"}}, [1]),
        ({"place": None}, [3, 4]),
        ({'"and"': 2}, [2]),
        ({'"and"': {"gt": 0}, "not": {'"or"': "or"}}, [1]),
        ({'od"d.na me': "r"}, [2]),
        ({'"od""d.na me"': "r"}, [2]),
        ({"ümlaut": [1, 3]}, [1, 3]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_what_passes(things: Connection, where: Any, rows: list[int]) -> None:
    assert passing(things, "things", where) == rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (None, "an object is expected, not null"),
        ([], r"an object is expected, not \[\]"),
        ("price < 5", "an object is expected"),
        ({"price": {}}, r"column price \(numeric\) is given no operator"),
        ({"price": {"lt": None}}, 'compared with null by "lt"'),
        ({"price": {"<": 5}}, 'no operator "<"'),
        ({"price": {"lt": 5, "LT": 5}}, 'no operator "LT"'),
        ({"price": {"lt": [5]}}, r"\[5\] is no value"),
        ({"price": {"lt": {"a": 5}}}, "is no value"),
        ({"price": {"between": 5}}, '"between" does not fit column price'),
        ({"price": {"between": [1, 2, 3]}}, '"between" does not fit'),
        ({"price": {"between": [1, None]}}, "compared with null"),
        ({"price": {"in": 5}}, '"in" of column price .* is no list'),
        ({"price": {"is_null": "yes"}}, '"is_null" does not fit'),
        ({"price": {"like": "1%"}}, '"like" does not fit column price'),
        ({"price": {"contains": 1}}, '"contains" does not work on column price'),
        ({"brand": {"like": 5}}, '"like" of column brand .* is no string'),
        ({"brand": {"like": "x\\"}}, "ends with a backslash"),
        ({"brand": {"contains": None}}, "is no string"),
        ({"tags": {"contains": None}}, '"contains" does not fit'),
        ({"tags": "a"}, 'malformed array literal: "a"'),
        ({"plain": {"eq": 1}}, r"column plain \(json\) cannot be compared"),
        ({"place": ["(1,1)"]}, "cannot be compared"),
        ({"v": {"is_null": True}}, "holds vectors"),
        ({"and": {"price": 5}}, '"and" is no list'),
        ({"or": [5]}, "an object is expected, not 5"),
        ({"not": [{"price": 5}]}, "an object is expected"),
        ({"id": list(range(10001))}, "lists 10001 values, more than 10000"),
        ({"or": [{"id": i} for i in range(1001)]}, "more than 1000 conditions"),
        ({"brand": ["x" * 1_000_001]}, "more than 1000000"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_what_is_refused(things: Connection, where: Any, message: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        compiled(things, "things", where)
    assert re.search("filter: .*" + message, str(caught.value))
    assert caught.value.diag.message_hint


def test_deep_nesting_is_refused(things: Connection) -> None:
    where: Any = {"id": 1}
    for _ in range(31):
        where = {"not": where}
    assert passing(things, "things", where) == [2, 3, 4]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="32 levels"):
        compiled(things, "things", {"not": where})


@pytest.mark.parametrize(
    "name",
    ["prize", "ctid", "xmin", "tableoid", "gone", "", "Price", "price ", '"', "x"],
)
def test_an_unknown_column_names_those_there_are(things: Connection, name: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
        compiled(things, "things", {name: 1})
    assert "id, price, brand" in str(caught.value.diag.message_hint)


def test_long_lists_are_one_argument(things: Connection) -> None:
    condition, arguments = compiled(things, "things", {"id": list(range(10000))})
    assert len(condition) < 200
    assert len(arguments) == 1
    assert passing(things, "things", {"id": list(range(10000))}) == [1, 2, 3, 4]


def test_the_planner_sees_constants(things: Connection) -> None:
    """Selectivity and index conditions come from the values, for every way to cast."""
    things.execute("CREATE TABLE big (id int, day date, kind text, n numeric)")
    things.execute(
        "INSERT INTO big SELECT i, date '2000-01-01' + i, i % 10, i "
        "FROM generate_series(1, 5000) i"
    )
    things.execute("CREATE INDEX ON big (day); ANALYZE big")
    where = {"day": {"lt": "2000-01-20"}, "kind": ["1", "2"], "n": {"gt": 3}}
    condition, arguments = compiled(things, "big", where)
    with psycopg.RawCursor(things) as cursor:
        cursor.execute(
            unsafe(f"EXPLAIN SELECT FROM big WHERE {condition}"), [arguments]
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Index Cond: (day < '2000-01-20'::date)" in plan
    assert "kind = ANY ('{1,2}'::text[])" in plan
    assert "n > '3'::numeric" in plan


def test_settings_decide_how_dates_are_read_and_the_table_does_not(
    things: Connection,
) -> None:
    things.execute("CREATE TABLE days (id int, t timestamptz)")
    things.execute("INSERT INTO days VALUES (1, '2024-03-04 00:00+00')")
    with things.transaction():
        things.execute("SET LOCAL datestyle = 'ISO, DMY'; SET LOCAL timezone = 'UTC'")
        assert passing(things, "days", {"t": "04/03/2024"}) == [1]
    with things.transaction():
        things.execute("SET LOCAL timezone = 'Asia/Tokyo'")
        assert passing(things, "days", {"t": "2024-03-04 09:00"}) == [1]


@pytest.mark.parametrize(
    "negated", [{"is_null": False}, {"ne": None}, {"not_in": [None]}]
)
def test_a_row_that_is_partly_null_is_not_null(
    shared: Connection, negated: dict[str, Any]
) -> None:
    """By IS NULL and by IS NOT NULL it would be neither."""
    shared.execute(
        """
        CREATE TYPE address AS (street text, town text);
        CREATE TABLE homes (id int PRIMARY KEY, home address);
        INSERT INTO homes VALUES (1, ('a', 'b')), (2, ('a', NULL)), (3, NULL);
        """
    )
    try:
        assert passing(shared, "homes", {"home": negated}) == [1, 2]
        assert passing(shared, "homes", {"home": None}) == [3]
    finally:
        shared.execute("DROP TABLE homes; DROP TYPE address")
