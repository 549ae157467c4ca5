"""A layout on disk: vectors in the order of posting lists, mapped into memory.

One folder per version, written under another name and renamed when it is complete.
Derived data: when it is lost, or no longer fits the table, nothing else is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.precision import DTYPES, LOSSLESS, Rounding
from pgembed.settings import Settings

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_FORMAT = 1
_ARRAYS = ("ids", "xmins", "norms", "starts", "leaves", "centres")


@dataclasses.dataclass(frozen=True)
class Lists:
    """Posting lists: rows ``starts[i]`` to ``starts[i + 1]`` lie around a centre."""

    starts: Ints
    leaves: Ints
    """(c,): the leaf of the qd-tree that each list belongs to."""
    centres: Float32
    """(c, d): the mean of the list's vectors (for cosine, brought to length 1)."""

    def __len__(self) -> int:
        return len(self.leaves)


@dataclasses.dataclass(frozen=True)
class Store:
    """A layout that was opened."""

    version: str
    vectors: NDArray[np.float32] | NDArray[np.float16]
    """(n, d), mapped."""
    rounding: Rounding
    """How far they are from those of the table."""
    norms: NDArray[np.float32]
    """(n,): squared lengths of the table's vectors."""
    ids: NDArray[np.uint64]
    xmins: NDArray[np.uint32]
    lists: Lists
    origin: dict[str, Any]
    """What the table and the server looked like: see :mod:`freshness`."""


def folder(embedding: int, database: str, root: Path | None = None) -> Path:
    """Return where layouts of an embedding lie; *database* identifies it anywhere."""
    base = root or Settings.load().cache_dir.parent / "layouts"
    return base / f"{database}-{embedding}"


class Writer:
    """Writes a layout's files; use as a context, in which an error leaves nothing."""

    def __init__(self, place: Path, precision: str = "float32") -> None:
        self.version = str(uuid.uuid4())
        self._place, self._precision = place, precision
        self._draft = place / f".{self.version}"

    def __enter__(self) -> Writer:
        self._draft.mkdir(parents=True, mode=0o700)
        self._file = (self._draft / "vectors").open("wb")
        return self

    def add(self, values: Float32) -> None:
        """Append vectors (n, d), rounded to the precision."""
        values.astype(DTYPES[self._precision], copy=False).tofile(self._file)

    def finish(
        self,
        dimensions: int,
        arrays: dict[str, NDArray[Any]],
        origin: dict[str, Any],
        rounding: Rounding = LOSSLESS,
    ) -> int:
        """Make the layout visible to readers; return its bytes.

        *rounding* is how far the vectors are from those that were added.
        """
        self._file.close()
        for name in _ARRAYS:
            np.save(self._draft / f"{name}.npy", arrays[name])
        description = {
            "format": _FORMAT,
            "dimensions": dimensions,
            "precision": self._precision,
            "rounding": dataclasses.asdict(rounding),
            "origin": origin,
        }
        (self._draft / "layout.json").write_text(json.dumps(description))
        size = sum(file.stat().st_size for file in self._draft.iterdir())
        self._draft.rename(self._place / self.version)
        return size

    def __exit__(self, *error: object) -> None:
        self._file.close()
        shutil.rmtree(self._draft, ignore_errors=True)


def open_store(place: Path, version: str) -> Store | None:
    """Open a version of a layout; None when it is not there or not whole."""
    path = place / version
    with contextlib.suppress(OSError, ValueError, KeyError):
        description = json.loads((path / "layout.json").read_text())
        if description["format"] != _FORMAT:
            return None
        arrays = {name: np.load(path / f"{name}.npy") for name in _ARRAYS}
        shape = (len(arrays["ids"]), int(description["dimensions"]))
        # Layouts of older versions do not say what is always float32.
        dtype = np.dtype(DTYPES[description.get("precision", "float32")])
        if (path / "vectors").stat().st_size != shape[0] * shape[1] * dtype.itemsize:
            return None
        vectors: NDArray[Any] = np.empty(shape, dtype)
        if shape[0]:
            vectors = np.memmap(path / "vectors", dtype, "r", shape=shape)
        lists = Lists(**{f.name: arrays[f.name] for f in dataclasses.fields(Lists)})
        return Store(
            version,
            vectors,
            Rounding(**description.get("rounding", {})),
            arrays["norms"],
            arrays["ids"],
            arrays["xmins"],
            lists,
            description["origin"],
        )
    return None


def remove(place: Path, *, keep: str | None = None) -> None:
    """Delete the layouts in *place*, but version *keep*; readers keep their maps."""
    if not place.is_dir():
        return
    for path in place.iterdir():
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True)
    if keep is None:
        with contextlib.suppress(OSError):
            os.rmdir(place)
