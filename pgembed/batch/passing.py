"""Which rows meet which condition: bits for the common ones, positions for the rest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.predicates import (
    WORD,
    Listing,
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


@dataclasses.dataclass(frozen=True)
class Passing:
    """The rows of each of some conditions, as positions among *total* vectors."""

    total: int
    words: NDArray[np.uint64]
    """(w, total): bits of the conditions that were evaluated together."""
    place: tuple[int, ...]
    """The bit of each condition; -1 when it has positions instead."""
    alone: dict[int, Ints]
    counts: tuple[int, ...]

    def positions(self, condition: int) -> Ints:
        """Return the sorted positions (m,) of the rows that meet a condition."""
        if condition in self.alone:
            return self.alone[condition]
        return np.flatnonzero(self.bits(condition))

    def bits(self, condition: int) -> NDArray[np.uint64]:
        """Return (total,): not 0 where a row meets a condition that has a bit."""
        word, bit = divmod(self.place[condition], WORD)
        return np.asarray(self.words[word] & np.uint64(1 << bit))


@dataclasses.dataclass(frozen=True)
class Round:
    """Conditions whose rows fit into memory together."""

    shared: tuple[int, ...]
    alone: tuple[int, ...]


class Conditions:
    """A workload's conditions, compiled; raises FilterError for a bad one."""

    def __init__(
        self, connection: Connection, source: Source, conditions: Sequence[Condition]
    ) -> None:
        self._connection, self._source = connection, source
        self._compiled = compile_conditions(connection, source, conditions)

    def rounds(self, rows: int, memory: int) -> list[Round]:
        """Cut the conditions into rounds; there are about *rows* rows."""
        self._rows, self._memory = rows, memory
        shared, alone, expected = [], [], []
        for number, condition in enumerate(self._compiled):
            found = rows_alone(condition, rows)
            if found is None:
                shared.append(number)
            else:
                alone.append(number)
                expected.append(found)
        # What is received, what is unpacked, and what is kept: 24 bytes a word.
        words = max(1, memory // 4 // (24 * max(rows, 1)))
        parts = [
            shared[i : i + words * WORD] for i in range(0, len(shared), words * WORD)
        ]
        bins = np.cumsum(expected) * 24 // max(memory // 4, 1)
        others = [
            [alone[i] for i in np.flatnonzero(bins == b)] for b in np.unique(bins)
        ]
        none: list[int] = []
        pairs = itertools.zip_longest(parts, others, fillvalue=none)
        return [Round(tuple(one), tuple(other)) for one, other in pairs]

    def listing(self, tables: Tables, part: Round) -> Listing:
        """Read the rows, with the bits of the shared conditions of a round."""
        chosen = [self._compiled[i] for i in part.shared]
        return read_listing(
            self._connection,
            self._source,
            tables,
            chosen,
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
    ) -> Passing:
        """Evaluate the rest of a round, and put all in terms of positions.

        *positions* are those of the listed rows; *find* returns those of row ids.
        """
        words = np.zeros((len(listing.words), total), np.uint64)
        for word, bits in zip(words, listing.words, strict=True):
            word[positions] = bits
        place = [-1] * len(self._compiled)
        for bit, number in enumerate(part.shared):
            place[number] = bit
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
        counts = [0] * len(self._compiled)
        for number in part.shared:
            counts[number] = _count(words, place[number])
        for number in part.alone:
            counts[number] = len(alone[number])
        return Passing(total, words, tuple(place), alone, tuple(counts))


def _count(words: NDArray[np.uint64], bit: int) -> int:
    word, shift = divmod(bit, WORD)
    return int(np.count_nonzero(words[word] & np.uint64(1 << shift)))
