"""A set of queries: vectors, a condition for each, and how many rows each wants."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pgembed.errors import FilterError, SettingError, VectorError
from pgembed.postgres.vectors import is_lossy

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

MAX_K = 10_000
"""The most rows that a query may ask for."""
INFINITE = "holds NaN or infinity, which has no distance to anything"
_MOST_PARTS = 8
_FOREIGN = re.compile("[\0\ud800-\udfff]")
_BETWEEN = re.compile(r"[\s,:]*")

Filter = Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Condition:
    """What rows have to meet: a JSON filter, a predicate in SQL, both, or nothing."""

    filter: str | None = None
    predicate: str | None = None

    def __str__(self) -> str:
        parts = [part for part in (self.filter, self.predicate) if part is not None]
        return " and ".join(parts) or "(every row)"

    def parts(self) -> tuple[Condition, ...]:
        """Return conditions, all of which a row has to meet to meet this one.

        Many conditions of a workload have parts in common. A predicate stays with its
        filter, which may keep it from rows on which it fails.
        """
        if self.filter is None or self.predicate is not None:
            return (self,) if self != Condition() else ()
        if not self.filter.startswith("{"):
            return (self,)
        # Of entries of one name, jsonb keeps the last.
        entries = dict(_entries(self.filter))
        parts = tuple(map(Condition, entries.values()))
        return parts if len(parts) <= _MOST_PARTS else (self,)


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each entry of a JSON object, and it alone, digit for digit."""
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, 1)
    while text[at] != "}":
        name, end = decode(text, at)
        first = _skip(text, end)
        _, last = decode(text, first)
        yield name, f"{{{text[at:end]}: {text[first:last]}}}"
        at = _skip(text, last)


def _skip(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


@dataclasses.dataclass(frozen=True)
class Workload:
    """Queries: vectors (q, d), k (q,), and the index (q,) of each one's condition."""

    queries: Float32
    k: Ints
    conditions: tuple[Condition, ...]
    members: Ints

    @classmethod
    def of(
        cls,
        queries: ArrayLike,
        filters: Sequence[Filter | str] | Filter | str = None,
        predicates: Sequence[str | None] | str | None = None,
        k: ArrayLike = 10,
    ) -> Workload:
        """Check the queries and number their distinct conditions.

        *filters* and *predicates* are one per query, or one for all.
        Raises VectorError for an array that is not (q, d) or holds NaN or infinity,
        FilterError for a filter that is no JSON, SettingError for a k out of range.
        """
        vectors = _checked(queries)
        count = len(vectors)
        texts = [canonical(f) for f in _each(filters, (Mapping, str), "filters", count)]
        clauses = _each(predicates, str, "predicates", count)
        numbers: dict[Condition, int] = {}
        members = [
            numbers.setdefault(Condition(*pair), len(numbers))
            for pair in zip(texts, map(checked_predicate, clauses), strict=True)
        ]
        return cls(
            vectors, checked_k(k, count), tuple(numbers), np.array(members, np.int64)
        )

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, chosen: Ints) -> Workload:
        """Return the workload of some of the queries; conditions keep their numbers."""
        return dataclasses.replace(
            self,
            queries=self.queries[chosen],
            k=self.k[chosen],
            members=self.members[chosen],
        )


def _checked(queries: ArrayLike) -> Float32:
    vectors = _floats(queries)
    if vectors.ndim != 2:
        raise VectorError(
            f"queries must be an array (q, d), not one of shape {vectors.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise VectorError(f"query {bad[0]} {INFINITE}")
    return vectors


def _floats(queries: ArrayLike) -> Float32:
    if is_lossy(queries):
        raise VectorError(
            "the queries are complex numbers or masked: pass real ones, and leave out "
            "queries that lack values"
        )
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinity
            return np.ascontiguousarray(queries, np.float32)
    except (TypeError, ValueError) as error:
        raise VectorError(
            f"the queries are no array of numbers (q, d): {error}; embed texts first, "
            "and give all queries the dimensions of the embedding"
        ) from None


def checked_k(k: ArrayLike, count: int) -> Ints:
    """Return how many rows each of *count* queries wants; SettingError for bad ones."""
    given = np.asarray(k)
    if given.dtype.kind not in "iu" or given.shape not in ((), (count,)):
        raise SettingError(
            f"k must be an integer or one per query ({count}), "
            f"not {given.dtype} of shape {given.shape}"
        )
    if count and (given.min() < 1 or given.max() > MAX_K):
        raise SettingError(
            f"k is {given.min()} to {given.max()}, but must be from 1 to {MAX_K}"
        )
    return np.broadcast_to(given, (count,)).astype(np.int64)


def _each(
    given: Any, single: type | tuple[type, ...], name: str, count: int
) -> list[Any]:
    if given is None or isinstance(given, single):
        return [given] * count
    if not isinstance(given, Iterable):
        raise SettingError(
            f"{name} are {given!r}: give one for all queries, or a list of one each"
        )
    values = list(given)
    if len(values) != count:
        raise SettingError(
            f"{len(values)} {name} for {count} queries: give one per query, or one "
            "for all"
        )
    return values


def canonical(given: Any) -> str | None:
    """Return a filter as JSON text, equal for equal ones; FilterError if it is none."""
    if given is None:
        return None
    try:
        return _canonical_text(given) if isinstance(given, str) else _dumped(given)
    except (TypeError, ValueError, RecursionError) as error:
        raise FilterError(
            f"the filter {shown(given)} is no JSON: {error}; write it like "
            '{"price": {"lt": 100}}'
        ) from None


def shown(given: Any) -> str:
    """Return what an error calls a value: its repr, or its type where that has none."""
    try:
        return repr(given)
    except (ValueError, RecursionError):  # thousands of digits, or one in another
        return f"({type(given).__name__})"


@functools.lru_cache(1024)
def _canonical_text(text: str) -> str:
    try:
        return _dumped(json.loads(text, parse_float=_exactly))
    except _OtherDigitsError:
        return text.strip()


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


class _OtherDigitsError(Exception):
    """A number that a float does not hold as it is written."""


def _exactly(digits: str) -> float:
    """Return the number, unless it would be written with other digits: 1.10."""
    value = float(digits)
    written = Decimal(repr(value)).as_tuple()
    if not math.isfinite(value) or written != Decimal(digits).as_tuple():
        raise _OtherDigitsError
    return value


def checked_predicate(given: Any) -> str | None:
    """Return *given*; FilterError if it cannot be a predicate."""
    if given is None:
        return None
    if not isinstance(given, str) or not given.strip(" \t\r\n"):
        raise FilterError(
            f"the predicate {given!r} is not what follows WHERE: "
            "leave it out, or write SQL such as 'price < 100'"
        )
    foreign = _FOREIGN.search(given)
    if foreign:
        raise FilterError(
            f"the predicate {given!r} has {foreign[0]!r} at character "
            f"{foreign.start()}, which no text in PostgreSQL has: leave it out"
        )
    return given
