"""Which filters imply which, and filters written out as SQL."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.search.support import (
    Connection,
    create_items,
    passing,
    unsafe,
)


@pytest.mark.parametrize(
    ("filter_", "general", "expected"),
    [
        ({"a": 3}, {"a": 3}, True),
        ({"a": 3}, {"a": 4}, False),
        ({"a": 3, "b": 1}, {"a": {"eq": 3}}, True),
        ({"a": 3}, {"a": 3, "b": 1}, False),
        ({"a": 3}, {"a": [3, 4]}, True),
        ({"a": [3, 4]}, {"a": [3, 4, 5]}, True),
        ({"a": [3, 6]}, {"a": [3, 4, 5]}, False),
        ({"a": [3]}, {"a": 3}, True),
        ({"a": []}, {"a": 3}, False),
        ({"a": {"eq": {"b": 1}}}, {"a": {"in": [{"b": 1, "c": 2}]}}, False),
        ({"a": {"eq": {"b": 1}}}, {"a": {"in": [{"b": 2}, {"b": 1}]}}, True),
        ({"a": {"in": [[1]]}}, {"a": {"in": [[1, 2]]}}, False),
        ({"a": 3}, {"a": {"in": 3}}, False),
        ({"a": [3, None]}, {"a": 3}, False),
        ({"a": 3}, {"a": {"lt": 4}}, True),
        ({"a": {"lt": 3}}, {"a": {"lt": 4}}, True),
        ({"a": {"lt": 4}}, {"a": {"lt": 4}}, True),
        ({"a": {"lte": 4}}, {"a": {"lt": 4}}, False),
        ({"a": {"lt": 4}}, {"a": {"lte": 4}}, True),
        ({"a": {"gt": 4}}, {"a": {"gte": 4}}, True),
        ({"a": {"gte": 4}}, {"a": {"gt": 4}}, False),
        ({"a": {"between": [3, 5]}}, {"a": {"gte": 2}}, True),
        ({"a": {"between": [3, 5]}}, {"a": {"between": [4, 6]}}, False),
        ({"a": {"lt": "b"}}, {"a": {"lt": "c"}}, False),
        ({"and": [{"a": 3}, {"b": 4}]}, {"b": 4}, True),
        ({"or": [{"a": 3}, {"b": 4}]}, {"b": 4}, False),
        ({"or": [{"a": 3}, {"b": 4}]}, {"or": [{"a": 3}, {"b": 4}]}, True),
        ({"not": {"a": 3}}, {"a": 3}, False),
        ({}, {"a": 3}, False),
        ({"a": 3}, {}, True),
    ],
)
def test_implication(
    shared: Connection, filter_: Any, general: Any, expected: bool
) -> None:
    row = shared.execute(
        "SELECT pgembed._filter_implies(%s::jsonb, %s::jsonb)",
        (json.dumps(filter_), json.dumps(general)),
    ).fetchone()
    assert row == (expected,)


@pytest.mark.parametrize(
    ("filter_", "general", "expected"),
    [
        ({"t": {"lt": 9}}, {"t": {"lt": 10}}, False),
        ({"t": 9}, {"t": {"lt": 10}}, False),
        ({'"t"': {"gt": 10}}, {'"t"': {"gt": 9}}, False),
        ({"t": {"lt": 9}}, {"t": {"lt": 9}}, True),
        ({"t": 1}, {"t": 1.0}, False),
        ({"t": 1}, {"t": ["1", 2]}, True),
        ({"a": {"lt": 9}}, {"a": {"lt": 10}}, True),
        ({"b": 1}, {"b": {"lt": 10.5}}, True),
        ({"j": {"lt": 9}}, {"j": {"lt": 10}}, True),
        ({"j.t": {"lt": 9}}, {"j.t": {"lt": 10}}, True),
    ],
)
def test_numbers_are_text_to_columns_of_text(
    rows: Connection, filter_: Any, general: Any, expected: bool
) -> None:
    row = rows.execute(
        "SELECT pgembed._filter_implies(%s::jsonb, %s::jsonb, "
        "pgembed._numberless_columns('pairs'))",
        (json.dumps(filter_), json.dumps(general)),
    ).fetchone()
    assert row == (expected,)


@pytest.fixture(scope="module")
def rows(shared: Connection) -> Connection:
    """Small numbers in two columns, some NULL, and texts with quotes."""
    numbers = [None, *range(-2, 6)] * 9
    columns = {
        "a": ("int", numbers),
        "b": (
            "numeric",
            [
                None if n is None else n / 2
                for n in sorted(numbers, key=lambda n: (n is None, n or 0))
            ],
        ),
        "t": ("text", ["it's", "x\\y", '"q"', "", None, "$1", "%s", "z", "\\"] * 9),
        "d": ("date", ["2020-01-01", None, "2021-05-05"] * 27),
        "j": ("jsonb", [None] * 81),
    }
    create_items(shared, "pairs", np.ones((81, 2), dtype=np.float32), columns=columns)
    return shared


number = st.integers(-2, 5)
term = st.one_of(
    number,
    st.lists(number, max_size=3),
    st.dictionaries(
        st.sampled_from(["lt", "lte", "gt", "gte", "ne"]),
        number,
        min_size=1,
        max_size=2,
    ),
    st.tuples(number, number).map(lambda pair: {"between": list(pair)}),
)
filters = st.dictionaries(st.sampled_from(["a", "b"]), term, max_size=2)


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(filters, filters)
def test_what_is_implied_passes(
    rows: Connection, filter_: dict[str, Any], general: dict[str, Any]
) -> None:
    """Whatever the rows, an implied filter lets them all pass."""
    row = rows.execute(
        "SELECT pgembed._filter_implies(%s::jsonb, %s::jsonb)",
        (json.dumps(filter_), json.dumps(general)),
    ).fetchone()
    assert row is not None
    if row[0]:
        narrow = set(passing(rows, "pairs", filter_))
        assert narrow <= set(passing(rows, "pairs", general))


@pytest.mark.parametrize(
    "where",
    [
        {"t": "it's"},
        {"t": ["x\\y", '"q"', "\\"]},
        {"t": {"contains": "%"}},
        {"a": {"between": [0, 3]}, "b": {"gte": 0.5}},
        {"d": {"lt": "2021-01-01"}},
        {"d": ["2021-05-05"]},
        {"or": [{"a": 1}, {"not": {"t": "$1"}}]},
    ],
)
def test_a_filter_written_out_means_the_same(rows: Connection, where: Any) -> None:
    row = rows.execute(
        "SELECT pgembed._filter_literal('pairs', %s::jsonb)", (json.dumps(where),)
    ).fetchone()
    assert row is not None
    assert "pgembed." not in row[0]
    found = rows.execute(unsafe(f"SELECT id FROM pairs WHERE {row[0]} ORDER BY id"))
    assert [i for (i,) in found] == passing(rows, "pairs", where)
    rows.execute(unsafe(f"CREATE INDEX pairs_literal ON pairs (id) WHERE {row[0]}"))
    rows.execute("DROP INDEX pairs_literal")
