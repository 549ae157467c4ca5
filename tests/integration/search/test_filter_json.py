"""Filters on what is inside a jsonb column."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.integration.search.support import Connection, compiled, passing

DOCUMENTS: list[Any] = [
    {"a": {"b": 5, "s": "hello"}, "l": ["x", "y"], "d": "2024-02-29"},  # 0
    {"a": {"b": 5.0, "s": "50% _off_"}, "l": "x-ray", "d": "2025-01-01"},  # 1
    {"a": {"b": "5", "s": None}, "l": [1, {"k": True}], "d": 20240229},  # 2
    {"a": [10, 20]},  # 3
    "scalar",  # 4
    {"a": {"b": None, "b.c": 7, '"': "q"}},  # 5
    None,  # 6: no document
]


@pytest.fixture(scope="module")
def documents(shared: Connection) -> Connection:
    """A table with a jsonb column, one called meta.flat, and a text column."""
    shared.execute(
        'CREATE TABLE documents (id int, meta jsonb, "meta.flat" int, t text)'
    )
    shared.cursor().executemany(
        "INSERT INTO documents VALUES (%s, %s, %s, 'x')",
        [(i, d and json.dumps(d), i) for i, d in enumerate(DOCUMENTS)],
    )
    return shared


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"meta.a.b": 5}, [0, 1]),
        ({"meta->a->b": 5}, [0, 1]),
        ({"meta.a.b": "5"}, [2]),
        ({"meta.a.b": [5, "5"]}, [0, 1, 2]),
        ({"meta.a.b": {"ne": 5}}, [2]),
        ({"meta.a.b": {"not_in": ["5"]}}, [0, 1]),
        ({"meta.a.b": None}, [3, 4, 5, 6]),
        ({"meta.a.b": {"is_null": False}}, [0, 1, 2]),
        ({"meta.a.b": {"gt": 4}}, [0, 1]),
        ({"meta.a.b": {"gt": "4"}}, [2]),
        ({"not": {"meta.a.b": {"gt": 4}}}, []),
        ({"not": {"meta.a.b": {"gt": 5}}}, [0, 1]),
        ({"meta.a.b": {"between": [4.5, 5]}}, [0, 1]),
        ({"meta.d": {"gte": "2024-02-29", "lt": "2025"}}, [0]),
        ({"meta.a.s": {"like": "h%"}}, [0]),
        ({"meta.a.s": {"ilike": "%OFF%"}}, [1]),
        ({"meta.a.s": {"contains": "_"}}, [1]),
        ({"meta.a.s": {"contains": "%"}}, [1]),
        ({"meta.l": {"contains": "x"}}, [0, 1]),
        ({"meta.l": {"contains": ["x", "y"]}}, [0]),
        ({"meta.l": {"contains": [{"k": True}]}}, [2]),
        ({"meta.l.1.k": True}, [2]),
        ({"meta.a.0": 10}, [3]),
        ({"meta.a": {"eq": [10, 20]}}, [3]),
        ({"meta.a": {"contains": {"b": 5}}}, [0, 1]),
        ({"meta->a->b.c": 7}, [5]),
        ({'meta->a->"': "q"}, [5]),
        ({"meta.flat": 3}, [3]),
        ({"meta.flat": {"lt": 2}, "meta.a.b": 5}, [0, 1]),
        ({"meta.no.such.key": 1}, []),
        ({"meta.": 1}, []),
        ({"or": [{"meta.a.0": 10}, {"meta.d": 20240229}]}, [2, 3]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_what_passes(documents: Connection, where: Any, rows: list[int]) -> None:
    assert passing(documents, "documents", where) == rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"meta.a": {"lt": True}}, "has no order"),
        ({"meta.a": {"gt": None}}, "has no order"),
        ({"meta.a": {"between": [1, "2"]}}, "has no order"),
        ({"meta.a": {"between": 1}}, "has no order"),
        ({"meta.a": {"like": 1}}, "is no string"),
        ({"meta.a": {"near": 1}}, 'no operator "near"'),
        ({"t.a": 1}, r"column t \(text\) is not jsonb"),
    ],
)
def test_what_is_refused(documents: Connection, where: Any, message: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
        compiled(documents, "documents", where)


def test_paths_of_unknown_columns(documents: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn, match="no column"):
        compiled(documents, "documents", {"mata.a": 1})
