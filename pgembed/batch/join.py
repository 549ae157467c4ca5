"""k-NN joins: the rows of an embedding as queries, on itself or on another one.

A predicate and a filter may refer to the row that asks: in ``category = {category} AND
year > {year}`` the braces hold its values, and ``{"category": {"asking": "category"},
"year": {"asking": {"gt": "year"}}}`` says the same. Rows with the same values have the
same condition, which is evaluated once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.asking import RowTexts
from pgembed.batch.execute import Batch, Options
from pgembed.batch.result import BatchResult, Report
from pgembed.batch.rows import (
    RowIds,
    RowMap,
    Tables,
    fetch,
    look_up,
    rank_by_key,
    rank_together,
    readable,
    unpack,
)
from pgembed.batch.singly import typed
from pgembed.batch.source import Source, describe
from pgembed.batch.vectors import NO_KEYS, Spool, chosen_keys, read_blocks
from pgembed.batch.workload import (
    MAX_K,
    Condition,
    Filter,
    Workload,
    canonical,
    checked_k,
    checked_predicate,
)
from pgembed.errors import VectorError
from pgembed.postgres.connection import Connection

Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class JoinResult:
    """The rows that asked, and the rows related to each of them, nearest first."""

    keys: NDArray[Any]
    """(q,): the keys of the rows that asked, as in BatchResult."""
    related: BatchResult

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def report(self) -> Report:
        """What it took."""
        return self.related.report


@dataclasses.dataclass(frozen=True)
class Askers:
    """The rows that ask: ids (q,), and keys (q,), if that is one column of integers.

    Otherwise the keys are (0,).
    """

    ids: RowIds
    keys: Ints

    def take(self, chosen: Ints) -> Askers:
        """Return the *chosen* rows (m,)."""
        return Askers(self.ids[chosen], chosen_keys(self.keys, chosen))


@dataclasses.dataclass(frozen=True)
class Join:
    """A k-NN join in an open snapshot: each row of *asking* searches *source*.

    When both are of one table, no row is related to itself. With chunks, each of a
    row's chunks asks, and a related row is as far away as the nearest two chunks.
    """

    connection: Connection
    source: Source
    asking: Source
    options: Options
    k: int = 10
    filter: Filter | str = None
    predicate: str | None = None
    tables: Tables = dataclasses.field(default_factory=Tables)

    @classmethod
    def of(
        cls,
        connection: Connection,
        embedding: str,
        asking: str | None,
        options: Options,
        **arguments: Any,
    ) -> Join:
        """Look the embeddings up; *asking* is by default the one that is searched.

        Raises VectorError for embeddings of different dimensions, SettingError for a k
        that is none, and FilterError for a predicate that cannot be one.
        """
        source = describe(connection, embedding)
        other = describe(connection, asking) if asking is not None else source
        _check(source, other)
        join = cls(connection, source, other, options, **arguments)
        return dataclasses.replace(
            join,
            k=int(checked_k(join.k, 1)[0]),
            predicate=checked_predicate(join.predicate),
        )

    @property
    def reflexive(self) -> bool:
        """Whether the rows that ask are rows of the table that is searched."""
        return self.source.relation == self.asking.relation

    def run(self) -> tuple[Askers, BatchResult]:
        """Return the rows that asked, and their answers."""
        askers, vectors = self._read()
        ids = askers.ids
        conditions, members = self._conditions(ids)
        wanted = self.k + self.reflexive
        workload = Workload(
            vectors, np.full(len(ids), wanted, np.int64), conditions, members
        )
        # Itself is found for certain, and does not count for the recall.
        options = dataclasses.replace(
            self.options,
            recall=(self.k * self.options.recall + self.reflexive) / wanted,
            few_by_sql=self.options.few_by_sql and wanted <= MAX_K,
        )
        answer = Batch(self.connection, self.source, workload, options).run()
        if self.reflexive:
            answer = _without(answer, self._own(askers, answer), self.k)
            answer.report.measured[:] = [
                (queries, (recall * wanted - 1) / self.k)
                for queries, recall in answer.report.measured
            ]
        if self.asking.chunked:
            return self._by_row(askers, answer)
        return askers, answer

    def keys(self, askers: Askers) -> NDArray[Any]:
        """Return the keys (q,) of rows that asked."""
        if self.asking.whole_key:
            return askers.keys
        found = np.empty((len(askers.ids), 1), object)
        columns = self.asking.key_values("t")
        with readable(self.asking):
            rows = look_up(
                self.connection, self.asking, self.tables, askers.ids, columns
            )
        for place, *key in rows:
            found[place, 0] = key[0] if len(key) == 1 else tuple(key)
        return typed(found, np.ones(len(found), np.int64))[:, 0]

    def _own(self, askers: Askers, answer: BatchResult) -> NDArray[np.bool_]:
        """Return (q, k): whether what was found is the row that asked."""
        if not (self.source.chunked or self.asking.chunked):
            mine = _renumbered(askers.ids, self.tables.oids, answer.tables)
            return np.asarray(answer.places == mine[:, None])
        there = np.arange(answer.distances.shape[1]) < answer.counts[:, None]
        distinct, inverse = np.unique(answer.places[there], return_inverse=True)
        asking, found = rank_together(
            self.connection,
            (self.asking, self.tables, askers.ids),
            (self.source, Tables(answer.tables), distinct),
        )
        own = np.zeros(there.shape, bool)
        own[there] = found[inverse] == asking[np.nonzero(there)[0]]
        return own

    def _by_row(
        self, askers: Askers, answer: BatchResult
    ) -> tuple[Askers, BatchResult]:
        """Draw the answers to the chunks of a row together."""
        there = np.arange(answer.distances.shape[1]) < answer.counts[:, None]
        chunk, column = np.nonzero(there)
        _, first, row = np.unique(
            rank_by_key(self.connection, self.asking, self.tables, askers.ids),
            return_index=True,
            return_inverse=True,
        )
        distinct, inverse = np.unique(answer.places[there], return_inverse=True)
        tables = Tables(answer.tables)
        keys = rank_by_key(self.connection, self.source, tables, distinct)
        chosen, rows, columns = _nearest(
            row[chunk], keys[inverse], answer.distances[there], self.k
        )
        shape = (len(first), self.k)
        found = chunk[chosen], column[chosen]

        def placed(values: NDArray[Any], beyond: Any) -> NDArray[Any]:
            if not values.shape[1]:  # keys, where places will do
                return values[: len(first)]
            result = np.full(shape, beyond, values.dtype)
            result[rows, columns] = values[found]
            return result

        return askers.take(first), dataclasses.replace(
            answer,
            keys=placed(answer.keys, _nothing(answer.keys)),
            distances=placed(answer.distances, np.inf),
            places=placed(answer.places, 0),
            counts=np.bincount(rows, minlength=len(first)),
        )

    def _read(self) -> tuple[Askers, NDArray[np.float32]]:
        """Read the rows that have a vector, and a distance to others."""
        memory = self.options.memory // 4
        spool = Spool(self.asking.dimensions, memory)
        ids, keys = [np.empty(0, np.uint64)], [NO_KEYS]
        for block in read_blocks(self.connection, self.asking, self.tables, memory):
            chosen = np.arange(len(block.ids))
            if self.source.distance == "cosine":
                chosen = np.flatnonzero(block.values.any(axis=1))
            spool.add(block.values[chosen])
            found = Askers(block.ids, block.keys).take(chosen)
            ids.append(found.ids)
            keys.append(found.keys)
        askers = Askers(np.concatenate(ids), np.concatenate(keys))
        return askers, np.asarray(spool.finish().parts[0])

    def _conditions(self, ids: RowIds) -> tuple[tuple[Condition, ...], Ints]:
        """Return the distinct conditions, and for each row (q,) which is its own."""
        text = canonical(self.filter)
        members = np.zeros(len(ids), np.int64)
        texts = RowTexts(self.connection, self.source, self.asking)
        by_row = {
            name: expression
            for name, expression in (
                ("filter", texts.of_filter(text)),
                ("predicate", texts.of_predicate(self.predicate)),
            )
            if expression is not None
        }
        whole = Condition(text, self.predicate)
        if not by_row:
            return (whole,), members
        numbers: dict[Condition, int] = {}
        places = RowMap(ids)
        for oid, packed, *found in self._rows_by(
            list(by_row.values()), texts.parameters
        ):
            rows = places.positions(self.tables.ids(oid, unpack(packed)))
            rows = rows[rows >= 0]
            if len(rows):
                own = dict(zip(by_row, found, strict=True))
                condition = dataclasses.replace(whole, **own)
                members[rows] = numbers.setdefault(condition, len(numbers))
        return tuple(numbers), members

    def _rows_by(
        self, expressions: list[str], parameters: list[Any]
    ) -> list[tuple[Any, ...]]:
        """Return (table, packed places, values…) of the rows with the same values."""
        asking = self.asking
        values = [asking.computed(i, e) for i, e in enumerate(expressions)]
        groups = [1, *range(3, 3 + len(values))]
        with _exact_floats(self.connection):
            return fetch(
                self.connection,
                f"SELECT {asking.row}.tableoid::pg_catalog.int8, pg_catalog.string_agg("
                f"pg_catalog.tidsend({asking.row}.ctid), ''::pg_catalog.bytea), "
                f"{', '.join(values)} {asking.rows(computed=expressions)} "
                f"GROUP BY {', '.join(map(str, groups))}",
                parameters,
            )


@contextlib.contextmanager
def _exact_floats(connection: Connection) -> Iterator[None]:
    """Have texts of floats all their digits, whatever extra_float_digits is.

    An error in the block ends the transaction, or savepoint, which restores it.
    """
    apply = "SELECT pgembed._apply_settings($1::pg_catalog._text)"
    ((before,),) = fetch(connection, apply, [["extra_float_digits", "1"]])
    yield
    fetch(connection, apply, [before])


def _check(source: Source, asking: Source) -> None:
    if source.dimensions != asking.dimensions:
        raise VectorError(
            f"the vectors of embedding {asking.name!r} have {asking.dimensions} "
            f"dimensions, those of {source.name!r} {source.dimensions}: join "
            "embeddings of the same model"
        )


def _renumbered(ids: RowIds, mine: list[int], theirs: tuple[int, ...]) -> RowIds:
    """Return *ids* with the tables numbered as in *theirs*; unknown ones stay so."""
    known = {oid: number for number, oid in enumerate(theirs)}
    numbers = np.array([known.get(oid, 0xFFFF) for oid in mine] or [0], np.uint64)
    within = ids & np.uint64((1 << 48) - 1)
    return np.asarray(
        numbers[(ids >> np.uint64(48)).astype(np.int64)] << np.uint64(48) | within
    )


def _without(answer: BatchResult, own: NDArray[np.bool_], k: int) -> BatchResult:
    """Leave what is *own* (q, k) out of the answers, and of the rest all but *k*."""
    there = np.arange(own.shape[1]) < answer.counts[:, None]
    mine = there & own
    order = np.argsort(mine | ~there, axis=1, kind="stable")[:, :k]
    counts = np.minimum(answer.counts - mine.sum(axis=1), k)

    def taken(values: NDArray[Any], beyond: Any) -> NDArray[Any]:
        if not values.shape[1]:  # keys, where places will do
            return values
        kept = np.take_along_axis(values, order, axis=1)
        kept[np.arange(kept.shape[1]) >= counts[:, None]] = beyond
        return kept

    return dataclasses.replace(
        answer,
        keys=taken(answer.keys, _nothing(answer.keys)),
        distances=taken(answer.distances, np.inf),
        places=taken(answer.places, 0),
        counts=counts,
    )


def _nothing(keys: NDArray[Any]) -> int | None:
    return None if keys.dtype == object else 0


def _nearest(
    rows: Ints, keys: Ints, distances: NDArray[np.float64], k: int
) -> tuple[Ints, Ints, Ints]:
    """Choose the *k* nearest distinct keys of each row, from pairs (m,).

    Returns the pairs chosen (c,), their rows, and their rank from 0; equal distances
    rank by key.
    """
    by_pair = np.lexsort((distances, keys, rows))
    nearest = by_pair[_first(rows[by_pair], keys[by_pair])]
    order = nearest[np.lexsort((keys[nearest], distances[nearest], rows[nearest]))]
    owners = rows[order]
    starts = np.flatnonzero(_first(owners))
    counts = np.diff(np.append(starts, len(owners)))
    ranks = np.arange(len(owners)) - np.repeat(starts, counts)
    kept = ranks < k
    return order[kept], owners[kept], ranks[kept]


def _first(*columns: Ints) -> NDArray[np.bool_]:
    """Return whether each of sorted rows (m,) differs from the one before it."""
    new = np.ones(len(columns[0]), bool)
    if len(new):
        new[1:] = np.logical_or.reduce([c[1:] != c[:-1] for c in columns])
    return new
