"""Where the answers of terms and lookups are in the words of bits of each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from pgembed.batch.lookups import Lookup
from pgembed.batch.terms import Term

WORD = 63
"""Bits of a word that are used; the sign stays free."""


class Condition(Protocol):
    """What is either true of a row or not: a term, or a whole condition."""

    def sql(self, parameter: int = 1) -> str:
        """Return it as SQL; its values are ``$parameter`` and those after it."""

    @property
    def parameters(self) -> list[list[str]]:
        """Its values."""


@dataclasses.dataclass(frozen=True)
class Test:
    """Rows that meet a term have *value* in the bits *mask* of their word."""

    word: int
    mask: int
    value: int


class Packing:
    """Conditions, a bit for each, and lookups, some bits for each code."""

    def __init__(
        self, conditions: Sequence[Condition] = (), lookups: Sequence[Lookup] = ()
    ) -> None:
        bits = [1] * len(conditions) + [lookup.bits for lookup in lookups]
        places = _places(bits)
        self._count = 1 + places[-1][0] if places else 0
        self._conditions = list(zip(conditions, places, strict=False))
        self._lookups = list(zip(lookups, places[len(conditions) :], strict=True))

    def words(self) -> list[str]:
        """Return the SQL of each word, an int8, on rows with their :meth:`joins`."""
        parts: list[list[str]] = [[] for _ in range(self._count)]
        parameter = 1
        for condition, (word, shift) in self._conditions:
            bit, sql = f"{1 << shift}::pg_catalog.int8", condition.sql(parameter)
            parts[word].append(
                f"CASE WHEN {sql} THEN {bit} ELSE 0 END" if sql != "true" else bit
            )
            parameter += len(condition.parameters)
        for number, (lookup, (word, shift)) in enumerate(self._lookups):
            parts[word].append(f"({lookup.code(number)} << {shift})")
        return [" | ".join(part) for part in parts]

    def joins(self) -> str:
        """Return the joins that the words refer to."""
        first = 1 + sum(len(each.parameters) for each, _ in self._conditions)
        return "".join(
            lookup.join(number, first + number)
            for number, (lookup, _) in enumerate(self._lookups)
        )

    @property
    def parameters(self) -> list[list[str]]:
        """The parameters of the words and joins."""
        own = [values for each, _ in self._conditions for values in each.parameters]
        return own + [lookup.contents for lookup, _ in self._lookups]

    def tests(self) -> dict[Term, Test]:
        """Return how to tell which rows meet each term."""
        found: dict[Term, Test] = {}
        for condition, (word, shift) in self._conditions:
            if isinstance(condition, Term):
                found[condition] = Test(word, 1 << shift, 1 << shift)
        for lookup, (word, shift) in self._lookups:
            mask = ((1 << lookup.bits) - 1) << shift
            for term, code in zip(lookup.terms, lookup.codes, strict=True):
                found[term] = Test(word, mask, code << shift)
        return found


def _places(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the word, and the place in it, of fields of so many bits each."""
    places = []
    word = shift = 0
    for bits in sizes:
        if shift + bits > WORD:
            word, shift = word + 1, 0
        places.append((word, shift))
        shift += bits
    return places
