"""pgvector's types and NumPy arrays: parameters, results and COPY BINARY."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format
from psycopg.types import TypeInfo

from pgembed.errors import VectorError

Float32 = NDArray[np.float32]

_MAX_DIMENSIONS = 16_000


@dataclasses.dataclass(frozen=True, eq=False)
class VectorArray:
    """An array of vectors, to be passed as one ``vector[]`` parameter.

    *values* is float32 (n, d); where *mask* (bool, n) is True the element is NULL.
    Raises VectorError for other shapes and for NaN or infinity, which pgvector
    does not store.
    """

    values: Float32
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.values, dtype=np.float32)
        if values.ndim != 2:
            raise VectorError(
                f"a VectorArray needs an array (n, d), not one of shape {values.shape}"
            )
        mask = self.mask
        if mask is not None and (mask.dtype != bool or mask.shape != values.shape[:1]):
            raise VectorError(
                f"the mask must be bool ({len(values)},), not {mask.dtype} {mask.shape}"
            )
        _check_finite(values if mask is None else values[~mask])
        object.__setattr__(self, "values", values)


def is_lossy(given: Any) -> bool:
    """Whether float32 would drop imaginary parts or a mask without a word."""
    return isinstance(given, np.ndarray) and (
        given.dtype.kind == "c" or bool(np.ma.is_masked(given))
    )


def _check_finite(values: Float32) -> None:
    if values.size and not np.isfinite(values).all():
        raise VectorError(
            "a vector holds NaN or infinity, which pgvector cannot store: "
            "the model or the application that made it gives unusable numbers"
        )
    if len(values) and not 1 <= values.shape[-1] <= _MAX_DIMENSIONS:
        raise VectorError(
            f"a vector has {values.shape[-1]} dimensions; "
            f"pgvector stores 1 to {_MAX_DIMENSIONS}"
        )


def register(connection: psycopg.Connection[Any]) -> bool:
    """Teach *connection* pgvector's types; return whether the database has them.

    Parameters: a NumPy array (d,) is a ``vector``, a VectorArray a ``vector[]``.
    Results: ``vector`` and ``halfvec`` become float32 (d,), arrays of them
    float32 (n, d).
    """
    info = _fetch_type(connection, "vector")
    if info is None:
        return False
    _register_dumpers(connection, info)
    _register_loaders(connection, info, ">f4")
    half = _fetch_type(connection, "halfvec")
    if half is not None:
        _register_loaders(connection, half, ">f2")
    return True


def _fetch_type(connection: psycopg.Connection[Any], name: str) -> TypeInfo | None:
    # By extension membership: the schema may be off the search_path, and another
    # schema may hold a type of the same name.
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        row = cursor.execute(
            """
            SELECT t.oid, t.typarray
            FROM pg_catalog.pg_type AS t
            JOIN pg_catalog.pg_depend AS d
              ON d.classid = 'pg_catalog.pg_type'::regclass::oid AND d.objid = t.oid
             AND d.refclassid = 'pg_catalog.pg_extension'::regclass::oid
             AND d.deptype = 'e'
            JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
            WHERE e.extname = 'vector' AND t.typname = %s
            """,
            (name,),
        ).fetchone()
    return None if row is None else TypeInfo(name, *row)


def _register_dumpers(connection: psycopg.Connection[Any], info: TypeInfo) -> None:
    vector = type("VectorDumper", (_VectorDumper,), {"oid": info.oid})
    array = type(
        "VectorArrayDumper",
        (_VectorArrayDumper,),
        {"oid": info.array_oid, "element_oid": info.oid},
    )
    connection.adapters.register_dumper(np.ndarray, vector)
    connection.adapters.register_dumper(VectorArray, array)


def _register_loaders(
    connection: psycopg.Connection[Any], info: TypeInfo, dtype: str
) -> None:
    connection.adapters.types.add(info)
    attributes = {"dtype": np.dtype(dtype)}
    for base, oid in (
        (_VectorLoader, info.oid),
        (_VectorTextLoader, info.oid),
        (_VectorArrayLoader, info.array_oid),
        (_VectorArrayTextLoader, info.array_oid),
    ):
        loader = type(base.__name__.lstrip("_"), (base,), attributes)
        connection.adapters.register_loader(oid, loader)


def _element_dtype(dimensions: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """An element as PostgreSQL sends it: its length, then pgvector's own header."""
    return np.dtype(
        [
            ("length", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("values", dtype, (dimensions,)),
        ]
    )


class _VectorDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: NDArray[Any]) -> Buffer:
        if obj.ndim != 1:
            raise VectorError(
                f"an array of shape {obj.shape} is not a vector: "
                "wrap an array (n, d) in a VectorArray"
            )
        values = obj.astype(np.float32)
        _check_finite(values.reshape(1, -1))
        return (
            np.array([len(values), 0], ">i2").tobytes() + values.astype(">f4").tobytes()
        )


class _VectorArrayDumper(Dumper):
    format = Format.BINARY
    element_oid: int

    def dump(self, obj: VectorArray) -> Buffer:
        n, dimensions = obj.values.shape
        if n == 0:
            return np.array([0, 0, self.element_oid], ">u4").tobytes()
        has_nulls = obj.mask is not None and bool(obj.mask.any())
        header = np.array([1, has_nulls, self.element_oid, n, 1], ">u4").tobytes()
        return header + _elements(obj, dimensions, has_nulls)


def _elements(array: VectorArray, dimensions: int, has_nulls: bool) -> bytes:
    elements = np.zeros(len(array.values), _element_dtype(dimensions, np.dtype(">f4")))
    elements["length"] = 4 + 4 * dimensions
    elements["dimensions"] = dimensions
    elements["values"] = array.values
    if not has_nulls:
        return elements.tobytes()
    # A NULL is the length -1 and nothing else: its other bytes are left out.
    elements["length"][array.mask] = -1
    octets = elements.view(np.uint8).reshape(len(elements), elements.itemsize)
    sent = np.ones(octets.shape, bool)
    sent[array.mask, 4:] = False
    return octets[sent].tobytes()


class _VectorLoader(Loader):
    format = Format.BINARY
    dtype: np.dtype[Any]

    def load(self, data: Buffer) -> Float32:
        return np.frombuffer(data, self.dtype, offset=4).astype(np.float32)


class _VectorTextLoader(Loader):
    format = Format.TEXT

    def load(self, data: Buffer) -> Float32:
        return np.array(bytes(data)[1:-1].split(b",")).astype(np.float32)


class _VectorArrayLoader(Loader):
    format = Format.BINARY
    dtype: np.dtype[Any]

    def load(self, data: Buffer) -> Float32:
        header = np.frombuffer(data, ">i4", count=3)
        if header[0] == 0:
            return np.empty((0, 0), np.float32)
        _require_no_nulls(bool(header[1]))
        dimensions = int(np.frombuffer(data, ">i2", count=1, offset=24)[0])
        element = _element_dtype(dimensions, self.dtype)
        n, rest = divmod(len(data) - 20, element.itemsize)
        elements = np.frombuffer(data, element, count=n, offset=20)
        _require_one_length(
            header[0] == 1
            and rest == 0
            and bool((elements["dimensions"] == dimensions).all())
        )
        return elements["values"].astype(np.float32)


class _VectorArrayTextLoader(Loader):
    format = Format.TEXT

    def load(self, data: Buffer) -> Float32:
        # An element is in double quotes if it has a comma, and holds none itself.
        text = bytes(data).replace(b'"', b"")
        _require_no_nulls(b"NULL" in text)
        if text == b"{}":
            return np.empty((0, 0), np.float32)
        rows = [row.split(b",") for row in text[2:-2].split(b"],[")]
        _require_one_length(len(set(map(len, rows))) == 1)
        return np.array(rows).astype(np.float32)


def _require_one_length(holds: bool) -> None:
    if not holds:
        raise VectorError(
            "an array of vectors has several dimensions or vectors of different "
            "lengths: select them row by row"
        )


def _require_no_nulls(has_nulls: bool) -> None:
    if has_nulls:
        raise VectorError(
            "an array of vectors holds NULLs, which a NumPy array cannot: "
            "leave them out with WHERE … IS NOT NULL"
        )
