"""Random filters over a random table, against an oracle written in Python."""

from __future__ import annotations

import datetime
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.search.support import Connection, passing

Row = dict[str, Any]
Truth = bool | None

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
LETTERS = st.text("ab%_\\\"'Ä☃ ", max_size=3)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(-3, 3),
    "x": st.integers(-30, 30).map(lambda i: Decimal(i) / 10),
    "s": LETTERS,
    "b": st.booleans(),
    "d": st.integers(27, 29).map(lambda day: datetime.date(2024, 2, day)),
}
ROWS = st.fixed_dictionaries(
    {name: st.none() | values for name, values in SCALARS.items()}
    | {"tags": st.none() | st.lists(LETTERS, max_size=3)}
)


def all_of(truths: list[Truth]) -> Truth:
    """SQL's AND."""
    if any(t is False for t in truths):
        return False
    return None if any(t is None for t in truths) else True


def negated(truth: Truth) -> Truth:
    """SQL's NOT."""
    return None if truth is None else not truth


def any_of(truths: list[Truth]) -> Truth:
    """SQL's OR."""
    return negated(all_of([negated(t) for t in truths]))


def holds(where: Any, row: Row) -> Truth:
    """Whether *row* passes *filter*: true, false, or unknown."""
    return all_of([_entry(key, value, row) for key, value in where.items()])


def _entry(key: str, value: Any, row: Row) -> Truth:
    if key == "and":
        return all_of([holds(f, row) for f in value])
    if key == "or":
        return any_of([holds(f, row) for f in value])
    if key == "not":
        return negated(holds(value, row))
    if not isinstance(value, dict):
        value = {"in" if isinstance(value, list) else "eq": value}
    return all_of([_term(row[key], word, given) for word, given in value.items()])


def _term(actual: Any, word: str, given: Any) -> Truth:
    if word == "is_null":
        return (actual is None) is given
    if word == "in":
        return any_of([_term(actual, "eq", v) for v in given])
    if word == "not_in":
        return negated(_term(actual, "in", given))
    if word in ("eq", "ne") and given is None:
        return (actual is None) is (word == "eq")
    if actual is None:
        return None
    if word == "between":
        return bool(given[0] <= actual <= given[1])
    if word == "contains":
        wanted = given if isinstance(given, list) else [given]
        return all(w in actual for w in wanted)
    return COMPARE[word](actual, given)


def _terms(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    words = {
        **dict.fromkeys(COMPARE, values),
        "in": st.lists(st.none() | values, max_size=3),
        "not_in": st.lists(st.none() | values, max_size=3),
        "between": st.tuples(values, values).map(list),
        "is_null": st.booleans(),
    }
    if name == "s":  # order is the collation's business
        words = {w: v for w, v in words.items() if w not in ("lt", "lte", "gt", "gte")}
        words["contains"] = values
        del words["between"]
    one = st.sampled_from(sorted(words)).flatmap(
        lambda w: st.tuples(st.just(w), words[w])
    )
    terms = st.lists(one, min_size=1, max_size=2).map(dict)
    return (terms | st.none() | values | words["in"]).map(lambda v: {name: v})


LEAVES = st.one_of(
    *(_terms(name, values) for name, values in SCALARS.items()),
    (LETTERS | st.lists(LETTERS, max_size=2)).map(lambda v: {"tags": {"contains": v}}),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda fs: {"and": fs}),
        st.lists(inner, max_size=3).map(lambda fs: {"or": fs}),
        inner.map(lambda f: {"not": f}),
        st.tuples(inner, inner).map(lambda fs: fs[0] | fs[1]),
    ),
    max_leaves=6,
)


def as_json(value: Any) -> Any:
    """Return a filter with its decimals and dates as JSON has them."""
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_json(v) for v in value]
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, datetime.date) else value


@pytest.fixture(scope="module")
def table(shared: Connection) -> Connection:
    """An empty table for the rows that Hypothesis makes up."""
    shared.execute(
        "CREATE TABLE made_up "
        "(id int, n int, x numeric(6, 2), s text, b boolean, d date, tags text[])"
    )
    return shared


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.lists(ROWS, max_size=6), filters=st.lists(FILTERS, min_size=5, max_size=5)
)
def test_filters_mean_what_the_oracle_says(
    table: Connection, rows: list[Row], filters: list[Any]
) -> None:
    with table.transaction(force_rollback=True):
        table.cursor().executemany(
            "INSERT INTO made_up VALUES "
            "(%(id)s, %(n)s, %(x)s, %(s)s, %(b)s, %(d)s, %(tags)s)",
            [row | {"id": i} for i, row in enumerate(rows)],
        )
        for where in filters:
            expected = [i for i, row in enumerate(rows) if holds(where, row) is True]
            assert passing(table, "made_up", as_json(where)) == expected, where
