"""COPY BINARY into NumPy arrays and out of them, a block of rows at a time.

PostgreSQL sends one message per row. The messages are strung together, and taken
apart by NumPy: nothing but the stringing is done row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from psycopg import sql
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import Format
from psycopg.waiting import Wait

from pgembed.errors import VectorError
from pgembed.postgres.connection import Connection
from pgembed.postgres.vectors import Float32

Array = NDArray[Any]

_BLOCK_ROWS = 65_536
# The signature, the flags and the length of an extension that does not exist. It
# comes in one message with the first row, or with the trailer when there is none.
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ENDS = (_TRAILER, _HEADER + _TRAILER)
_END_SIZES = tuple(map(len, _ENDS))

# PostgreSQL's epoch is 2000-01-01; NumPy's is 1970-01-01.
_EPOCH = np.datetime64("2000-01-01")

_FIXED: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "bool": ("?", np.copy),
    "int2": (">i2", lambda a: a.astype(np.int16)),
    "int4": (">i4", lambda a: a.astype(np.int32)),
    "int8": (">i8", lambda a: a.astype(np.int64)),
    "float4": (">f4", lambda a: a.astype(np.float32)),
    "float8": (">f8", lambda a: a.astype(np.float64)),
    "uuid": ("V16", np.copy),
    "date": (">i4", lambda a: _EPOCH + a.astype("m8[D]")),
    "timestamp": (">i8", lambda a: _EPOCH + a.astype("m8[us]")),
    "timestamptz": (">i8", lambda a: _EPOCH + a.astype("m8[us]")),
}
_VECTORS = {"vector": ">f4", "halfvec": ">f2"}


def copy_columns(
    connection: Connection, query: str, *, block_rows: int = _BLOCK_ROWS
) -> Iterator[list[Array]]:
    """Yield blocks of the result of *query*: a list with one array per column.

    ``vector`` and ``halfvec`` give float32 (n, d); numbers, booleans, uuid (V16),
    dates and timestamps (datetime64) typed arrays (n,), without NULLs; every other
    type an object array (n,) of what psycopg makes of it, None for NULL.

    *query* is SQL text of ours, without parameters. Raises VectorError for a NULL
    where the array cannot hold one, and for vectors of different lengths.
    """
    columns = _describe(connection, query)
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(_trusted(query))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        ended = False
        while not ended:
            messages = _Messages()
            reading = _collect(connection.pgconn, block_rows, messages)
            ended = connection.wait(reading)
            if messages.lengths:
                yield _Block(messages).columns(columns)
        copy.read()


def write_columns(
    connection: Connection,
    table: str,
    names: Sequence[str],
    columns: Sequence[tuple[str, Array]],
) -> int:
    """Append rows to *table*: for each column its type in COPY, and values (n,).

    Returns how many were written, which triggers may prevent. A type is NumPy's name
    of a number in network order, such as ">i4". *table* and *names* are quoted already.
    """
    fields = [("columns", ">i2")]
    for number, (type_, _) in enumerate(columns):
        fields += [(f"size {number}", ">i4"), (f"value {number}", type_)]
    row = np.dtype(fields)
    listed = ", ".join(names)
    statement = _trusted(f"COPY {table} ({listed}) FROM STDIN (FORMAT binary)")
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            copy.write(_HEADER)
            for start in range(0, len(columns[0][1]), _BLOCK_ROWS):
                parts = [values[start : start + _BLOCK_ROWS] for _, values in columns]
                rows = np.empty(len(parts[0]), row)
                rows["columns"] = len(columns)
                for number, part in enumerate(parts):
                    rows[f"size {number}"] = row[f"value {number}"].itemsize
                    rows[f"value {number}"] = part
                copy.write(rows.tobytes())
            copy.write(_TRAILER)
        return cursor.rowcount


def _trusted(query: str) -> sql.SQL:
    return sql.SQL(query)


@dataclasses.dataclass(frozen=True)
class _Column:
    name: str
    type_name: str
    load: Callable[[bytes], Any]


def _describe(connection: Connection, query: str) -> list[_Column]:
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("SELECT * FROM ({}) AS q LIMIT 0").format(_trusted(query))
        )
        description = cursor.description or []
    loaders = Transformer.from_context(connection)
    types = connection.adapters.types
    return [
        _Column(
            column.name,
            found.name if (found := types.get(column.type_code)) else "",
            loaders.get_loader(column.type_code, Format.BINARY).load,
        )
        for column in description
    ]


@dataclasses.dataclass
class _Messages:
    """Messages strung together, and their lengths.

    A list of them would cost more: the garbage collector would go through it.
    """

    octets: bytearray = dataclasses.field(default_factory=bytearray)
    lengths: list[int] = dataclasses.field(default_factory=list)


def _collect(
    pgconn: psycopg.pq.abc.PGconn, rows: int, messages: _Messages
) -> psycopg.abc.PQGen[bool]:
    """Add up to *rows* messages; return whether the trailer came, which is not added.

    psycopg's own Copy.read() costs twice as much per row.
    """
    octets, lengths = messages.octets, messages.lengths
    while len(lengths) < rows:
        size, message = pgconn.get_copy_data(1)
        if size > 0:
            if size in _END_SIZES and message in _ENDS:
                return True
            octets += message
            lengths.append(size)
        elif size == 0:
            while not (yield Wait.R):
                pass
            pgconn.consume_input()
        else:
            _raise_failure(pgconn)
    return False


def _raise_failure(pgconn: psycopg.pq.abc.PGconn) -> None:
    failure = pgconn.get_result()
    while pgconn.get_result() is not None:
        pass
    assert failure is not None  # noqa: S101 - a COPY that ends has a result
    raise error_from_result(failure)


class _Block:
    """Rows as bytes, and the place in them up to which they are read."""

    def __init__(self, messages: _Messages) -> None:
        self._octets = np.frombuffer(messages.octets, np.uint8)
        lengths = np.array(messages.lengths, np.int64)
        # Every row starts with its number of columns, two bytes long.
        self._at = np.cumsum(lengths) - lengths + 2
        if messages.octets.startswith(_HEADER):
            self._at[0] += len(_HEADER)

    def columns(self, columns: Sequence[_Column]) -> list[Array]:
        return [self._next(column) for column in columns]

    def _next(self, column: _Column) -> Array:
        sizes = self._take(4, ">i4")[:, 0]
        if column.type_name in _VECTORS:
            return self._vectors(column, sizes)
        if column.type_name in _FIXED:
            dtype, convert = _FIXED[column.type_name]
            self._require_equal(column, sizes)
            return convert(self._take(np.dtype(dtype).itemsize, dtype)[:, 0])
        return self._objects(column, sizes)

    def _take(self, width: int, dtype: str) -> Array:
        """Return the next *width* bytes of each row as *dtype*, and step over them."""
        windows = sliding_window_view(self._octets, width)
        step = self._at[1] - self._at[0] if len(self._at) > 1 else 1
        if (np.diff(self._at) == step).all():
            # Rows of one length lie at equal distances, which needs no index.
            found = windows[self._at[0] : self._at[-1] + 1 : step]
        else:
            found = windows[self._at]
        self._at = self._at + width
        return found.view(dtype)

    def _vectors(self, column: _Column, sizes: Array) -> Float32:
        self._require_equal(column, sizes)
        self._at = self._at + 4
        width = int(sizes[0]) - 4
        return self._take(width, _VECTORS[column.type_name]).astype(np.float32)

    def _require_equal(self, column: _Column, sizes: Array) -> None:
        if (sizes < 0).any():
            raise VectorError(
                f"column {column.name!r} holds NULLs, which an array of "
                f"{column.type_name} cannot: leave them out with "
                f'WHERE "{column.name}" IS NOT NULL'
            )
        if (sizes != sizes[0]).any():
            raise VectorError(
                f"column {column.name!r} holds vectors of different lengths: "
                "select those of one length"
            )

    def _objects(self, column: _Column, sizes: Array) -> Array:
        ends = self._at + np.maximum(sizes, 0)
        octets = self._octets.data
        result = np.empty(len(sizes), object)
        result[:] = [
            None if size < 0 else column.load(bytes(octets[start:end]))
            for start, end, size in zip(
                self._at.tolist(), ends.tolist(), sizes.tolist(), strict=True
            )
        ]
        self._at = ends
        return result
