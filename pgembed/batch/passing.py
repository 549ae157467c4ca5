"""Which rows meet which condition: bits for the common ones, positions for the rest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pgembed.batch import codes, failing, lookups
from pgembed.batch.codes import Codes
from pgembed.batch.corpus import Corpus
from pgembed.batch.lookups import Lookup
from pgembed.batch.packing import WORD, Field, Packing, Test, Unit, bits_of
from pgembed.batch.predicates import (
    SHARED_MS,
    Alone,
    Listing,
    alone,
    compile_conditions,
    read_listing,
    read_matching,
    refusals,
)
from pgembed.batch.rows import RowIds, RowMap, Tables
from pgembed.batch.source import Source
from pgembed.batch.terms import Term
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
    """(c, w): the bits by which the rows of each condition are known."""
    values: NDArray[np.uint64]
    """(c, w): what these bits are."""
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
        found = self.words[word] & self.masks[condition, word]
        return np.asarray(found == self.values[condition, word])

    def positions(self, condition: int) -> Ints:
        """Return the sorted positions (m,) of the rows that meet a condition."""
        if condition in self.alone:
            return self.alone[condition]
        return np.flatnonzero(self.met(condition))


@dataclasses.dataclass(frozen=True)
class Round:
    """Conditions whose rows fit into memory together, and how the shared are told."""

    shared: tuple[int, ...]
    alone: tuple[int, ...]
    packing: Packing


class Conditions:
    """A workload's conditions, compiled; raises FilterError for a bad one."""

    def __init__(
        self,
        connection: Connection,
        source: Source,
        conditions: Sequence[Condition],
        threads: int = 1,
        coded: Sequence[Codes] = (),
    ) -> None:
        """Take also the columns that are *coded* by a layout."""
        self._connection, self._source = connection, source
        self._conditions, self._threads = conditions, threads
        self._compiled, found = compile_conditions(connection, source, conditions)
        self._units: dict[Term, Unit] = {
            term: term for condition in self._compiled for term in condition.terms
        }
        for lookup in found:
            self._units |= dict.fromkeys(lookup.terms, lookup)
        self._needs = [
            {self._units[term] for term in condition.terms}
            for condition in self._compiled
        ]
        self._coded = self._by_codes(coded)

    def _by_codes(self, coded: Sequence[Codes]) -> dict[Field, Codes]:
        """Return what the values of one column decide, which are known."""
        known = {each.column.name: each for each in coded}
        columns = {u: codes.column_of(u, self._source) for u in self._units.values()}
        return {
            unit: known[name]
            for unit, name in columns.items()
            if name in known and known[name].decides(unit)
        }

    def without_codes(self) -> None:
        """Ask PostgreSQL for each row."""
        self._coded = {}

    def rounds(self, rows: int, memory: int) -> list[Round]:
        """Cut the conditions into rounds; there are about *rows* rows."""
        self._rows, self._memory = rows, memory
        found = [alone(condition, rows) for condition in self._compiled]
        # What is made of units that others share costs nothing more.
        known = self._shared(found)
        free = [known >= needs for needs in self._needs]
        shared = [i for i, costs_nothing in enumerate(free) if costs_nothing]
        others = [i for i, costs_nothing in enumerate(free) if not costs_nothing]
        expected = [each.rows if each else 0 for each in map(found.__getitem__, others)]
        # What is received, what is unpacked, and what is kept: 24 bytes a word.
        words = max(1, min(256, memory // 4 // (24 * max(rows, 1))))
        bins = np.cumsum(expected) * 24 // max(memory // 4, 1)
        parts = [
            [others[i] for i in np.flatnonzero(bins == b)] for b in np.unique(bins)
        ]
        none: list[int] = []
        pairs = itertools.zip_longest(
            self._by_units(shared, words * WORD), parts, fillvalue=none
        )
        return [
            Round(tuple(one), tuple(other), self._packing(one)) for one, other in pairs
        ]

    def _shared(self, found: Sequence[Alone | None]) -> set[Unit]:
        """Return what is evaluated together: by need, or because a lookup pays."""
        pairs = list(zip(self._needs, found, strict=True))
        shared = {unit for unit in self._units.values() if unit in self._coded}
        shared.update(*(needs for needs, each in pairs if each is None))
        saved: dict[Unit, float] = {}
        for needs, each in pairs:
            missing = needs - shared
            if each is not None and not each.due and len(missing) == 1:
                (unit,) = missing
                saved[unit] = saved.get(unit, 0.0) + each.milliseconds
        cost = self._rows * lookups.TERMS * SHARED_MS
        pays = {
            unit
            for unit, milliseconds in saved.items()
            if isinstance(unit, Lookup) and milliseconds > cost
        }
        return shared | pays

    def _by_units(self, conditions: list[int], most: int) -> list[list[int]]:
        """Cut *conditions* into parts whose units have at most so many bits."""
        parts: list[list[int]] = []
        known: set[Unit] = set()
        bits = 0
        for number in conditions:
            needs = self._needs[number]
            bits += sum(map(bits_of, needs - known))
            known |= needs
            if not parts or bits > most:
                parts.append([])
                known = set(needs)
                bits = sum(map(bits_of, known))
            parts[-1].append(number)
        return parts

    def _packing(self, conditions: Sequence[int]) -> Packing:
        terms = [term for i in conditions for term in self._compiled[i].terms]
        units = dict.fromkeys(self._units[term] for term in terms)
        # Those that rows are asked for come first: the server need not send the others.
        return Packing.of(sorted(units, key=lambda unit: unit in self._coded))

    def listing(self, tables: Tables, part: Round) -> Listing:
        """Read the rows, with the bits of the shared conditions of a round."""

        def read(packing: Packing) -> Listing:
            return read_listing(
                self._connection,
                self._source,
                tables,
                packing,
                rows=self._rows,
                memory=min(self._memory // 8, _MOST_BYTES),
            )

        conditions = {
            term: self._conditions[i]
            for i in part.shared
            for term in self._compiled[i].terms
        }
        asked = part.packing.only(lambda field: field not in self._coded)
        return failing.evaluate(self._connection, asked, conditions, read)

    def passing(
        self,
        part: Round,
        listing: Listing,
        positions: Ints,
        corpus: Corpus,
        tables: Tables,
    ) -> Passing:
        """Evaluate the rest of a round, and put all in terms of positions in *corpus*.

        *positions* are those of the listed rows.
        """
        total = len(corpus.vectors)
        apart = {
            number: np.sort(corpus.find(self._matching(tables, number)))
            for number in part.alone
        }
        bits = _Bits(total, len(self._compiled), part.packing.count)
        bits.add_listed(listing.words, positions)
        self._add_coded(part.packing, bits, corpus, tables)
        tests = part.packing.tests()
        apart |= self._few(part.shared, bits, tests)
        for number in part.shared:
            wanted = [tests[term] for term in self._compiled[number].terms]
            if number not in apart and not bits.choose(number, wanted):
                apart[number] = np.empty(0, np.int64)
        for number in part.alone:
            if len(apart[number]) * _FEW > total:
                bits.add_one(number, apart.pop(number))
        none = corpus.by_list(np.empty(0, np.int64))
        count = len(self._compiled)
        passing = Passing(
            total,
            bits.words,
            bits.masks,
            bits.values,
            apart,
            np.zeros(count, np.int64),
            np.zeros((count, len(none)), np.int32),
        )

        def count_rows(number: int) -> None:
            found = passing.positions(number)
            passing.counts[number] = len(found)
            passing.in_lists[number] = corpus.by_list(found)

        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(count_rows, (*part.shared, *part.alone)):
                pass
        return passing

    def _matching(self, tables: Tables, number: int) -> RowIds:
        with refusals(f"{self._conditions[number]}: "):
            return read_matching(
                self._connection, self._source, tables, self._compiled[number]
            )

    def _add_coded(
        self, packing: Packing, bits: _Bits, corpus: Corpus, tables: Tables
    ) -> None:
        """Add what the codes of rows say, and PostgreSQL of rows without."""
        packed = packing.only(self._coded.__contains__)
        by_column: dict[str, list[Field]] = {}
        for field, _ in packed.placed:
            by_column.setdefault(self._coded[field].column.name, []).append(field)
        for fields in by_column.values():
            coded = self._coded[fields[0]]
            own = packed.only(fields.__contains__)
            by_code = coded.words(self._connection, self._source, own)
            bits.add_coded(by_code, coded.rows)
        newer = corpus.ids[len(corpus.ids) - corpus.changed :]
        if len(newer) and packed.placed:
            found = read_listing(
                self._connection, self._source, tables, packed, ids=newer
            )
            positions = RowMap(newer).positions(found.ids)
            there = positions >= 0
            first = len(corpus.ids) - corpus.changed
            bits.add(found.words[:, there], first + positions[there])

    def _few(
        self, conditions: Sequence[int], bits: _Bits, tests: dict[Term, Test]
    ) -> dict[int, Ints]:
        """Return the positions of those few rows that single terms of a lookup have.

        To go through all rows for each of many conditions would take too long.
        """
        by_code: dict[Unit, _ByCode] = {}
        found = {}
        for number in conditions:
            terms = self._compiled[number].terms
            unit = self._units[terms[0]] if len(terms) == 1 else None
            if not isinstance(unit, Lookup) or not unit.is_large:
                continue
            test = tests[terms[0]]
            if unit not in by_code:
                by_code[unit] = _ByCode(bits.words[test.word], test.mask)
            positions = bits.listed(by_code[unit].positions(test.value))
            if len(positions) * _FEW <= len(bits.words[0]):
                found[number] = positions
        return found


class _ByCode:
    """Rows sorted by what they have in the bits of one lookup."""

    def __init__(self, word: NDArray[np.uint64], mask: int) -> None:
        shift = (mask & -mask).bit_length() - 1
        codes = (word & np.uint64(mask)) >> np.uint64(shift)
        if mask >> shift < 1 << 16:
            codes = codes.astype(np.uint16)  # which are sorted without comparisons
        self._shift, self._rows = shift, np.argsort(codes, kind="stable")
        self._codes = codes[self._rows]

    def positions(self, value: int) -> Ints:
        """Return the sorted positions (m,) of the rows that have *value*."""
        code = self._codes.dtype.type(value >> self._shift)
        first = np.searchsorted(self._codes, code, "left")
        last = np.searchsorted(self._codes, code, "right")
        return self._rows[first:last]


class _Bits:
    """Bits (w, total) of rows, and by which of them *conditions* are known."""

    def __init__(self, total: int, conditions: int, words: int) -> None:
        self.words = np.zeros((max(1, words), total), np.uint64)
        self.masks = np.zeros((conditions, len(self.words)), np.uint64)
        self.values = np.zeros_like(self.masks)
        self._free = words * WORD

    def add_listed(self, words: NDArray[np.uint64], positions: Ints) -> None:
        """Set the first *words* (w, m) of rows at *positions*, which all are listed."""
        for word, bits in zip(self.words, words, strict=False):
            word[positions] = bits
        self.words[0, positions] |= _LISTED

    def listed(self, positions: Ints) -> Ints:
        """Return those of *positions* whose rows are listed."""
        return np.asarray(positions[self.words[0, positions] & _LISTED != 0])

    def add(self, words: NDArray[np.uint64], positions: Ints) -> None:
        """Add the bits of *words* (w, m) to rows at *positions*."""
        for word, bits in zip(self.words, words, strict=False):
            word[positions] |= bits

    def add_coded(self, by_code: NDArray[np.uint64], rows: NDArray[np.uint16]) -> None:
        """Add bits (w, codes) to the first rows, which have the codes *rows* (n,)."""
        for word, bits in zip(self.words, by_code, strict=False):
            if bits.any():
                word[: len(rows)] |= bits[rows]

    def choose(self, condition: int, tests: Sequence[Test]) -> bool:
        """Say what rows of a condition pass; return whether any can, and else nothing.

        A column cannot have two values at once.
        """
        masks, values = self.masks[condition], self.values[condition]
        masks[0] = values[0] = _LISTED
        for test in tests:
            mask, value = np.uint64(test.mask), np.uint64(test.value)
            if masks[test.word] & mask and values[test.word] & mask != value:
                masks[:] = values[:] = 0
                return False
            masks[test.word] |= mask
            values[test.word] |= value
        return True

    def add_one(self, condition: int, positions: Ints) -> None:
        """Add a bit for a condition whose rows are at *positions*."""
        word, bit = divmod(self._free, WORD)
        if word == len(self.words):
            self.words = np.pad(self.words, ((0, 1), (0, 0)))
            self.masks = np.pad(self.masks, ((0, 0), (0, 1)))
            self.values = np.pad(self.values, ((0, 0), (0, 1)))
        self.words[word, positions] |= np.uint64(1 << bit)
        self.choose(condition, [Test(word, 1 << bit, 1 << bit)])
        self._free += 1
