"""Hostile strings in every place that takes one: nothing happens but an error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.integration.search.support import (
    Connection,
    adopt,
    create_items,
    passing,
    search,
)

PAYLOADS = [
    "'; DROP TABLE sentinel; --",
    '"; DROP TABLE sentinel; --',
    "$1); DROP TABLE sentinel; --",
    "x) OR (true",
    "price) OR true --",
    "1 UNION SELECT * FROM sentinel",
    "\\'; DELETE FROM sentinel; --",
    "$$; DELETE FROM sentinel; $$",
    "%s %I %L %1$s",
    "{\"}'",
    "/* */ --\n",
    'price" IS NOT NULL OR "price',
    "pg_catalog.pg_sleep(10)",
    "\u2028\ud7ff☃",
]
HOSTILE = st.one_of(
    st.sampled_from(PAYLOADS),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")),
    st.tuples(st.sampled_from(PAYLOADS), st.text("\"'\\;-)($%", max_size=6)).map(
        "".join
    ),
)
# Strings of pgembed's own code are drawn, too: such names mean something here.
MEANT = {"id", "v", "price", "name", "meta", "eq", "ne", "lt", "lte", "gt", "gte", "in"}
NAMES = HOSTILE.filter(lambda text: text not in MEANT)
MODES = {"auto", "exact", "index"}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | HOSTILE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            HOSTILE | st.sampled_from(["price", "name", "or", "in"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
REFUSALS = (
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
)
thorough = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def guarded(shared: Connection) -> Connection:
    """A searchable table, and a sentinel beside it."""
    vectors = np.eye(3, dtype=np.float32)
    create_items(
        shared,
        "wares",
        vectors,
        columns={"price": ("int", [1, 2, 3]), "name": ("text", ["a", "b", "c"])},
    )
    shared.execute('ALTER TABLE wares ADD meta jsonb DEFAULT \'{"a": "b"}\'')
    adopt(shared, "wares")
    shared.execute("CREATE TABLE sentinel AS SELECT 42 AS answer")
    return shared


@pytest.fixture(autouse=True)
def intact(guarded: Connection) -> Iterator[None]:
    """The sentinel and the table are as they were after each test."""
    yield
    rows = guarded.execute("SELECT answer FROM sentinel").fetchall()
    assert rows == [(42,)]
    assert guarded.execute("SELECT count(*) FROM wares").fetchone() == (3,)


@thorough
@given(HOSTILE)
def test_values_are_only_values(guarded: Connection, text: str) -> None:
    for where in (text, [text], {"ne": text}, {"contains": text}, {"in": [text, "a"]}):
        rows = passing(guarded, "wares", {"name": where})
        expected = [i for i, name in enumerate("abc") if _passes(where, text, name)]
        assert rows == expected, where


def _passes(where: Any, text: str, name: str) -> bool:
    if isinstance(where, dict) and "ne" in where:
        return name != text
    if isinstance(where, dict) and "contains" in where:
        return text in name
    return name == text or (isinstance(where, dict) and name == "a")


@thorough
@given(NAMES, HOSTILE)
def test_names_and_operators_are_looked_up(
    guarded: Connection, name: str, value: str
) -> None:
    for where in ({name: value}, {"price": {name: value}}, {name: {name: [value]}}):
        try:
            passing(guarded, "wares", where)
        except REFUSALS:
            continue
        raise AssertionError(f"{where!r} was accepted")


@thorough
@given(HOSTILE, HOSTILE)
def test_paths_into_json_are_only_paths(
    guarded: Connection, path: str, value: str
) -> None:
    for separator in (".", "->"):
        where: dict[str, Any] = {f"meta{separator}{path}": value}
        expected = [0, 1, 2] if (path, value) == ("a", "b") else []
        assert passing(guarded, "wares", where) == expected
        where = {f"meta{separator}{path}": {"contains": value, "not_in": [value]}}
        assert passing(guarded, "wares", where) == []


@thorough
@given(JSON)
@example({"or": [{"price": {"in": ["1) OR true --"]}}]})
def test_any_json_is_answered_or_refused(guarded: Connection, value: Any) -> None:
    with contextlib.suppress(*REFUSALS):
        passing(guarded, "wares", value)


@thorough
@given(NAMES.filter(lambda text: text not in MODES))
def test_embedding_names_and_modes_are_looked_up(
    guarded: Connection, text: str
) -> None:
    query = np.ones(3)
    with pytest.raises(psycopg.errors.UndefinedObject, match="there is no embedding"):
        search(guarded, "wares", query, embedding=text)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="mode"):
        search(guarded, "wares", query, mode=text)


def _may_be_a_key(name: str) -> bool:
    """Whether PostgreSQL and pgembed allow a key column of this name beside v."""
    system = {"ctid", "tableoid", "xmin", "xmax", "cmin", "cmax"}
    return (
        0 < len(name.encode()) <= 60
        and name not in {"v", *system}
        and not name.startswith("pgembed_")
    )


@thorough
@given(HOSTILE.filter(_may_be_a_key))
def test_any_name_can_be_a_column(guarded: Connection, name: str) -> None:
    table = psycopg.sql.Identifier(name + "t")
    where = {} if name in ("and", "or", "not") else {name: 7}
    with guarded.transaction(force_rollback=True):
        guarded.execute(
            psycopg.sql.SQL(
                "CREATE TABLE {} ({} int PRIMARY KEY, v vector(2) DEFAULT '[1,0]')"
            ).format(table, psycopg.sql.Identifier(name))
        )
        guarded.execute(psycopg.sql.SQL("INSERT INTO {} VALUES (7)").format(table))
        guarded.execute(
            "SELECT pgembed.adopt_vectors(%s::regclass, 'v', name => 'x')",
            (table.as_string(guarded),),
        )
        rows = guarded.execute(
            psycopg.sql.SQL(
                "SELECT distance FROM pgembed.search("
                "NULL::{}, '[1,0]'::vector, filter => {})"
            ).format(table, json.dumps(where))
        ).fetchall()
    assert rows == [(0,)]
