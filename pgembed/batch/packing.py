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
        self._conditions, self._lookups = conditions, lookups
        self._places: list[tuple[int, int]] = []
        word = shift = 0
        for bits in [1] * len(conditions) + [lookup.bits for lookup in lookups]:
            if shift + bits > WORD:
                word, shift = word + 1, 0
            self._places.append((word, shift))
            shift += bits
        self._count = word + 1 if self._places else 0

    def words(self) -> list[str]:
        """Return the SQL of each word, an int8, on rows with their :meth:`joins`."""
        parts: list[list[str]] = [[] for _ in range(self._count)]
        parameter = 1
        for condition, (word, shift) in zip(
            self._conditions, self._places, strict=False
        ):
            bit, sql = f"{1 << shift}::pg_catalog.int8", condition.sql(parameter)
            parts[word].append(
                f"CASE WHEN {sql} THEN {bit} ELSE 0 END" if sql != "true" else bit
            )
            parameter += len(condition.parameters)
        for number, (lookup, (word, shift)) in enumerate(
            zip(self._lookups, self._places[len(self._conditions) :], strict=True)
        ):
            parts[word].append(f"({lookup.code(number)} << {shift})")
        return [" | ".join(part) for part in parts]

    def joins(self) -> str:
        """Return the joins that the words refer to."""
        first = 1 + sum(len(each.parameters) for each in self._conditions)
        return "".join(
            lookup.join(number, first + number)
            for number, lookup in enumerate(self._lookups)
        )

    @property
    def parameters(self) -> list[list[str]]:
        """The parameters of the words and joins."""
        own = [values for each in self._conditions for values in each.parameters]
        return own + [lookup.contents for lookup in self._lookups]

    def tests(self) -> dict[Term, Test]:
        """Return how to tell which rows meet each term."""
        found: dict[Term, Test] = {}
        for condition, (word, shift) in zip(
            self._conditions, self._places, strict=False
        ):
            if isinstance(condition, Term):
                found[condition] = Test(word, 1 << shift, 1 << shift)
        for lookup, (word, shift) in zip(
            self._lookups, self._places[len(self._conditions) :], strict=True
        ):
            mask = ((1 << lookup.bits) - 1) << shift
            for term, code in zip(lookup.terms, lookup.codes, strict=True):
                found[term] = Test(word, mask, code << shift)
        return found
