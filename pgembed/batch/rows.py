"""Rows by their place in a table, which a snapshot keeps still.

A row id is a uint64: the table's number (16 bits), block (32) and offset (16). Within
one snapshot it names one version of one row; together with xmin it does so for as long
as the table is not rewritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from pgembed.batch.source import Source
from pgembed.errors import PgembedError
from pgembed.postgres.connection import Connection

RowIds = NDArray[np.uint64]
Ints = NDArray[np.int64]

_TID = np.dtype([("block", ">u4"), ("offset", ">u2")])
_LOOKUP = 50_000


class Tables:
    """Numbers for the tables that rows are in, by oid."""

    def __init__(self, oids: Sequence[int] = ()) -> None:
        self.oids = list(oids)

    def number(self, oid: int) -> int:
        """Return the number of the table *oid*, a new one if need be."""
        if oid not in self.oids:
            self.oids.append(oid)
        return self.oids.index(oid)

    def ids(self, oid: int, tids: NDArray[Any]) -> RowIds:
        """Return row ids for *tids*, an array with fields block and offset."""
        table = np.uint64(self.number(oid) << 48)
        block = tids["block"].astype(np.uint64) << np.uint64(16)
        return np.asarray(table | block | tids["offset"].astype(np.uint64))


class RowMap:
    """Positions by row id."""

    def __init__(self, ids: RowIds) -> None:
        # Rows are usually read in the order of their ids.
        sorted_already = bool((ids[1:] > ids[:-1]).all())
        self._order = None if sorted_already else np.argsort(ids)
        self._sorted = ids if self._order is None else ids[self._order]

    def positions(self, ids: RowIds) -> Ints:
        """Return the position of each id, -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(ids), -1, np.int64)
        found = np.searchsorted(self._sorted, ids)
        found[found == len(self._sorted)] = 0
        known = self._sorted[found] == ids
        if self._order is not None:
            found = self._order[found]
        return np.where(known, found, -1)


def places(ids: RowIds) -> tuple[RowIds, RowIds]:
    """Return the block (n,) and the offset (n,) of each row in its table."""
    return (ids >> np.uint64(16)) & np.uint64(0xFFFFFFFF), ids & np.uint64(0xFFFF)


def at_a_time(ids: RowIds) -> Iterator[RowIds]:
    """Yield as many of *ids* (n,) as a statement is asked for at a time."""
    for start in range(0, len(ids), _LOOKUP):
        yield ids[start : start + _LOOKUP]


class PackedArray:
    """Values (n,) to be passed as one array parameter, in binary."""

    oid: ClassVar[int]
    array_oid: ClassVar[int]
    dtype: ClassVar[Any]

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    def packed(self) -> NDArray[Any]:
        """Return the values as PostgreSQL sends them."""
        return self.values.astype(self.dtype)


class Int4Array(PackedArray):
    """An ``int4[]`` parameter."""

    oid, array_oid, dtype = 23, 1007, ">i4"


class Int8Array(PackedArray):
    """An ``int8[]`` parameter."""

    oid, array_oid, dtype = 20, 1016, ">i8"


class Float8Array(PackedArray):
    """A ``float8[]`` parameter."""

    oid, array_oid, dtype = 701, 1022, ">f8"


class TidArray(PackedArray):
    """Row ids of one table as a ``tid[]`` parameter."""

    oid, array_oid, dtype = 27, 1010, _TID

    def packed(self) -> NDArray[Any]:
        """Return blocks and offsets."""
        tids = np.empty(len(self.values), _TID)
        tids["block"], tids["offset"] = places(self.values)
        return tids


def _dumper(array: type[PackedArray]) -> type[Dumper]:
    class PackedDumper(Dumper):
        format = Format.BINARY
        oid = array.array_oid

        def dump(self, obj: PackedArray) -> Buffer:
            values = obj.packed()
            header = np.array([1, 0, obj.oid, len(values), 1], ">u4").tobytes()
            elements = np.empty(len(values), [("size", ">i4"), ("value", values.dtype)])
            elements["size"], elements["value"] = values.itemsize, values
            return header + elements.tobytes()

    return PackedDumper


_DUMPERS = {
    array: _dumper(array) for array in (Int4Array, Int8Array, Float8Array, TidArray)
}


@dataclasses.dataclass(frozen=True)
class Images:
    """Values of the type *oid* as PostgreSQL sends them, as one array parameter."""

    oid: int
    values: tuple[bytes | None, ...]


class _ImagesDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Images) -> Buffer:
        count = len(obj.values)
        parts = [np.array([1, None in obj.values, obj.oid, count, 1], ">u4").tobytes()]
        for value in obj.values:
            size = -1 if value is None else len(value)
            parts += [size.to_bytes(4, "big", signed=True), value or b""]
        return b"".join(parts)


def raw_cursor(connection: Connection) -> psycopg.RawCursor[Any]:
    """Return a cursor for $1-style SQL that sends one statement and no more."""
    cursor = psycopg.RawCursor(connection, row_factory=psycopg.rows.tuple_row)
    cursor.format = Format.BINARY
    for array, dumper in _DUMPERS.items():
        cursor.adapters.register_dumper(array, dumper)
    cursor.adapters.register_dumper(Images, _ImagesDumper)
    return cursor


def fetch(
    connection: Connection, statement: str, parameters: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """Run one statement of ours; results travel in binary."""
    with raw_cursor(connection) as cursor:
        return cursor.execute(statement.encode(), parameters, binary=True).fetchall()


def unpack(data: bytes | None, extra: Sequence[tuple[str, str]] = ()) -> NDArray[Any]:
    """Read an aggregate of ``tidsend(ctid)`` followed by fields *extra*."""
    return np.frombuffer(data or b"", np.dtype([*_TID.descr, *extra]))


def look_up(
    connection: Connection, source: Source, tables: Tables, ids: RowIds, columns: str
) -> list[tuple[Any, ...]]:
    """Select *columns* of the rows *ids* (alias t), after their place in *ids*.

    Rows come in no particular order.
    """
    found: list[tuple[Any, ...]] = []
    for number, part in enumerate(at_a_time(ids)):
        start = number * _LOOKUP
        found += [
            (row[0] - 1 + start, *row[1:])
            for row in fetch(
                connection,
                _look_up(source, columns),
                _place_arrays(source, tables, part),
            )
        ]
    return found


@contextlib.contextmanager
def readable(source: Source) -> Iterator[None]:
    """Raise PgembedError for a key of *source* in a block that Python cannot hold."""
    try:
        yield
    except psycopg.DataError as error:
        if error.sqlstate is not None:  # which only the server gives
            raise
        raise PgembedError(
            f"a key of {source.relation} ({', '.join(source.keys)}) has no value in "
            f"Python: {error}; have the answers written to a table instead, by pgembed "
            "batch, or in SQL by pgembed.search_batch or pgembed.knn_join"
        ) from None


def rank_by_key(
    connection: Connection, source: Source, tables: Tables, ids: RowIds
) -> Ints:
    """Return for each row (n,) the rank of its key among them, equal for equal keys.

    The order is that of the key columns' own types and collations.
    """
    ranks = np.zeros(len(ids), np.int64)
    columns = f"pg_catalog.dense_rank() OVER (ORDER BY {source.key_list('t')})"
    rows = fetch(
        connection, _look_up(source, columns), _place_arrays(source, tables, ids)
    )
    places, values = np.array(rows, np.int64).reshape(-1, 2).T
    ranks[places - 1] = values
    return ranks


def rank_together(
    connection: Connection, *several: tuple[Source, Tables, RowIds]
) -> list[Ints]:
    """Return the ranks (n,) of rows, as :func:`rank_by_key`, among those of them all.

    Sources have one key.
    """
    parts: list[str] = []
    parameters: list[Any] = []
    for number, (source, tables, ids) in enumerate(several):
        keys = ", ".join(f"t.{key} AS key_{i}" for i, key in enumerate(source.keys))
        found = _look_up(source, f"{number} AS part, {keys}", len(parameters) + 1)
        parts.append(found)
        parameters += _place_arrays(source, tables, ids)
    order = ", ".join(f"a.key_{i}" for i in range(len(several[0][0].keys)))
    rows = fetch(
        connection,
        f"SELECT a.part, a.place, "  # noqa: S608 - names that PostgreSQL quoted
        f"pg_catalog.dense_rank() OVER (ORDER BY {order}) "
        f"FROM ({' UNION ALL '.join(parts)}) AS a",
        parameters,
    )
    numbers, places, values = np.array(rows, np.int64).reshape(-1, 3).T
    ranks = [np.zeros(len(ids), np.int64) for _, _, ids in several]
    for number, part in enumerate(ranks):
        chosen = numbers == number
        part[places[chosen] - 1] = values[chosen]
    return ranks


def _look_up(source: Source, columns: str, parameter: int = 1) -> str:
    """Return SQL for the rows of :func:`_place_arrays`, which are ``$parameter`` …"""
    places = f"pg_catalog.unnest(${parameter}::pg_catalog._tid)"
    if source.divided:
        oids = f"pg_catalog.unnest(${parameter + 1}::pg_catalog._int8)"
        places = f"ROWS FROM ({places}, {oids})"
        names, match = "tid, oid", " AND t.tableoid::pg_catalog.int8 = u.oid"
    else:
        names, match = "tid", ""
    return (
        f"SELECT u.place, {columns} "  # noqa: S608 - names that PostgreSQL quoted
        f"FROM {places} WITH ORDINALITY AS u ({names}, place) "
        f"INNER JOIN {source.target} AS t ON t.ctid = u.tid{match}"
    )


def _place_arrays(source: Source, tables: Tables, ids: RowIds) -> list[Any]:
    if not source.divided:
        return [TidArray(ids)]
    numbers = (ids >> np.uint64(48)).astype(np.int64)
    return [TidArray(ids), Int8Array(np.array(tables.oids, np.int64)[numbers])]
