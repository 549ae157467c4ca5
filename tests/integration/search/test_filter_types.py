"""Every comparison on every type of column."""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg
import pytest

from tests.integration.search.support import Connection, passing, unsafe


@dataclasses.dataclass(frozen=True)
class Kind:
    """A column type and three of its values in order, as JSON."""

    type: str
    low: Any
    middle: Any
    high: Any
    bad: Any = "certainly not"


KINDS = [
    Kind("smallint", -3, 0, 32767),
    Kind("integer", -5, 5, 2147483647),
    Kind("bigint", -(2**60), 7, 2**60),
    Kind("numeric", -0.5, 10**30, 1e300),
    Kind("numeric(10,2)", -0.5, 19.99, 12345678.25),
    Kind("real", -1.5, 0.1, 3e38),
    Kind("double precision", -1e300, 0.1, 1e300),
    Kind("money", "-1.50", "0.00", "12345.67"),
    Kind("text", "", 'it\'s "quoted" \\ %', "zür ☃"),
    Kind("varchar(12)", "a", "b'", "c\\"),
    Kind("char(5)", "a", "b", "cc"),
    Kind("name", "a", "b", "c"),
    Kind('"char"', "a", "b", "c"),
    Kind("bytea", "\\x00", "\\x01ff", "\\xff"),
    Kind("uuid", *(f"{c}0000000-0000-0000-0000-000000000000" for c in "17f")),
    Kind("date", "-infinity", "2024-02-29", "9999-12-31"),
    Kind("time", "00:00", "12:30:00.5", "24:00"),
    Kind("timetz", "00:00+00", "12:30+00", "23:00+00"),
    Kind("timestamp", "0044-03-15 BC", "2024-02-29 12:00:00.000001", "infinity"),
    Kind(
        "timestamptz", "2024-01-01 00:00+02", "2024-01-01 00:00Z", "2024-01-01T02:00Z"
    ),
    Kind("interval", "-1 day", "1 hour", "1 month"),
    Kind("inet", "10.0.0.1", "10.0.0.2", "::1"),
    Kind("cidr", "10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8"),
    Kind("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:04", "09:00:2b:01:02:03"),
    Kind("bit(3)", "000", "010", "111"),
    Kind("bit varying(5)", "0", "01", "111"),
    Kind("oid", 1, 2, 4294967295),
    Kind("pg_lsn", "0/1", "0/2", "1/0"),
    Kind("mood", "sad", "ok", "happy"),
    Kind("temper", "sad", "ok", "happy"),
    Kind("small_price", 1, 2.5, 3),
    Kind("citext", "A", "b", "C"),
    Kind("integer[]", {"eq": [1]}, {"eq": [1, 2]}, {"eq": [2]}),
    Kind("text[]", {"eq": ["a"]}, {"eq": ['b"\\', None, "NULL"]}, {"eq": ["c,d{}"]}),
    Kind("jsonb", "a", 5, {"eq": {"a": [1, None]}}, bad=None),
    Kind("int4range", "[1,2)", "[1,5)", "[3,4)"),
    Kind("datemultirange", "{}", "{[2020-01-01,2020-02-01)}", "{[2021-01-01,)}"),
    Kind("tsvector", "a", "b c", "c d e"),
]


@pytest.fixture(scope="module")
def kinds(shared: Connection) -> Connection:
    """A table with a row for low, middle, high and NULL, and a column per kind."""
    shared.execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')")
    shared.execute("CREATE DOMAIN humour AS mood; CREATE DOMAIN temper AS humour")
    shared.execute("CREATE DOMAIN small_price AS numeric(6,2) CHECK (value < 4)")
    shared.execute("CREATE SCHEMA elsewhere")
    shared.execute("CREATE EXTENSION citext SCHEMA elsewhere")
    shared.execute("SET search_path = public, elsewhere")
    columns = ", ".join(f"c{i} {kind.type}" for i, kind in enumerate(KINDS))
    shared.execute(unsafe(f"CREATE TABLE kinds (id int PRIMARY KEY, {columns})"))
    shared.execute("INSERT INTO kinds (id) VALUES (1), (2), (3), (4)")
    for i, kind in enumerate(KINDS):
        for row, value in enumerate((kind.low, kind.middle, kind.high), 1):
            _fill(shared, f"c{i}", row, value)
    return shared


def _fill(connection: Connection, column: str, row: int, value: Any) -> None:
    plain = value["eq"] if isinstance(value, dict) else value
    connection.execute(
        unsafe(
            f"UPDATE kinds SET {column} = r.{column} "
            f"FROM jsonb_populate_record(NULL::kinds, "
            f"jsonb_build_object('{column}', %s::jsonb)) r WHERE kinds.id = %s"
        ),
        (psycopg.types.json.Json(plain), row),
    )


@pytest.fixture(params=range(len(KINDS)), ids=[k.type for k in KINDS])
def number(request: pytest.FixtureRequest) -> int:
    """Each kind's number."""
    return int(request.param)


def test_comparisons(kinds: Connection, number: int) -> None:
    kind = KINDS[number]
    middle = _plain(kind.middle)
    expected = {
        "eq": [2],
        "ne": [1, 3],
        "lt": [1],
        "lte": [1, 2],
        "gt": [3],
        "gte": [2, 3],
    }
    if kind.type == "jsonb":  # strings come before numbers, numbers before objects
        assert passing(kinds, "kinds", {f"c{number}": {"gt": 5}}) == [3]
    for operator, rows in expected.items():
        found = passing(kinds, "kinds", {f"c{number}": {operator: middle}})
        assert found == rows, operator


def test_lists(kinds: Connection, number: int) -> None:
    kind, column = KINDS[number], f"c{number}"
    low, high = _plain(kind.low), _plain(kind.high)
    for where, rows in [
        ({column: kind.low}, [1]),
        ({column: [low, high]}, [1, 3]),
        ({column: {"in": [low, None]}}, [1, 4]),
        ({column: {"not_in": [low]}}, [2, 3]),
        ({column: {"not_in": [low, None]}}, [2, 3]),
        ({"not": {column: {"in": [low, None]}}}, [2, 3]),
        ({column: {"in": []}}, []),
        ({column: {"not_in": []}}, [1, 2, 3, 4]),
        ({column: {"between": [low, _plain(kind.middle)]}}, [1, 2]),
        ({column: [low] * 20 + [high]}, [1, 3]),
    ]:
        assert passing(kinds, "kinds", where) == rows, where


def test_nulls(kinds: Connection, number: int) -> None:
    column = f"c{number}"
    for where, rows in [
        ({column: None}, [4]),
        ({column: {"eq": None}}, [4]),
        ({column: {"ne": None}}, [1, 2, 3]),
        ({column: {"is_null": True}}, [4]),
        ({column: {"is_null": False}}, [1, 2, 3]),
        ({"not": {column: None}}, [1, 2, 3]),
    ]:
        assert passing(kinds, "kinds", where) == rows, where


def test_a_value_that_does_not_cast_is_named(kinds: Connection, number: int) -> None:
    kind = KINDS[number]
    anything_goes = ("text", "varchar(12)", "char(5)", "name", '"char"', "bytea")
    if kind.type in (*anything_goes, "citext", "jsonb", "tsvector"):
        pytest.skip("every string is a value of this type")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="certainly not"):
        passing(kinds, "kinds", {f"c{number}": {"eq": kind.bad}})


def _plain(value: Any) -> Any:
    return value["eq"] if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("smallint", 32768),
        ("integer", 1.5),
        ("integer", 1e400),
        ("real", 1e39),
        ("double precision", "1e400"),
        ("date", "2023-02-29"),
        ("uuid", "1234"),
        ("mood", "SAD"),
        ("integer", True),
        ("integer", [1]),
        ("integer", {"eq": {"a": 1}}),
        ("integer[]", {"contains": {"a": 1}}),
    ],
)
def test_values_out_of_range(kinds: Connection, type_: str, value: Any) -> None:
    number = next(i for i, kind in enumerate(KINDS) if kind.type == type_)
    text = f'{{"c{number}": {_json(value)}}}'
    if value == [1]:
        assert kinds.execute(
            "SELECT condition FROM pgembed._compile_filter('kinds', %s)", (text,)
        ).fetchone()
        return
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        kinds.execute("SELECT pgembed._compile_filter('kinds', %s)", (text,))
    assert f"c{number}" in str(caught.value)
    assert caught.value.diag.message_hint


def _json(value: Any) -> str:
    import json

    return "1" + "0" * 400 if value == float("inf") else json.dumps(value)


def test_decimals_are_not_rounded_to_the_column(kinds: Connection) -> None:
    number = next(i for i, k in enumerate(KINDS) if k.type == "numeric(10,2)")
    assert passing(kinds, "kinds", {f"c{number}": {"gte": 19.991}}) == [3]
    assert passing(kinds, "kinds", {f"c{number}": 19.991}) == []


def test_the_domain_check_does_not_hold_for_filters(kinds: Connection) -> None:
    number = next(i for i, k in enumerate(KINDS) if k.type == "small_price")
    assert passing(kinds, "kinds", {f"c{number}": {"lt": 1000}}) == [1, 2, 3]


def test_case_insensitive_text_stays_so(kinds: Connection) -> None:
    number = next(i for i, k in enumerate(KINDS) if k.type == "citext")
    kinds.execute("SET search_path = pg_catalog")
    try:
        for where in ("B", ["B", "x"], {"like": "B%"}, {"contains": "B"}):
            found = passing(kinds, "public.kinds", {f"c{number}": where})
            assert found == [2], where
    finally:
        kinds.execute("SET search_path = public, elsewhere")
