"""Workloads: what is accepted, what is refused, which conditions are the same."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pgembed.batch.limits import check_recall
from pgembed.batch.workload import Condition, Workload
from pgembed.errors import FilterError, PgembedError, SettingError, VectorError
from pgembed.settings import Settings, memory_bytes

QUERIES = np.ones((3, 2), np.float32)


def test_equal_filters_are_one_condition() -> None:
    workload = Workload.of(
        QUERIES, [{"a": 1, "b": 2}, '{"b": 2, "a": 1}', None], [None, None, "x > 1"]
    )
    assert workload.conditions == (
        Condition('{"a": 1, "b": 2}'),
        Condition(predicate="x > 1"),
    )
    assert workload.members.tolist() == [0, 0, 1]


def test_one_filter_and_one_k_count_for_all() -> None:
    workload = Workload.of(QUERIES, {"a": 1}, "b > 0", k=7)
    assert workload.conditions == (Condition('{"a": 1}', "b > 0"),)
    assert workload.k.tolist() == [7, 7, 7]
    assert str(workload.conditions[0]) == '{"a": 1} and b > 0'


def test_one_filter_as_text_counts_for_all() -> None:
    workload = Workload.of(QUERIES, '{"a":1}')
    assert workload.conditions == (Condition('{"a": 1}'),)


def test_no_queries() -> None:
    workload = Workload.of(np.empty((0, 2)))
    assert len(workload) == 0
    assert workload.conditions == ()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": np.ones(3)}, VectorError, r"\(q, d\)"),
        ({"queries": [[1, np.nan]]}, VectorError, "query 0 holds NaN"),
        ({"filters": [None]}, SettingError, "1 filters for 3 queries"),
        ({"predicates": ["a"] * 4}, SettingError, "4 predicates for 3"),
        ({"filters": ["{", None, None]}, FilterError, "no JSON"),
        ({"filters": [{"a": object()}] * 3}, FilterError, "no JSON"),
        ({"filters": "[" * 100_000}, FilterError, "no JSON: maximum recursion"),
        ({"predicates": " \n"}, FilterError, "follows WHERE"),
        ({"k": 0}, SettingError, "must be from 1 to 10000"),
        ({"k": [1, 2]}, SettingError, "one per query"),
        ({"k": 1.5}, SettingError, "must be an integer"),
        ({"k": 10_001}, SettingError, "10001"),
    ],
)
def test_refused(
    arguments: dict[str, Any], error: type[PgembedError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Workload.of(**{"queries": QUERIES, **arguments})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("512MB", 512 << 20),
        ("2 GB", 2 << 30),
        (1 << 27, 1 << 27),
        ("65536kB", 64 << 20),
    ],
)
def test_memory(given: str | int, expected: int) -> None:
    assert memory_bytes(given) == expected


@pytest.mark.parametrize("given", ["lots", "-5MB", "1MB", 5, "", "9" * 5000, True])
def test_memory_refused(given: str | int) -> None:
    with pytest.raises(SettingError, match=r"^memory is "):
        memory_bytes(given)
    with pytest.raises(SettingError, match=r"^batch_memory is "):
        Settings(batch_memory=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [0, 1.1, float("nan"), True])
def test_recall_refused(given: float) -> None:
    with pytest.raises(SettingError):
        check_recall(given)


@pytest.mark.parametrize("given", [Fraction(1, 2), np.float32(0.5), 0.5])
def test_recall_is_a_float(given: Any) -> None:
    found = check_recall(given)
    assert (type(found), found) == (float, 0.5)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{}", ()),
        ('{"a": 1}', ('{"a": 1}',)),
        # Digits that no float keeps.
        (
            '{"a": 0.10000000000000000001, "b": {"lt": 12345678901234567890.50}}',
            ('{"a": 0.10000000000000000001}', '{"b": {"lt": 12345678901234567890.50}}'),
        ),
        (
            ' {"a,:}" : [1 , "}"] ,\n "\\"b" :{"x":{}} }'.strip(),
            ('{"a,:}": [1 , "}"]}', '{"\\"b": {"x":{}}}'),
        ),
        ("[1, 2]", ("[1, 2]",)),
    ],
)
def test_a_filter_is_taken_apart(text: str, parts: tuple[str, ...]) -> None:
    found = Condition(text).parts()
    assert tuple(part.filter for part in found) == parts


def test_what_is_not_taken_apart() -> None:
    many = Condition(json.dumps({f"c{i}": i for i in range(9)}))
    guarded = Condition('{"a": 1, "b": 2}', "a / b > 1")
    assert many.parts() == (many,)
    assert guarded.parts() == (guarded,)
    assert Condition().parts() == ()


@pytest.mark.parametrize("digits", ["0.1234567890123456789", "1e400", "-1E-400"])
def test_digits_of_a_filter_as_text_are_kept(digits: str) -> None:
    text = f'{{"b": 1.50, "a": {digits}}}'
    assert Workload.of(QUERIES, [text] * 3).conditions == (Condition(text),)


def test_numbers_of_a_filter_as_text() -> None:
    """They are compared with text, too, to which 1.50 is not 1.5."""
    texts = [' {"a": 1.5}', '{"a": 15e-1}', '{"a": 1.50}']
    expected = (Condition('{"a": 1.5}'), Condition('{"a": 1.50}'))
    assert Workload.of(QUERIES, texts).conditions == expected


def test_of_entries_of_one_name_the_last_counts() -> None:
    condition = Condition('{"a": 1, "b": 1.50, "a": 2}')
    assert condition.parts() == (Condition('{"a": 2}'), Condition('{"b": 1.50}'))
