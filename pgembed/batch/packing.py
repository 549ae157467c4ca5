"""Where the answers of terms and lookups are in the words of bits of each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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


Unit = Term | Lookup
"""What is evaluated at once: a term, or all terms of a lookup."""
Field = Condition | Lookup
Place = tuple[int, int]
"""A word, and the number of the first bit in it."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """Fields and their places: conditions have one bit, lookups some for each code."""

    placed: tuple[tuple[Field, Place], ...]

    @classmethod
    def of(cls, fields: Sequence[Field] = ()) -> Packing:
        """Place fields one after the other."""
        return cls(tuple(zip(fields, _places(list(map(bits_of, fields))), strict=True)))

    def only(self, chosen: Callable[[Field], bool]) -> Packing:
        """Return the fields that are *chosen*; they stay in their places."""
        return Packing(tuple(pair for pair in self.placed if chosen(pair[0])))

    @property
    def count(self) -> int:
        """The words that reach up to the last field."""
        return max((word + 1 for _, (word, _) in self.placed), default=0)

    def words(self) -> list[str]:
        """Return the SQL of each word, an int8, on rows with their :meth:`joins`."""
        parts: list[list[str]] = [[] for _ in range(self.count)]
        parameter = 1
        for condition, (word, shift) in self._conditions():
            bit, sql = f"{1 << shift}::pg_catalog.int8", condition.sql(parameter)
            parts[word].append(
                f"CASE WHEN {sql} THEN {bit} ELSE 0 END" if sql != "true" else bit
            )
            parameter += len(condition.parameters)
        for number, (lookup, (word, shift)) in enumerate(self._lookups()):
            parts[word].append(f"({lookup.code(number)} << {shift})")
        return [" | ".join(part) or "0::pg_catalog.int8" for part in parts]

    def joins(self) -> str:
        """Return the joins that the words refer to."""
        first = 1 + sum(len(each.parameters) for each, _ in self._conditions())
        return "".join(
            lookup.join(number, first + number)
            for number, (lookup, _) in enumerate(self._lookups())
        )

    @property
    def parameters(self) -> list[list[str]]:
        """The parameters of the words and joins."""
        own = [values for each, _ in self._conditions() for values in each.parameters]
        return own + [lookup.contents for lookup, _ in self._lookups()]

    def tests(self) -> dict[Term, Test]:
        """Return how to tell which rows meet each term."""
        found: dict[Term, Test] = {}
        for condition, (word, shift) in self._conditions():
            if isinstance(condition, Term):
                found[condition] = Test(word, 1 << shift, 1 << shift)
        for lookup, (word, shift) in self._lookups():
            mask = ((1 << lookup.bits) - 1) << shift
            for term, code in zip(lookup.terms, lookup.codes, strict=True):
                found[term] = Test(word, mask, code << shift)
        return found

    def values(self, field: Field, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return what *words* (w, n) say of a field: codes, or bits, (n,)."""
        ((word, shift),) = (place for each, place in self.placed if each is field)
        mask = (1 << bits_of(field)) - 1
        return np.asarray((words[word] >> np.uint64(shift)) & np.uint64(mask))

    def _conditions(self) -> list[tuple[Condition, Place]]:
        return [(f, place) for f, place in self.placed if not isinstance(f, Lookup)]

    def _lookups(self) -> list[tuple[Lookup, Place]]:
        return [(f, place) for f, place in self.placed if isinstance(f, Lookup)]


def bits_of(field: Field) -> int:
    """Return how many bits a field has."""
    return field.bits if isinstance(field, Lookup) else 1


def _places(sizes: Sequence[int]) -> list[Place]:
    """Return the word, and the place in it, of fields of so many bits each."""
    places = []
    word = shift = 0
    for bits in sizes:
        if shift + bits > WORD:
            word, shift = word + 1, 0
        places.append((word, shift))
        shift += bits
    return places
