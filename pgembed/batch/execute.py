"""One batch, from rows to answers, in one snapshot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch import singly
from pgembed.batch.corpus import (
    Corpus,
    fetch_vectors,
    find_layout,
    from_layout,
    read_table,
)
from pgembed.batch.engine import load_kernels
from pgembed.batch.metric import Metric, comparable, overflows, underflows
from pgembed.batch.passing import Conditions, Passing
from pgembed.batch.predicates import Listing
from pgembed.batch.ranking import Ranking, first_width
from pgembed.batch.result import BatchResult, Report
from pgembed.batch.rows import RowIds, Tables, look_up, rank_by_key, readable
from pgembed.batch.source import Source
from pgembed.batch.steady import until_steady
from pgembed.batch.store import Store
from pgembed.batch.strategy import Searcher
from pgembed.batch.topk import TopK
from pgembed.batch.workload import Workload
from pgembed.postgres.connection import Connection, fetch_one

Ints = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a batch is to be carried out; *memory* in bytes."""

    recall: float
    memory: int
    threads: int
    layout: bool = True
    layouts: Path | None = None
    progress: Progress | None = None
    few_by_sql: bool = True
    """Whether a few queries may be answered one by one, when that is cheaper."""
    answered: Callable[[int, int], None] | None = None
    """Called with how many queries are answered, and how many there are."""
    steady: bool = False
    """Whether each statement may see other rows: READ COMMITTED."""
    keys: bool = True
    """Whether keys are wanted that have to be looked up, or only places."""


class Batch:
    """One batch; its connection is in a transaction that sees one snapshot."""

    def __init__(
        self,
        connection: Connection,
        source: Source,
        workload: Workload,
        options: Options,
    ) -> None:
        self.connection, self.source, self.workload = connection, source, workload
        self.options = options
        self.tables = Tables()
        self.report = Report(queries=len(workload), conditions=len(workload.conditions))

    def run(self) -> BatchResult:
        """Return the answer."""
        self.workload = comparable(self.workload, self.source)
        options = self.options
        layout = self._layout() if len(self.workload) else None
        with self.report.stage("compiling"):
            conditions = Conditions(
                self.connection,
                self.source,
                self.workload.conditions,
                options.threads,
                layout.codes if layout is not None else (),
            )
        if not len(self.workload):
            return self._nothing()
        if self._singly(layout):
            return self._one_by_one()
        if not options.steady:
            return self._together(conditions, layout)
        return until_steady(
            self.connection,
            self.source,
            lambda: self._together(conditions, layout),
            rows=self._rows(layout),
            memory=options.memory,
        )

    def _one_by_one(self) -> BatchResult:
        return singly.answer(
            self.connection,
            self.source,
            self.workload,
            self.options.recall,
            self.report,
            keys=self.options.keys,
        )

    def _beyond_float32(self, corpus: Corpus) -> bool:
        """Whether only SQL can say which distances count as infinite, or as none.

        It cannot be asked for chunks, whose vectors a model made.
        """
        queries, norms = self.workload.queries, corpus.vectors.norms
        return not self.source.chunked and (
            overflows(queries, norms)
            or (self.source.distance == "cosine" and underflows(queries, norms))
        )

    def _together(self, conditions: Conditions, layout: Store | None) -> BatchResult:
        load_kernels()
        self._say("predicates", 0)
        with self.report.stage("predicates"):
            rounds = conditions.rounds(self._rows(layout), self.options.memory)
            listing = conditions.listing(self.tables, rounds[0])
        self.report.rows = len(listing.ids)
        self._say("reading", 0)
        with self.report.stage("reading"):
            corpus = self._vectors(layout, listing)
        if self._beyond_float32(corpus):
            return self._one_by_one()
        listed = corpus.positions
        if layout is not None and corpus.segments is None:
            with self.report.stage("predicates"):
                conditions.without_codes()
                listing = conditions.listing(self.tables, rounds[0])
                listed = corpus.find(listing.ids)
        workload = self.workload
        most = min(int(workload.k.max()), len(corpus.vectors))
        positions = np.full((len(workload), most), -1, np.int64)
        distances = np.full((len(workload), most), np.inf)
        done = 0
        self._count(done)
        for number, part in enumerate(rounds):
            with self.report.stage("predicates"):
                if number:
                    listing = conditions.listing(self.tables, part)
                    listed = corpus.find(listing.ids)
                passing = conditions.passing(part, listing, listed, corpus, self.tables)
            for chosen in self._portions([*part.shared, *part.alone]):
                found, far = self._answer(workload.part(chosen), corpus, passing)
                width = min(most, found.shape[1])
                positions[chosen, :width] = found[:, :width]
                distances[chosen, :width] = far[:, :width]
                done += len(chosen)
                self._count(done)
        return self._result(corpus, positions, distances)

    def _singly(self, layout: Store | None) -> bool:
        with self.report.stage("planning"):
            return self.options.few_by_sql and singly.is_cheaper(
                self.connection,
                self.source,
                self.workload,
                recall=self.options.recall,
                layout=layout is not None,
            )

    def _layout(self) -> Store | None:
        if not self.options.layout:
            return None
        with self.report.stage("opening"):
            found = find_layout(self.connection, self.source, self.options.layouts)
        if isinstance(found, str):
            self.report.layout = f"not used: {found}"
            return None
        self.tables = Tables(found.origin["tables"])
        self.report.layout = found.version
        return found

    def _rows(self, layout: Store | None) -> int:
        if layout is not None:
            return len(layout.ids)
        (rows,) = fetch_one(
            self.connection,
            "SELECT (pgembed._table_size(%s::pg_catalog.text::pg_catalog.regclass))"
            ".rows",
            [self.source.relation],
        )
        return int(rows)

    def _vectors(self, layout: Store | None, listing: Listing) -> Corpus:
        arguments = (self.connection, self.source, self.tables, listing)
        memory = self.options.memory
        corpus = None if layout is None else from_layout(*arguments, layout, memory)
        if corpus is None:
            if layout is not None:
                self.report.layout = "not used: too many rows have changed"
            return read_table(*arguments, memory)
        self.report.changed = corpus.changed
        return corpus

    def _portions(self, conditions: list[int]) -> list[Ints]:
        """Cut the queries with these conditions so that they and candidates fit.

        Those of similar k come together.
        """
        k = self.workload.k
        portions = []
        chosen = np.isin(self.workload.members, conditions)
        classes = np.ceil(np.log2(k)).astype(np.int64).clip(4)
        for size in np.unique(classes[chosen]):
            members = np.flatnonzero(chosen & (classes == size))
            threads = self.options.threads
            heaps = TopK.bytes_for(1, first_width(k[members])) * threads
            each = heaps + (8 + 4 * threads) * self.source.dimensions
            most = max(1, self.options.memory // 6 // each)
            portions += np.array_split(members, -(-len(members) // most))
        return portions

    def _answer(
        self, part: Workload, corpus: Corpus, passing: Passing
    ) -> tuple[Ints, Float64]:
        options = self.options

        def fetch(positions: Ints) -> Float32:
            self.report.fetched += len(positions)
            with self.report.stage("fetching"):
                return fetch_vectors(
                    self.connection,
                    self.source,
                    self.tables,
                    corpus.ids[positions],
                    options.memory // 8,
                )

        with self.report.stage("preparing"):
            metric = Metric(self.source.distance, part.queries, corpus.vectors, fetch)
            searcher = Searcher(
                metric,
                passing,
                corpus.segments,
                part.members,
                part.k,
                recall=options.recall,
                threads=options.threads,
                report=self.report,
                tick=lambda share: self._say("comparing", share),
            )

        def ranks(positions: Ints) -> Ints:
            with self.report.stage("ties"):
                return rank_by_key(
                    self.connection, self.source, self.tables, corpus.ids[positions]
                )

        ranking = Ranking(metric, part.k, searcher, ranks, chunked=self.source.chunked)
        with self.report.stage("ranking"):
            ranking.run()
        self.report.repeated += ranking.repeated
        return ranking.positions, ranking.distances

    def _nothing(self) -> BatchResult:
        keys, places = np.empty((0, 0), np.int64), np.empty((0, 0), np.uint64)
        distances, counts = np.empty((0, 0)), np.empty(0, np.int64)
        return BatchResult(keys, distances, counts, self.report, places)

    def _result(
        self, corpus: Corpus, positions: Ints, distances: Float64
    ) -> BatchResult:
        there = positions >= 0
        places = np.zeros(positions.shape, np.uint64)
        places[there] = corpus.ids[positions[there]]
        with self.report.stage("keys"):
            keys = self._keys(corpus, positions, there)
        return BatchResult(
            keys,
            distances,
            there.sum(axis=1),
            self.report,
            places,
            tuple(self.tables.oids),
        )

    def _keys(
        self, corpus: Corpus, positions: Ints, there: NDArray[np.bool_]
    ) -> NDArray[Any]:
        if self.source.whole_key:
            numbers = np.zeros(positions.shape, np.int64)
            numbers[there] = corpus.keys[positions[there]]
            return numbers
        if not self.options.keys:
            return np.empty((len(positions), 0), np.int64)
        distinct, inverse = np.unique(positions[there], return_inverse=True)
        values = self._looked_up(corpus.ids[distinct])
        nothing = None if values.dtype == object else 0
        keys = np.full(positions.shape, nothing, values.dtype)
        keys[there] = values[inverse]
        return keys

    def _looked_up(self, ids: RowIds) -> NDArray[Any]:
        columns = self.source.key_values("t")
        with readable(self.source):
            rows = look_up(self.connection, self.source, self.tables, ids, columns)
        keys = np.empty(len(ids), object)
        for place, *key in rows:
            keys[place] = key[0] if len(key) == 1 else tuple(key)
        if rows and all(type(key) is int for key in keys):
            return keys.astype(np.int64)
        return keys

    def _count(self, done: int) -> None:
        if self.options.answered is not None:
            self.options.answered(done, len(self.workload))

    def _say(self, stage: str, share: float) -> None:
        if self.options.progress is not None:
            self.options.progress(stage, share)
