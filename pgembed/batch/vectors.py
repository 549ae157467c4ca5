"""The vectors that a batch compares with: read in a snapshot, kept within bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.precision import LOSSLESS, Rounding, widened
from pgembed.batch.rows import RowIds, Tables, at_a_time, places, unpack
from pgembed.batch.source import Source
from pgembed.errors import PgembedError, VectorError
from pgembed.postgres.connection import Connection
from pgembed.postgres.copying import copy_columns

Float32 = NDArray[np.float32]
Kept = NDArray[np.float32] | NDArray[np.float16]
Ints = NDArray[np.int64]

NO_KEYS: Ints = np.empty(0, np.int64)
_LEAST = np.finfo(np.float32).tiny
_COPY_BYTES = 8 << 20
_BLOCK_BYTES = 16 << 20
"""What is read at a time; memory that is touched for the first time costs more."""


class Vectors:
    """Vectors (n, d) in one or more arrays, which may be mapped files.

    A position counts through all of them. *norms* (n,) are their squared lengths,
    *rounding* is how far arrays of float16 are from the vectors that they stand for;
    the norms are those of the latter.
    """

    def __init__(
        self,
        parts: Sequence[Kept],
        norms: NDArray[np.float32],
        rounding: Rounding = LOSSLESS,
    ) -> None:
        self.parts = [part for part in parts if len(part)] or list(parts[:1])
        self.norms, self.rounding = norms, rounding
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def dimensions(self) -> int:
        """The length of each vector."""
        return int(self.parts[0].shape[1])

    def slice(self, start: int, end: int) -> Float32:
        """Return the vectors from *start* to before *end*, if possible as a view.

        They are float32, as with :meth:`take`.
        """
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        offset = int(self._starts[first])
        if end - offset <= len(self.parts[first]):
            return widened(self.parts[first][start - offset : end - offset])
        return self.take(np.arange(start, end))

    def take(self, positions: Ints) -> Float32:
        """Return a copy of the vectors at *positions* (m,)."""
        if len(self.parts) == 1:
            return widened(self.parts[0].take(positions, axis=0))
        found = np.empty((len(positions), self.dimensions), np.float32)
        for part, start in zip(self.parts, self._starts, strict=False):
            inside = (positions >= start) & (positions < start + len(part))
            found[inside] = widened(part.take(positions[inside] - start, axis=0))
        return found

    def in_order(self, order: Ints) -> Iterator[Float32]:
        """Yield copies of the vectors at *order* (m,), some at a time."""
        rows = max(1, _COPY_BYTES // (4 * self.dimensions))
        for start in range(0, len(order), rows):
            yield self.take(order[start : start + rows])


def chosen_keys(keys: Ints, chosen: Ints) -> Ints:
    """Return the *chosen* of the keys (n,), or none of (0,)."""
    return keys[chosen] if len(keys) else keys


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows: ids and xmins (n,), vectors float32 (n, d)."""

    ids: RowIds
    xmins: NDArray[np.uint32]
    values: Float32
    keys: Ints
    """(n,), or (0,) unless the key is one column of integers."""


def read_blocks(
    connection: Connection,
    source: Source,
    tables: Tables,
    memory: int,
    ids: RowIds | None = None,
) -> Iterator[Block]:
    """Read the rows that have a vector, in blocks that fit into *memory* bytes.

    Most blocks are smaller: they take turns in the same memory. With *ids* (n,), only
    those rows, and others in the same place of other tables. Raises VectorError for
    vectors of other dimensions.
    """
    oid = f"{source.row}.tableoid::pg_catalog.int8"
    packed = [
        f"pg_catalog.tidsend({source.row}.ctid)",
        f"pg_catalog.xidsend({source.row}.xmin)",
    ]
    fields = [("xmin", ">u4")]
    if source.whole_key:
        packed.append(f"pg_catalog.int8send({source.key_list(source.row)})")
        fields.append(("key", ">i8"))
    query = (
        f"SELECT {oid}, {' || '.join(packed)}, {source.row}.{source.vector} "
        f"{source.rows()}"
    )
    # Messages, their concatenation, and two arrays live at once.
    width = 24 * source.dimensions + 400
    block_rows = int(np.clip(min(memory, _BLOCK_BYTES) // width, 256, 65_536))
    queries = [query] if ids is None else _among(query, source, ids)
    for oids, found, values in itertools.chain.from_iterable(
        copy_columns(connection, each, block_rows=block_rows) for each in queries
    ):
        if values.shape[1] != source.dimensions:
            raise VectorError(
                f"column {source.vector} holds a vector of {values.shape[1]} "
                f"dimensions, but embedding {source.name!r} has {source.dimensions}"
            )
        rows = unpack(b"".join(found), fields)
        ids = np.empty(len(rows), np.uint64)
        for table in np.unique(oids):
            ids[oids == table] = tables.ids(int(table), rows[oids == table])
        keys = rows["key"].astype(np.int64) if source.whole_key else NO_KEYS
        yield Block(ids, rows["xmin"].astype(np.uint32), values, keys)


def _among(query: str, source: Source, ids: RowIds) -> Iterator[str]:
    """Yield *query* for some of *ids* at a time."""
    for some in at_a_time(ids):
        blocks, offsets = places(some)
        listed = ",".join(
            f'"({block},{offset})"'
            for block, offset in zip(blocks.tolist(), offsets.tolist(), strict=True)
        )
        yield f"{query} AND {source.row}.ctid = ANY ('{{{listed}}}'::pg_catalog._tid)"


@contextlib.contextmanager
def _spilling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PgembedError(
            "vectors that memory does not hold cannot be written to a temporary file: "
            f"{error}; allow more memory, or set TMPDIR to a folder with room"
        ) from error


class Spool:
    """Vectors in memory, or in an unlinked temporary file once they outgrow it.

    *memory* in bytes. Room for *rows* vectors, if that is known, is reserved at once.
    """

    def __init__(self, dimensions: int, memory: int, rows: int = 0) -> None:
        self._memory = memory
        fitting = min(rows, memory // (4 * dimensions))
        self._values = np.empty((fitting, dimensions), np.float32)
        self._count = 0
        self._norms: list[NDArray[np.float32]] = []
        self._file: IO[bytes] | None = None

    def add(self, values: Float32) -> None:
        """Append vectors float32 (n, d)."""
        self._norms.append(squared_norms(values))
        first, self._count = self._count, self._count + len(values)
        shape = (self._count, self._values.shape[1])
        with _spilling():
            if self._file is None and 4 * math.prod(shape) > self._memory:
                self._file = tempfile.TemporaryFile(prefix="pgembed-batch-")  # noqa: SIM115
                self._values[:first].tofile(self._file)
                self._values = np.empty((0, shape[1]), np.float32)
            if self._file is not None:
                values.tofile(self._file)
                return
        if self._count > len(self._values):
            self._values.resize(shape, refcheck=False)
        self._values[first : self._count] = values

    def finish(self) -> Vectors:
        """Return all that was added."""
        norms = np.concatenate([np.empty(0, np.float32), *self._norms])
        if self._file is None:
            return Vectors([self._values[: self._count]], norms)
        self._file.flush()
        shape = (self._count, self._values.shape[1])
        # The mapping keeps the file alive; nothing is left when it goes.
        mapped = np.memmap(self._file, np.float32, "r", shape=shape)
        self._file.close()
        return Vectors([mapped], norms)


def directions(values: Float32, norms: NDArray[np.float32]) -> Float32:
    """Return vectors (n, d) brought to length 1; *norms* (n,) are squared lengths.

    Those of length 0 stay so.
    """
    return np.asarray(values / np.sqrt(np.where(norms > 0, norms, 1))[:, None])


def squared_norms(values: Float32) -> NDArray[np.float32]:
    """Return the squared lengths (n,) of vectors (n, d); 0 only for a length of 0."""
    norms = np.asarray(np.einsum("ij,ij->i", values, values), np.float32)
    lost = np.flatnonzero(norms == 0)
    norms[lost] = np.where(values[lost].any(axis=1), _LEAST, 0)
    return norms
