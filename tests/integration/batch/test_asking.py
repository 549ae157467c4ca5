"""Filters that refer to the row that asks, against plain SQL: types, other faces."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

import pgembed
from pgembed.errors import FilterError
from pgembed.postgres.connection import fetch_all
from tests.integration.search.support import Connection, adopt, unsafe

_ROWS = 60
_COLUMNS = {
    "n": "int",
    "big": "bigint",
    "price": "numeric",
    "ratio": "float8",
    "day": "date",
    "at": "timestamptz",
    "tag": "text",
    "code": "char(3)",
    "tags": "text[]",
    "numbers": "int[]",
    "flag": "boolean",
    "id2": "uuid",
    "mood": "mood",
    "span": "int4range",
    "meta": "jsonb",
    "Odd \"name'{}": "short_text",
}
_TAGS = ("a", "b'", 'c"', "{d}", "e\\f", "null", "x,y")
_ODD = "Odd \"name'{}"


def _values(chance: random.Random) -> list[Any]:
    """Return the values of a row; each may be missing."""
    pick = chance.choice
    n = chance.randint(-2, 3)
    tags = [pick(_TAGS) for _ in range(chance.randint(0, 3))]
    values = [
        n,
        2**60 + n,
        pick(["0.1", "1.10", "1.1", "12345678901234567890.123", "NaN"]),
        pick(["0.1", "-Infinity", "1e300", "2"]),
        pick(["2020-01-01", "2020-02-29", "infinity"]),
        pick(["2020-01-01 00:00+00", "2020-01-01 01:00+01", "2021-06-01 12:30:00.5Z"]),
        pick(_TAGS),
        pick(["x", "xy", "xyz"]),
        tags,
        [chance.randint(0, 2) for _ in range(chance.randint(0, 3))],
        pick([True, False]),
        f"00000000-0000-0000-0000-00000000000{abs(n)}",
        pick(["sad", "ok", "glad"]),
        f"[{n},{n + chance.randint(1, 4)})",
        json.dumps(
            {"lang": pick(_TAGS), "year": n, "more": pick([None, {"asking": "tag"}])}
        ),
        pick(_TAGS),
    ]
    return [None if chance.random() < 0.15 else value for value in values]


@pytest.fixture(scope="module")
def kinds(shared: Connection) -> Iterator[str]:
    """Create kinds (id, v, a column of each type); return its embedding's name."""
    names = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in _COLUMNS]
    definitions = ", ".join(map(" ".join, zip(names, _COLUMNS.values(), strict=True)))
    shared.execute(
        unsafe(
            "CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad'); "
            "CREATE DOMAIN short_text AS text; "
            f"CREATE TABLE kinds (id int PRIMARY KEY, v vector(3), {definitions})"
        )
    )
    chance = random.Random(0)
    with shared.cursor() as cursor:
        cursor.executemany(
            unsafe(
                f"INSERT INTO kinds VALUES (%s, %s::vector{', %s' * len(_COLUMNS)})"
            ),
            [
                (i, str([chance.randint(1, 5) for _ in range(3)]), *_values(chance))
                for i in range(_ROWS)
            ],
        )
    yield adopt(shared, "kinds")
    shared.execute("SELECT pgembed.drop_embedding('kinds_v')")
    shared.execute("DROP TABLE kinds; DROP TYPE mood; DROP DOMAIN short_text")


_SAME = [
    ({name: {"asking": name}}, f"t.{name} = q.{name}")
    for name in _COLUMNS
    if name != _ODD
]
_LATER = [
    ({name: {"asking": {"gt": name}}}, f"t.{name} > q.{name}")
    for name in _COLUMNS
    if name not in ("flag", "meta", _ODD)
]
_FILTERS: list[tuple[dict[str, Any], str]] = [
    *_SAME,
    *_LATER,
    (
        {_ODD: {"asking": _ODD}},
        't."Odd ""name\'{}" = q."Odd ""name\'{}"',
    ),
    ({"tag": {"asking": _ODD}}, 't.tag = q."Odd ""name\'{}"'),
    ({"tags": {"asking": {"contains": "tags"}}}, "t.tags @> q.tags"),
    ({"tags": {"asking": {"contains": "tag"}}}, "t.tags @> ARRAY[q.tag]"),
    ({"numbers": {"asking": {"contains": "n"}}}, "t.numbers @> ARRAY[q.n]"),
    ({"tag": {"asking": {"in": "tags"}}}, "t.tag = ANY (q.tags)"),
    ({"tag": {"asking": {"not_in": "tags"}}}, "t.tag <> ALL (q.tags)"),
    ({"not": {"tag": {"asking": {"in": "tags"}}}}, "NOT t.tag = ANY (q.tags)"),
    ({"n": {"asking": {"in": "numbers"}}}, "t.n = ANY (q.numbers)"),
    ({"span": {"asking": {"contains": "n"}}}, "t.span @> q.n"),
    ({"span": {"asking": {"contains": "span"}}}, "t.span @> q.span"),
    ({"big": {"asking": {"gt": "n"}}}, "t.big > q.n"),
    ({"price": {"asking": {"lte": "n"}}}, "t.price <= q.n"),
    ({"at": {"asking": {"gte": "day"}}}, "t.at >= q.day"),
    ({"n": {"asking": {"ne": "n"}, "gt": 0}}, "t.n <> q.n AND t.n > 0"),
    ({"meta": {"asking": {"contains": "meta"}}}, "t.meta @> q.meta"),
    ({"meta.lang": {"asking": "tag"}}, "t.meta ->> 'lang' = q.tag"),
    ({"tag": {"asking": "meta.lang"}}, "t.tag = q.meta ->> 'lang'"),
    (
        {"meta.year": {"asking": {"gt": "meta.year"}}},
        "(t.meta ->> 'year')::int > (q.meta ->> 'year')::int",
    ),
    (
        {"meta.more": {"asking": "meta.more"}},
        "nullif(t.meta -> 'more', 'null') = nullif(q.meta -> 'more', 'null')",
    ),
    # A document that looks like a reference is a document all the same.
    ({"meta.more": {"eq": {"asking": "tag"}}}, "t.meta -> 'more' <> 'null'"),
    ({"n": {"asking": {"between": ["n", "n"]}}}, "t.n = q.n"),
]


@pytest.mark.parametrize(
    ("given", "in_sql"), _FILTERS, ids=[json.dumps(f) for f, _ in _FILTERS]
)
def test_a_filter_means_what_sql_means(
    shared: Connection, kinds: str, given: dict[str, Any], in_sql: str
) -> None:
    expected = fetch_all(
        shared,
        unsafe(
            "SELECT q.id, t.id FROM kinds AS q, kinds AS t "
            f"WHERE q.id <> t.id AND ({in_sql}) ORDER BY 1, 2"
        ),
    )
    result = pgembed.knn_join(shared, kinds, filter=given, k=_ROWS, recall=1.0)
    assert len(result) == _ROWS
    found = [
        (key, other)
        for i, key in enumerate(result.keys.tolist())
        for other, _ in result.related[i]
    ]
    assert sorted(found) == expected
    assert 0 < len(expected) < _ROWS * (_ROWS - 1)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ('{"code": 1.1, "n": {"asking": "n"}}', {1}),
        ('{"code": 1.10, "n": {"asking": "n"}}', {2}),
        ('{"n": {"asking": "n"}, "num": 0.12345678901234567890}', {2}),
        ('{"n": {"asking": "n", "ne": 5}, "num": {"in": [0.12345678901234568]}}', {1}),
        ('{"n": {"asking": "n"}, "num": 1e400}', {3}),
    ],
)
def test_other_numbers_keep_their_digits(
    connection: Connection, given: str, found: set[int]
) -> None:
    connection.execute(
        """
        CREATE TABLE t (id int PRIMARY KEY, v vector(2), code text, n int, num numeric);
        INSERT INTO t VALUES
            (1, '[1,1]', '1.1', 1, 0.12345678901234568),
            (2, '[1,2]', '1.10', 1, 0.12345678901234567890),
            (3, '[1,3]', '', 1, 1e400)
        """
    )
    result = pgembed.knn_join(connection, adopt(connection, "t"), filter=given)
    related = result.related
    assert {related.keys[i, 0] for i in np.flatnonzero(related.counts)} == found


@pytest.mark.parametrize("digits", ["0", "-15"])
@pytest.mark.parametrize("column", ["ratio", "small", "many"])
def test_floats_are_compared_as_they_are(
    connection: Connection, digits: str, column: str
) -> None:
    """Also where the session writes fewer digits than they have."""
    connection.execute(
        """
        CREATE TABLE t (id int PRIMARY KEY, v vector(2), ratio float8, small real,
            many float8[]);
        INSERT INTO t SELECT i, ARRAY[i, 1]::vector, 0.3 + 1e-16 * (i / 2), 1.0 / 3,
            ARRAY[0.3 + 1e-16 * (i / 2)] FROM generate_series(0, 3) AS i
        """
    )
    name = adopt(connection, "t")
    wanted = [3] * 4 if column == "small" else [1] * 4
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(
            "SELECT set_config('extra_float_digits', %s, false)", [digits]
        )
        for conditions in (
            {"filter": {column: {"asking": column}}},
            {"predicate": f"{column} = {{{column}}}"},
        ):
            related = pgembed.knn_join(connection, name, **conditions).related
            assert related.counts.tolist() == wanted
        assert fetch_all(connection, "SHOW extra_float_digits") == [(digits,)]


@pytest.mark.parametrize("given", [{"n": {"asking": "n"}}, {"meta.x": {"asking": "n"}}])
def test_only_joins_have_a_row_that_asks(
    shared: Connection, kinds: str, given: dict[str, Any]
) -> None:
    message = "with a row that asks, and only joins have one"
    statement = (
        "SELECT * FROM pgembed.search(NULL::kinds, '[1,2,3]'::vector, filter => %s)"
    )
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message) as error:
        shared.execute(statement, [json.dumps(given)])
    assert "knn_join" in (error.value.diag.message_hint or "")
    with pytest.raises(FilterError, match=message):
        pgembed.search_batch(shared, kinds, [[1, 2, 3]], filters=given)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
        shared.execute(
            "SELECT * FROM pgembed.recall('kinds_v', filter => %s)", [json.dumps(given)]
        )


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"pair": {"asking": "pair"}}, [2, 2, 0, 2, 0]),
        ({"stock": {"asking": "stock"}}, [2, 0, 2, 0, 2]),
        ({"stock": {"asking": {"contains": "stock"}}}, [2, 3, 2, 0, 2]),
        ({"tag": {"asking": "pair"}}, [0, 0, 0, 0, 1]),
        # As documents they are objects.
        ({"meta": {"asking": "pair"}}, [1, 1, 0, 1, 0]),
        ({"meta": {"asking": {"contains": "stock"}}}, [0, 3, 0, 0, 0]),
    ],
)
def test_rows_and_hstore(
    connection: Connection, given: dict[str, Any], found: list[int]
) -> None:
    connection.execute(
        """
        CREATE EXTENSION hstore;
        CREATE TYPE pair AS (a int, b text);
        CREATE DOMAIN stock AS hstore;
        CREATE TABLE t (id int PRIMARY KEY, v vector(2), pair pair, stock stock,
            tag text, meta jsonb);
        INSERT INTO t VALUES
            (1, '[1,1]', '(1,"x ""y"", z")', 'a=>1, b=>"x "', '', '{}'),
            (2, '[1,2]', '(1,"x ""y"", z")', '', '(2,)', '{}'),
            (3, '[1,3]', NULL, 'a=>1, b=>"x "', '', '{"a": 1, "b": "x \\"y\\", z"}'),
            (4, '[1,4]', '(1,"x ""y"", z")', NULL, '', '[]'),
            (5, '[1,5]', '(2,)', 'a=>1, b=>"x "', '', '{}')
        """
    )
    name = adopt(connection, "t")
    related = pgembed.knn_join(connection, name, filter=given, recall=1.0).related
    assert related.counts.tolist() == found


def test_many_references(shared: Connection, kinds: str) -> None:
    """More than a function of PostgreSQL's takes arguments."""
    many = {"or": [{"n": {"asking": "n"}}] * 150}
    result = pgembed.knn_join(shared, kinds, filter=many, recall=1.0)
    one = pgembed.knn_join(shared, kinds, filter=many["or"][0], recall=1.0)
    assert result.related.keys.tolist() == one.related.keys.tolist()
    predicate = " OR ".join(["n = {n}"] * 150)
    result = pgembed.knn_join(shared, kinds, predicate=predicate, recall=1.0)
    assert result.related.keys.tolist() == one.related.keys.tolist()


def named(connection: Connection, collation: str) -> str:
    """Create named (id, v, a, b, c); return its embedding's name."""
    connection.execute(
        unsafe(
            "CREATE TABLE named (id int PRIMARY KEY, v vector(2), "
            f'a text COLLATE {collation}, b text COLLATE "C", c text); '
            "INSERT INTO named SELECT i, ARRAY[i, 1]::vector, "
            "(ARRAY['x', 'X'])[1 + i % 2], 'y', (ARRAY['x', 'X'])[1 + i % 2] "
            "FROM generate_series(1, 6) AS i"
        )
    )
    return adopt(connection, "named")


BY_CASE: list[dict[str, Any]] = [
    {"predicate": "c = {a} AND b = {b}"},
    {"filter": {"c": {"asking": "a"}, "b": {"asking": "b"}}},
]


@pytest.mark.parametrize("condition", BY_CASE)
def test_columns_of_several_collations(
    connection: Connection, condition: dict[str, Any]
) -> None:
    name = named(connection, '"POSIX"')
    result = pgembed.knn_join(connection, name, recall=1.0, **condition)
    assert result.related.counts.tolist() == [2] * 6


@pytest.mark.parametrize("condition", BY_CASE)
def test_values_that_a_collation_calls_equal(
    connection: Connection, condition: dict[str, Any]
) -> None:
    """They are different values to a condition on another column."""
    try:
        connection.execute(
            "CREATE COLLATION anycase (PROVIDER = icu, LOCALE = 'und-u-ks-level2', "
            "DETERMINISTIC = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server has no ICU, and without it no such collation")
    name = named(connection, "anycase")
    result = pgembed.knn_join(connection, name, recall=1.0, **condition)
    assert result.related.counts.tolist() == [2] * 6
