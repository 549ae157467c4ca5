"""The vectors of a snapshot: read from the table, or taken from a layout.

A layout lends the vectors of the rows that have not changed since; changed and new
ones are read, and join the posting lists they belong to.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgembed.batch import codes, freshness, kmeans, store
from pgembed.batch.predicates import Listing
from pgembed.batch.rows import RowIds, RowMap, Tables, fetch
from pgembed.batch.source import Source
from pgembed.batch.vectors import (
    NO_KEYS,
    Spool,
    Vectors,
    chosen_keys,
    directions,
    read_blocks,
)
from pgembed.postgres.connection import Connection, fetch_one

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_MOST_CHANGED = 0.3


@dataclasses.dataclass(frozen=True)
class Segments:
    """Posting lists, and for each its rows: those of the layout, and newer ones."""

    lists: store.Lists
    extra: Ints
    """(c + 1,): where the newer rows of each list start."""

    def slices(self, number: int) -> list[slice]:
        """Return where the rows of a list are."""
        found = []
        for starts in (self.lists.starts, self.extra):
            if starts[number] < starts[number + 1]:
                found.append(slice(int(starts[number]), int(starts[number + 1])))
        return found

    def of(self, positions: Ints) -> Ints:
        """Return the list of each position."""
        base = np.searchsorted(self.lists.starts, positions, "right") - 1
        newer = np.searchsorted(self.extra, positions, "right") - 1
        return np.where(positions < self.extra[0], base, newer)

    def sizes(self) -> Ints:
        """Return (c,): the rows of each list."""
        return np.asarray(np.diff(self.lists.starts) + np.diff(self.extra))

    def counts(self, positions: Ints) -> Ints:
        """Return (c,): how many of *positions*, which are sorted, are in each list."""
        return np.asarray(
            np.diff(np.searchsorted(positions, self.lists.starts))
            + np.diff(np.searchsorted(positions, self.extra))
        )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Vectors with the ids of their rows, and where the listed rows are in it."""

    vectors: Vectors
    ids: RowIds
    keys: Ints
    """(n,), or (0,) unless the key is one column of integers."""
    positions: Ints
    """(m,): the position of each row of the listing."""
    segments: Segments | None
    changed: int
    """Rows that the layout did not have, or not like this."""
    _maps: tuple[RowMap, ...]
    _live: NDArray[np.bool_] | None

    def by_list(self, positions: Ints) -> Ints:
        """Return (lists,): how many of sorted *positions* each posting list has."""
        if self.segments is None:
            return np.empty(0, np.int64)
        return self.segments.counts(positions)

    def find(self, ids: RowIds) -> Ints:
        """Return the positions of visible rows with these *ids*, in their order."""
        found = self._maps[0].positions(ids)
        if self._live is not None:
            found[~self._live[found] | (found < 0)] = -1
        if len(self._maps) > 1:
            newer = self._maps[1].positions(ids)
            base = len(self.ids) - self.changed
            found = np.where(newer >= 0, newer + base, found)
        return found[found >= 0]


def read_table(
    connection: Connection,
    source: Source,
    tables: Tables,
    listing: Listing,
    memory: int,
) -> Corpus:
    """Read all vectors."""
    spool = Spool(source.dimensions, memory // 4, len(listing.ids))
    parts, keys = [np.empty(0, np.uint64)], [NO_KEYS]
    for block in read_blocks(connection, source, tables, memory // 4):
        spool.add(block.values)
        parts.append(block.ids)
        keys.append(block.keys)
    ids = np.concatenate(parts)
    places = RowMap(ids)
    positions = places.positions(listing.ids)
    return Corpus(
        spool.finish(), ids, np.concatenate(keys), positions, None, 0, (places,), None
    )


def find_layout(
    connection: Connection, source: Source, root: Path | None
) -> store.Store | str:
    """Open the layout of an embedding, or say why it cannot be used."""
    row = fetch_one(
        connection,
        "SELECT version::text, path, host FROM pgembed.layout WHERE embedding = %s",
        [source.embedding],
    )
    if row is None:
        return "there is none"
    place = Path(row[1])
    if root is not None:
        database = freshness.database_name(connection)
        place = store.folder(source.embedding, database, root)
    found = store.open_store(place, row[0])
    if found is None:
        return (
            f"its files are not in {place}, or not whole, or of another version of "
            f"pgembed (built on {row[2]})"
        )
    # The caller needs the right to read them, also where no row has changed; and from
    # here on, nobody can rewrite the table.
    copied = [source.vector, *source.keys]
    statement = f"SELECT {', '.join(copied)} FROM {source.target} LIMIT 0"  # noqa: S608
    fetch(connection, statement)
    (fault,) = fetch_one(
        connection,
        "SELECT pgembed._layout_fault(e, %s::pg_catalog.jsonb) "
        "FROM pgembed.embedding AS e WHERE e.id = %s",
        [json.dumps(found.origin), source.embedding],
    )
    if fault is not None:
        return str(fault)
    known = codes.known(connection, source, found.origin["tables"], found.codes)
    return dataclasses.replace(found, codes=known)


def from_layout(
    connection: Connection,
    source: Source,
    tables: Tables,
    listing: Listing,
    layout: store.Store,
    memory: int,
) -> Corpus | None:
    """Take the vectors from *layout*; None when too many rows have changed.

    *tables* must number the layout's tables as the layout does.
    """
    if not len(layout.ids):
        return None
    places = RowMap(layout.ids)
    positions = places.positions(listing.ids)
    same = (positions >= 0) & (layout.xmins[positions] == listing.xmins)
    newer = np.flatnonzero(~same)
    if len(newer) > _MOST_CHANGED * len(layout.ids) + 1000:
        return None
    live = np.zeros(len(layout.ids), bool)
    live[positions[same]] = True
    base = len(layout.ids)
    read = _read_newer(connection, source, tables, listing.ids[newer], layout, memory)
    positions[newer] = base + read.places.positions(listing.ids[newer])
    return Corpus(
        Vectors(
            [layout.vectors, *read.vectors.parts],
            np.concatenate([layout.norms, read.vectors.norms]),
            layout.rounding,
        ),
        np.concatenate([layout.ids, read.ids]),
        np.concatenate([layout.keys, read.keys]),
        positions,
        Segments(layout.lists, base + read.starts),
        len(newer),
        (places, read.places),
        live,
    )


@dataclasses.dataclass(frozen=True)
class _Newer:
    """Rows that a layout does not have, in the order of its lists."""

    vectors: Vectors
    ids: RowIds
    keys: Ints
    starts: Ints
    """(c + 1,): where those of each list start."""

    @functools.cached_property
    def places(self) -> RowMap:
        """Positions by id."""
        return RowMap(self.ids)


def _read_newer(
    connection: Connection,
    source: Source,
    tables: Tables,
    ids: RowIds,
    layout: store.Store,
    memory: int,
) -> _Newer:
    spool = Spool(source.dimensions, memory // 8, len(ids))
    wanted = RowMap(ids)
    read, keys = [ids[:0]], [NO_KEYS]
    for block in read_blocks(connection, source, tables, memory // 8, ids):
        chosen = np.flatnonzero(wanted.positions(block.ids) >= 0)
        spool.add(block.values[chosen])
        read.append(block.ids[chosen])
        keys.append(chosen_keys(block.keys, chosen))
    vectors = spool.finish()
    lists = _nearest_lists(layout, vectors, source.distance)
    order = np.argsort(lists, kind="stable")
    counts = np.bincount(lists, minlength=len(layout.lists))
    return _Newer(
        _ordered(vectors, order, memory // 8),
        np.concatenate(read)[order],
        chosen_keys(np.concatenate(keys), order),
        np.concatenate([[0], np.cumsum(counts)]),
    )


def _ordered(vectors: Vectors, order: Ints, memory: int) -> Vectors:
    spool = Spool(vectors.dimensions, memory, len(order))
    for values in vectors.in_order(order):
        spool.add(values)
    return spool.finish()


def fetch_vectors(
    connection: Connection, source: Source, tables: Tables, ids: RowIds, memory: int
) -> Float32:
    """Read the vectors (n, d) of the rows *ids* (n,) as the table has them."""
    values = np.zeros((len(ids), source.dimensions), np.float32)
    rows = RowMap(ids)
    for block in read_blocks(connection, source, tables, memory, ids):
        found = rows.positions(block.ids)
        values[found[found >= 0]] = block.values[found >= 0]
    return values


def _nearest_lists(layout: store.Store, vectors: Vectors, distance: str) -> Ints:
    if not len(vectors) or not len(layout.lists):
        return np.zeros(len(vectors), np.int64)

    def space(part: slice) -> Float32:
        values = vectors.slice(part.start, part.stop)
        if distance != "cosine":
            return values
        return directions(values, vectors.norms[part])

    lists, _ = kmeans.assign(layout.lists.centres, len(vectors), space, 1)
    return lists
