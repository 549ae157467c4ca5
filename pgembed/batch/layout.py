"""Building layouts: read, partition, write in the order of posting lists."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg.pq import TransactionStatus

from pgembed.batch import codes, freshness, kmeans, regions, store
from pgembed.batch.codes import Codes
from pgembed.batch.cuts import Demand
from pgembed.batch.limits import thread_count
from pgembed.batch.metric import check_queries
from pgembed.batch.packing import WORD, Packing
from pgembed.batch.precision import (
    LOSSLESS,
    check_precision,
    check_rounding,
    measure,
)
from pgembed.batch.predicates import compile_conditions, read_listing
from pgembed.batch.qdtree import Leaf, Tree, grow
from pgembed.batch.rows import RowMap, Tables
from pgembed.batch.source import Source, describe, one_snapshot
from pgembed.batch.vectors import (
    NO_KEYS,
    Spool,
    Vectors,
    chosen_keys,
    directions,
    read_blocks,
    squared_norms,
)
from pgembed.batch.workload import Condition, Workload
from pgembed.errors import PgembedError, SettingError
from pgembed.postgres.borrowed import borrowed
from pgembed.postgres.connection import Connection, fetch_one, require_idle
from pgembed.settings import memory_bytes

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_LIST_ROWS = 1000
_PROBED_LISTS = 8
"""Lists that hold 99 of 100 nearest neighbours, where all rows count (measured)."""
_REGION_PROBES = 2
"""Rows around a coarse centroid on average, in those of the probed lists (measured)."""
_MOST_REGIONS = 64


@dataclasses.dataclass(frozen=True)
class Layout:
    """What was built: rows, posting lists, bytes on disk, seconds by stage."""

    version: str
    rows: int
    lists: int
    leaves: int
    bytes: int
    seconds: dict[str, float]
    description: dict[str, Any]
    """With a workload: of each leaf what holds in all of its rows, what in none; the
    rows of each coarse centroid; the rows that the workload touches, before and after.
    """


def build_layout(
    connection: Connection,
    embedding: str,
    *,
    workload: Workload | None = None,
    list_rows: int = _LIST_ROWS,
    least_rows: int | None = None,
    precision: str = "float32",
    memory: str | int = "512MB",
    threads: int | None = None,
    root: Path | None = None,
    recorder: Connection | None = None,
    begin: Callable[[Connection], object] | None = None,
) -> Layout:
    """Build the layout of *embedding* from one snapshot, in place of the one before.

    *workload*: queries like those to come; their conditions cut the rows into leaves of
    at least *least_rows* (default: 4 lists, or 1 % of all): everywhere, or only where
    their vectors show that it pays. A vector of zeros is near everything. *list_rows*:
    how many rows a posting list has on average. *precision*: 'float32', or 'float16',
    which takes half the room: batches then read the vectors of their answers from the
    table, whose distances they report, unless float16 holds every value (it does for
    halfvec). *memory*, *threads*: as in search_batch. *root*: the folder for layouts;
    default: beside the cache of models. *recorder*: the connection that records what
    was built, if the reader may not. *begin* is called first in the snapshot. Raises
    PgembedError when the connection is in a
    transaction and when the files cannot be written, SettingError when an argument
    makes no sense, FilterError for a bad condition, VectorError for a value that does
    not fit *precision* and for queries of other dimensions.
    """
    check_precision(precision)
    for name, value in (("list_rows", list_rows), ("least_rows", least_rows)):
        if value is None and name == "least_rows":
            continue
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise SettingError(f"{name} is {value!r}, but must be a whole number")
        if value < 1:
            raise SettingError(f"{name} is {value}, but must be at least 1")
    if not isinstance(workload, Workload | None):
        raise SettingError(
            f"workload is {workload!r}, but must be a pgembed.batch.workload.Workload"
        )
    require_idle(connection, "build a layout")
    limit, count = memory_bytes(memory), thread_count(threads)
    with borrowed(connection) as own:
        builder = Builder(own, list_rows, least_rows, precision, limit, count)
        with one_snapshot(own):
            if begin is not None:
                begin(own)
            source = describe(own, embedding)
            position = freshness.written_position(own)
            builder.read(source)
            if workload is not None and len(workload):
                builder.cut(workload)
            origin = freshness.origin(own, builder.tables.oids)
            copied = [source.vector, *source.keys]
            origin["columns"] = freshness.columns(own, origin["tables"], copied)
            origin["dimensions"] = source.dimensions
        # Not by the reader's word: its search_path is its own.
        database = freshness.database_name(recorder or own)
        place = store.folder(source.embedding, database, root)
        builder.partition()
        with _storing(place), store.Writer(place, precision) as writer:
            size = builder.write(writer, origin)
            freshness.await_flush(own, position)
            layout = builder.summary(writer.version, size, origin)
            _record(recorder or own, source, layout, place)
            writer.remove_others()
        _remove_orphans(recorder or own, database, root)
    return layout


@contextlib.contextmanager
def _storing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PgembedError(
            f"the layout cannot be written to {place}: {error}; make room there, or "
            "set PGEMBED_CACHE_DIR to another folder, beside which layouts will lie"
        ) from error


def drop_layout(
    connection: Connection, embedding: str, *, root: Path | None = None
) -> bool:
    """Forget the layout of *embedding*, and delete its files on this host.

    Returns whether there was one. Outside a transaction this is committed. In one, the
    files stay for the next build or drop of *embedding* outside: this may be rolled
    back, and an old snapshot does not see whose the other files are.
    """
    with borrowed(connection) as own:
        committed = own.info.transaction_status == TransactionStatus.IDLE
        (identity,) = fetch_one(
            own, "SELECT (pgembed._find_embedding(%s)).id", [embedding]
        )
        cursor = own.execute(
            "DELETE FROM pgembed.layout WHERE embedding = %s", [identity]
        )
        if committed:
            database = freshness.database_name(own)
            store.remove(store.folder(identity, database, root))
            _remove_orphans(own, database, root)
        return bool(cursor.rowcount)


def _remove_orphans(connection: Connection, database: str, root: Path | None) -> None:
    """Delete this host's layouts of embeddings that were dropped."""
    # Looked for first: who is in a folder by now has an embedding that can be seen.
    folders = store.folders(database, root)
    rows = connection.execute("SELECT e.id FROM pgembed.embedding AS e").fetchall()
    for identity in folders.keys() - {row[0] for row in rows}:
        store.remove(folders[identity])


class Builder:
    """The steps of one build."""

    def __init__(
        self,
        connection: Connection,
        list_rows: int,
        least_rows: int | None,
        precision: str,
        memory: int,
        threads: int,
    ) -> None:
        self.connection, self.list_rows = connection, list_rows
        self.least_rows, self.memory, self.threads = least_rows, memory, threads
        self.precision, self.rounding = precision, LOSSLESS
        self.tables = Tables()
        self.seconds: dict[str, float] = {}
        self.tree: Tree | None = None
        self.conditions: tuple[Condition, ...] = ()
        self.codes: list[Codes] = []

    def read(self, source: Source) -> None:
        """Read all rows that have a vector."""
        start = time.perf_counter()
        spool = Spool(source.dimensions, self.memory // 4)
        ids, xmins = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
        keys = [NO_KEYS]
        for block in read_blocks(
            self.connection, source, self.tables, self.memory // 4
        ):
            spool.add(block.values)
            self.rounding |= measure(block.values, self.precision)
            ids.append(block.ids)
            xmins.append(block.xmins)
            keys.append(block.keys)
        self.source = source
        self.vectors: Vectors = spool.finish()
        check_rounding(self.rounding, source.distance, self.vectors.norms)
        self.ids, self.xmins = np.concatenate(ids), np.concatenate(xmins)
        self.keys = np.concatenate(keys)
        self.seconds["reading"] = time.perf_counter() - start

    def cut(self, workload: Workload) -> None:
        """Grow the tree over the conditions that most queries of *workload* have."""
        start = time.perf_counter()
        weights = np.bincount(workload.members, minlength=len(workload.conditions))
        chosen = np.argsort(-weights, kind="stable")[:WORD]
        self.conditions = tuple(workload.conditions[i] for i in chosen)
        compiled, _ = compile_conditions(self.connection, self.source, self.conditions)
        listing = read_listing(
            self.connection,
            self.source,
            self.tables,
            Packing.of(compiled),
            rows=len(self.ids),
            memory=self.memory // 8,
        )
        terms = [term for condition in compiled for term in condition.terms]
        self.codes = codes.read(
            self.connection,
            self.source,
            self.tables,
            terms,
            self.ids,
            self.memory // 8,
        )
        words = np.zeros(len(self.ids), np.uint64)
        words[RowMap(self.ids).positions(listing.ids)] = listing.words[0]
        probed = _PROBED_LISTS * self.list_rows
        demand = self._demand(workload, probed)
        total = len(self.ids)
        least = self.least_rows or max(4 * self.list_rows, total // 100)
        self.tree = grow(
            words,
            demand.anywhere[chosen],
            least_rows=least,
            probed_rows=probed,
            centroids=self.regions.rows,
            near=demand.near[:, chosen],
        )
        self.seconds["cutting"] = time.perf_counter() - start

    def _demand(self, workload: Workload, probed: int) -> Demand:
        """Find coarse centroids, and around which of them queries ask for what."""
        located = np.flatnonzero(workload.queries.any(axis=1))
        check_queries(workload.part(located), self.source)
        total = len(self.ids)
        count = total // (_REGION_PROBES * probed) if len(located) else 1
        self.regions = regions.find(
            total, min(count, _MOST_REGIONS), self._space, self.threads
        )
        return self.regions.demand(
            self._brought(workload.queries, squared_norms(workload.queries)),
            workload.members,
            len(workload.conditions),
            self.source.distance,
        )

    def partition(self) -> None:
        """Assign every row to a posting list of its leaf."""
        total = len(self.vectors)
        self.lists = np.zeros(total, np.int64)
        leaf = np.zeros(total, np.int64) if self.tree is None else self.tree.leaf
        centres = [np.empty((0, self.source.dimensions), np.float32)]
        leaves: list[int] = []
        for number in range(int(leaf.max(initial=0)) + 1):
            rows = np.flatnonzero(leaf == number)
            found = self._partition(rows, len(leaves), self._list_rows(number))
            centres.append(found)
            leaves += [number] * len(found)
        self.centres = np.concatenate(centres)
        self.leaves = np.array(leaves, np.int64)

    def _list_rows(self, leaf: int) -> float:
        """Return how many rows the lists of a leaf are to have.

        Where it has few of the rows of its regions, long lists would be wide, and
        unlike those elsewhere, by which it is found out how far to look (measured).
        """
        if self.tree is None or len(self.regions) < 2:
            return self.list_rows
        found = self.tree.leaves[leaf]
        whole = np.isin(self.regions.rows, found.centroids).sum()
        share = found.rows / max(1, int(whole))
        return max(1.0, self.list_rows * math.sqrt(share))

    def _partition(self, rows: Ints, first: int, list_rows: float) -> Float32:
        """Number the lists of some rows from *first*; return their centres."""
        start = time.perf_counter()
        count = max(1, min(int(len(rows) / list_rows), int(4 * len(rows) ** 0.5)))
        size = kmeans.sample_size(len(rows), count)
        random = np.random.default_rng(0)
        chosen = np.sort(random.choice(len(rows), size, replace=False))
        centres = kmeans.train(self._space(rows[chosen]), count, threads=self.threads)
        trained = time.perf_counter()
        lists, _ = kmeans.assign(
            centres, len(rows), lambda part: self._space(rows[part]), self.threads
        )
        self.lists[rows] = lists + first
        for name, spent in (
            ("training", trained - start),
            ("assigning", time.perf_counter() - trained),
        ):
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        return centres

    def _space(self, rows: Ints) -> Float32:
        """Vectors as k-means sees them: for cosine, of length 1."""
        together = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
        if together:
            values = self.vectors.slice(int(rows[0]), int(rows[-1]) + 1)
        else:
            values = self.vectors.take(rows)
        return self._brought(values, self.vectors.norms[rows])

    def _brought(self, values: Float32, norms: Float32) -> Float32:
        """Return *values*, whose squared norms are *norms*, for cosine of length 1."""
        if self.source.distance != "cosine":
            return values
        return directions(values, norms)

    def write(self, writer: store.Writer, origin: dict[str, Any]) -> int:
        """Write the files; return their bytes."""
        start = time.perf_counter()
        order = np.argsort(self.lists, kind="stable")
        counts = np.bincount(self.lists, minlength=len(self.centres))
        for values in self.vectors.in_order(order):
            writer.add(values)
        norms = self.vectors.norms
        arrays: dict[str, NDArray[Any]] = {
            "ids": self.ids[order],
            "xmins": self.xmins[order],
            "keys": chosen_keys(self.keys, order),
            "norms": norms[order],
            "starts": np.concatenate([[0], np.cumsum(counts)]),
            "leaves": self.leaves,
            "centres": self.centres,
        }
        coded = [dataclasses.replace(c, rows=c.rows[order]) for c in self.codes]
        size = writer.finish(
            self.source.dimensions, arrays, origin, self.rounding, coded
        )
        self.seconds["writing"] = time.perf_counter() - start
        return size

    def _described(self, leaf: Leaf) -> dict[str, list[str]]:
        """Return what holds in all rows of *leaf*, and what in none.

        "centroid = 7" holds for rows that are nearest to coarse centroid 7.
        """
        holds = [str(self.conditions[i]) for i in leaf.holds]
        fails = [str(self.conditions[i]) for i in leaf.fails]
        others = sorted(set(range(len(self.regions))) - set(leaf.centroids))
        if len(others) >= len(leaf.centroids):
            holds.append(_centroids(list(leaf.centroids)))
        elif others:
            fails.append(_centroids(others))
        return {"holds": holds, "fails": fails}

    def summary(self, version: str, size: int, origin: dict[str, Any]) -> Layout:
        """Return what was built."""
        sizes = np.bincount(self.leaves[self.lists], minlength=1).tolist()
        leaves: list[dict[str, Any]] = [{"rows": rows} for rows in sizes]
        touched, centroids = None, None
        if self.tree is not None:
            centroids = np.bincount(self.regions.rows).tolist()
            touched = [self.tree.touched_before, self.tree.touched]
            for found, leaf in zip(leaves, self.tree.leaves, strict=False):
                found |= self._described(leaf)
        return Layout(
            version,
            len(self.ids),
            len(self.centres),
            len(leaves),
            size,
            self.seconds,
            {
                "leaves": leaves,
                "centroids": centroids,
                "rows_touched": touched,
                "precision": self.precision,
                "lossless": self.rounding.lossless,
                "seconds": self.seconds,
                "origin": origin,
            },
        )


def _centroids(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"centroid = {numbers[0]}"
    return f"centroid in ({', '.join(map(str, numbers))})"


def _record(
    connection: Connection, source: Source, layout: Layout, place: Path
) -> None:
    connection.execute(
        """
        INSERT INTO pgembed.layout AS l (embedding, version, host, path, build_seconds,
            rows, leaves, lists, bytes, description)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (embedding) DO UPDATE SET
            version = excluded.version, host = excluded.host, path = excluded.path,
            built_at = excluded.built_at, build_seconds = excluded.build_seconds,
            rows = excluded.rows, leaves = excluded.leaves, lists = excluded.lists,
            bytes = excluded.bytes, description = excluded.description
        """,
        [
            source.embedding,
            layout.version,
            socket.gethostname(),
            str(place),
            sum(layout.seconds.values()),
            layout.rows,
            layout.leaves,
            layout.lists,
            layout.bytes,
            json.dumps(layout.description),
        ],
    )
    if connection.info.transaction_status.name != "IDLE":
        connection.commit()
