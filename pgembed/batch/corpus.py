"""The vectors of a snapshot: read from the table, or taken from a layout.

A layout lends the vectors of the rows that have not changed since; changed and new
ones are read, and join the posting lists they belong to.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgembed.batch import freshness, kmeans, store
from pgembed.batch.predicates import Listing
from pgembed.batch.rows import RowIds, RowMap, Tables, look_up
from pgembed.batch.source import Source
from pgembed.batch.vectors import (
    Spool,
    Vectors,
    directions,
    read_blocks,
    squared_norms,
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
    parts = [np.empty(0, np.uint64)]
    for block in read_blocks(connection, source, tables, memory // 4):
        spool.add(block.values)
        parts.append(block.ids)
    ids = np.concatenate(parts)
    places = RowMap(ids)
    positions = places.positions(listing.ids)
    return Corpus(spool.finish(), ids, positions, None, 0, (places,), None)


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
        return f"its files are not, or not whole, in {place} (built on {row[2]})"
    if found.origin["column"] != [source.target, source.vector, source.dimensions]:
        return "it was built for another column"
    if not freshness.still_holds(connection, found.origin):
        return "the table was rewritten since it was built"
    return found


def from_layout(
    connection: Connection,
    source: Source,
    tables: Tables,
    listing: Listing,
    layout: store.Store,
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
    ids = listing.ids[newer]
    values = fetch_vectors(connection, source, tables, ids)
    numbers = _nearest_lists(layout, values, source.distance)
    order = np.argsort(numbers, kind="stable")
    base = len(layout.ids)
    positions[newer[order]] = base + np.arange(len(newer))
    counts = np.bincount(numbers, minlength=len(layout.lists))
    extra = base + np.concatenate([[0], np.cumsum(counts)])
    norms = np.concatenate([layout.norms, squared_norms(values[order])])
    return Corpus(
        Vectors([layout.vectors, values[order]], norms, layout.rounding),
        np.concatenate([layout.ids, ids[order]]),
        positions,
        Segments(layout.lists, extra),
        len(newer),
        (places, RowMap(ids[order])),
        live,
    )


def fetch_vectors(
    connection: Connection, source: Source, tables: Tables, ids: RowIds
) -> Float32:
    """Read the vectors (n, d) of the rows *ids* (n,) as the table has them."""
    values = np.zeros((len(ids), source.dimensions), np.float32)
    for place, vector in look_up(connection, source, tables, ids, f"t.{source.vector}"):
        values[place] = vector
    return values


def _nearest_lists(layout: store.Store, values: Float32, distance: str) -> Ints:
    if not len(values) or not len(layout.lists):
        return np.zeros(len(values), np.int64)
    space = values
    if distance == "cosine":
        space = directions(values, squared_norms(values))
    lists, _ = kmeans.assign(layout.lists.centres, len(space), space.__getitem__, 1)
    return lists
