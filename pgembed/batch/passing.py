"""Which rows meet which condition: bits for the common ones, positions for the rest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.predicates import (
    WORD,
    Listing,
    Term,
    compile_conditions,
    read_listing,
    read_matching,
    rows_alone,
)
from pgembed.batch.rows import RowIds, Tables
from pgembed.batch.source import Source
from pgembed.batch.workload import Condition
from pgembed.postgres.connection import Connection

Ints = NDArray[np.int64]

_MOST_BYTES = 1 << 29
"""Half of what PostgreSQL can put into one value."""
_FEW = 64
"""Conditions that one row of so many meets are kept as positions."""
_LISTED = np.uint64(1 << WORD)
"""The bit of a row that is there: the sign, which the server leaves free."""


@dataclasses.dataclass(frozen=True)
class Passing:
    """The rows of each of some conditions, as positions among *total* vectors."""

    total: int
    words: NDArray[np.uint64]
    """(w, total): bits of the terms that were evaluated together."""
    masks: NDArray[np.uint64]
    """(c, w): the bits that the rows of each condition have."""
    alone: dict[int, Ints]
    """The positions of those few rows that other conditions have."""
    counts: Ints
    """(c,): how many rows meet each condition."""
    in_lists: NDArray[np.int32]
    """(c, lists): how many rows of each posting list do."""

    def met(self, condition: int) -> NDArray[np.bool_]:
        """Return (total,): whether a row meets a condition that has bits."""
        first, *others = np.flatnonzero(self.masks[condition]).tolist()
        met = self._met(condition, first)
        for word in others:
            met &= self._met(condition, word)
        return met

    def _met(self, condition: int, word: int) -> NDArray[np.bool_]:
        mask = self.masks[condition, word]
        return np.asarray(self.words[word] & mask == mask)

    def positions(self, condition: int) -> Ints:
        """Return the sorted positions (m,) of the rows that meet a condition."""
        if condition in self.alone:
            return self.alone[condition]
        return np.flatnonzero(self.met(condition))


@dataclasses.dataclass(frozen=True)
class Round:
    """Conditions whose rows fit into memory together, and the terms of the shared."""

    shared: tuple[int, ...]
    alone: tuple[int, ...]
    terms: tuple[Term, ...]


class Conditions:
    """A workload's conditions, compiled; raises FilterError for a bad one."""

    def __init__(
        self,
        connection: Connection,
        source: Source,
        conditions: Sequence[Condition],
        threads: int = 1,
    ) -> None:
        self._connection, self._source = connection, source
        self._threads = threads
        self._compiled = compile_conditions(connection, source, conditions)

    def rounds(self, rows: int, memory: int) -> list[Round]:
        """Cut the conditions into rounds; there are about *rows* rows."""
        self._rows, self._memory = rows, memory
        found = [rows_alone(condition, rows) for condition in self._compiled]
        shared = [i for i, expected in enumerate(found) if expected is None]
        # What is made of terms that others share costs nothing more.
        known = set(self._terms(shared))
        free = [known.issuperset(condition.terms) for condition in self._compiled]
        shared = [i for i, costs_nothing in enumerate(free) if costs_nothing]
        alone = [i for i, costs_nothing in enumerate(free) if not costs_nothing]
        expected = [found[i] or 0 for i in alone]
        # What is received, what is unpacked, and what is kept: 24 bytes a word.
        words = max(1, memory // 4 // (24 * max(rows, 1)))
        bins = np.cumsum(expected) * 24 // max(memory // 4, 1)
        others = [
            [alone[i] for i in np.flatnonzero(bins == b)] for b in np.unique(bins)
        ]
        none: list[int] = []
        pairs = itertools.zip_longest(
            self._by_terms(shared, words * WORD), others, fillvalue=none
        )
        return [
            Round(tuple(one), tuple(other), self._terms(one)) for one, other in pairs
        ]

    def _by_terms(self, conditions: list[int], most: int) -> list[list[int]]:
        """Cut *conditions* into parts with at most so many distinct terms."""
        parts: list[list[int]] = []
        known: set[Term] = set()
        for number in conditions:
            known |= set(self._compiled[number].terms)
            if not parts or len(known) > most:
                parts.append([])
                known = set(self._compiled[number].terms)
            parts[-1].append(number)
        return parts

    def _terms(self, conditions: Sequence[int]) -> tuple[Term, ...]:
        found = [term for i in conditions for term in self._compiled[i].terms]
        return tuple(dict.fromkeys(found))

    def listing(self, tables: Tables, part: Round) -> Listing:
        """Read the rows, with the bits of the shared conditions of a round."""
        return read_listing(
            self._connection,
            self._source,
            tables,
            part.terms,
            rows=self._rows,
            memory=min(self._memory // 8, _MOST_BYTES),
        )

    def passing(
        self,
        part: Round,
        listing: Listing,
        positions: Ints,
        total: int,
        tables: Tables,
        find: Callable[[RowIds], Ints],
        by_list: Callable[[Ints], Ints],
    ) -> Passing:
        """Evaluate the rest of a round, and put all in terms of positions.

        *positions* are those of the listed rows; *find* returns those of row ids, and
        *by_list* how many of some positions each posting list has.
        """
        alone = {
            number: np.sort(
                find(
                    read_matching(
                        self._connection, self._source, tables, self._compiled[number]
                    )
                )
            )
            for number in part.alone
        }
        bits = _Bits(total, len(self._compiled), listing.words, positions)
        places = {term: place for place, term in enumerate(part.terms)}
        for number in part.shared:
            bits.choose(number, [places[t] for t in self._compiled[number].terms])
        for number in part.alone:
            if len(alone[number]) * _FEW > total:
                bits.add_one(number, alone.pop(number))
        none = by_list(np.empty(0, np.int64))
        count = len(self._compiled)
        passing = Passing(
            total,
            bits.words,
            bits.masks,
            alone,
            np.zeros(count, np.int64),
            np.zeros((count, len(none)), np.int32),
        )

        def count_rows(number: int) -> None:
            found = passing.positions(number)
            passing.counts[number] = len(found)
            passing.in_lists[number] = by_list(found)

        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(count_rows, (*part.shared, *part.alone)):
                pass
        return passing


class _Bits:
    """Bits (w, total) of rows, and the masks of *conditions*."""

    def __init__(
        self, total: int, conditions: int, words: NDArray[np.uint64], positions: Ints
    ) -> None:
        """Take the *words* (w, m) of rows at *positions*, which all are listed."""
        self.words = np.zeros((max(1, len(words)), total), np.uint64)
        for word, bits in zip(self.words, words, strict=False):
            word[positions] = bits
        self.words[0, positions] |= _LISTED
        self.masks = np.zeros((conditions, len(self.words)), np.uint64)
        self._free = len(words) * WORD

    def choose(self, condition: int, places: list[int]) -> None:
        """Say of which terms, by their places, a condition is made."""
        self.masks[condition, 0] |= _LISTED
        for word, bit in (divmod(place, WORD) for place in places):
            self.masks[condition, word] |= np.uint64(1 << bit)

    def add_one(self, condition: int, positions: Ints) -> None:
        """Add a bit for a condition whose rows are at *positions*."""
        word, bit = divmod(self._free, WORD)
        if word == len(self.words):
            self.words = np.pad(self.words, ((0, 1), (0, 0)))
            self.masks = np.pad(self.masks, ((0, 0), (0, 1)))
        self.words[word, positions] |= np.uint64(1 << bit)
        self.choose(condition, [self._free])
        self._free += 1
