"""A layout on disk: vectors in the order of posting lists, mapped into memory.

One folder per version, written under another name and renamed when it is complete.
Derived data: when it is lost, or no longer fits the table, nothing else is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.codes import Codes, Column
from pgembed.batch.precision import DTYPES, LOSSLESS, Rounding
from pgembed.batch.terms import Term
from pgembed.settings import Settings

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_FORMAT = 2
_ARRAYS = ("ids", "xmins", "keys", "norms", "starts", "leaves", "centres", "codes")


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
    keys: Ints
    """(n,), or (0,) unless the key is one column of integers."""
    lists: Lists
    codes: tuple[Codes, ...]
    origin: dict[str, Any]
    """What the table and the server looked like: see :mod:`freshness`."""


def folder(embedding: int, database: str, root: Path | None = None) -> Path:
    """Return where layouts of an embedding lie; *database* identifies it anywhere."""
    return _base(root) / f"{database}-{embedding}"


def folders(database: str, root: Path | None = None) -> dict[int, Path]:
    """Return the folders of a database that are there, by their embeddings' ids."""
    name = re.compile(re.escape(database) + "-([0-9]+)")
    found = {p: name.fullmatch(p.name) for p in _base(root).glob(f"{database}-*")}
    return {int(match[1]): path for path, match in found.items() if match}


def _base(root: Path | None) -> Path:
    return root or Settings.load().cache_dir.parent / "layouts"


class Writer:
    """Writes a layout's files; use as a context, in which an error leaves nothing.

    Whoever else writes to the same place is waited for.
    """

    def __init__(self, place: Path, precision: str = "float32") -> None:
        self.version = str(uuid.uuid4())
        self._place, self._precision = place, precision
        self._draft = place / f".{self.version}"

    def __enter__(self) -> Writer:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_alone(self._place, wait=True))
            stack.callback(_remove_draft, self._draft)
            self._draft.mkdir(parents=True, mode=0o700)
            self._file = (self._draft / "vectors").open("wb")
            stack.callback(self._file.close)
            self._stack = stack.pop_all()
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
        codes: Sequence[Codes] = (),
    ) -> int:
        """Make the layout visible to readers; return its bytes.

        *rounding* is how far the vectors are from those that were added.
        """
        shape = (len(codes), len(arrays["ids"]))
        rows = [coded.rows for coded in codes]
        arrays = {**arrays, "codes": np.array(rows, np.uint16).reshape(shape)}
        _sync(self._file)
        self._file.close()
        for name in _ARRAYS:
            with (self._draft / f"{name}.npy").open("wb") as file:
                np.save(file, arrays[name])
                _sync(file)
        description = {
            "format": _FORMAT,
            "dimensions": dimensions,
            "precision": self._precision,
            "rounding": dataclasses.asdict(rounding),
            "coded": [
                {
                    "column": dataclasses.asdict(c.column),
                    "values": [value.hex() for value in c.values],
                    "terms": c.terms and [[t.filter, t.values] for t in c.terms],
                    "columns": c.columns,
                }
                for c in codes
            ],
            "origin": origin,
        }
        with (self._draft / "layout.json").open("wb") as file:
            file.write(json.dumps(description).encode())
            _sync(file)
        size = sum(file.stat().st_size for file in self._draft.iterdir())
        self._draft.rename(self._place / self.version)
        return size

    def remove_others(self) -> None:
        """Delete all that this layout replaces; readers keep their maps."""
        _remove(self._place, keep=self.version)

    def __exit__(self, error: object, *_: object) -> None:
        with self._stack:
            if error is not None:
                shutil.rmtree(self._place / self.version, ignore_errors=True)


def _codes(coded: list[Any], rows: NDArray[np.uint16]) -> tuple[Codes, ...]:
    return tuple(
        Codes(
            Column(**each["column"]),
            tuple(map(bytes.fromhex, each["values"])),
            each["terms"] and tuple(Term(f, None, tuple(v)) for f, v in each["terms"]),
            own,
            each["columns"],
        )
        for each, own in zip(coded, rows, strict=True)
    )


def _sync(file: IO[Any]) -> None:
    """Have the disk keep a file: after a crash, it would hold zeros without a word."""
    file.flush()
    os.fsync(file.fileno())


def open_store(place: Path, version: str) -> Store | None:
    """Open a version of a layout; None when it is not there or not whole."""
    path = place / version
    # What numpy and json raise for files that were cut, or are of something else.
    damage = (OSError, EOFError, ValueError, KeyError, TypeError)
    with contextlib.suppress(*damage):
        description = json.loads((path / "layout.json").read_text())
        if description["format"] != _FORMAT:
            return None
        arrays = {name: np.load(path / f"{name}.npy") for name in _ARRAYS}
        shape = (len(arrays["ids"]), int(description["dimensions"]))
        if not _fit(arrays, shape):
            return None
        dtype = np.dtype(DTYPES[description["precision"]])
        if (path / "vectors").stat().st_size != shape[0] * shape[1] * dtype.itemsize:
            return None
        vectors: NDArray[Any] = np.empty((0, shape[1]), dtype)
        if shape[0]:
            vectors = np.memmap(path / "vectors", dtype, "r", shape=shape)
        lists = Lists(**{f.name: arrays[f.name] for f in dataclasses.fields(Lists)})
        return Store(
            version,
            vectors,
            Rounding(**description["rounding"]),
            arrays["norms"],
            arrays["ids"],
            arrays["xmins"],
            arrays["keys"],
            lists,
            _codes(description["coded"], arrays["codes"]),
            description["origin"],
        )
    return None


def _fit(arrays: dict[str, NDArray[Any]], shape: tuple[int, int]) -> bool:
    """Whether the arrays are as long as they have to be for vectors of *shape*."""
    lists = len(arrays["leaves"])
    starts = arrays["starts"]
    return (
        all(len(arrays[name]) == shape[0] for name in ("xmins", "norms"))
        and len(arrays["keys"]) in (0, shape[0])
        and arrays["codes"].shape[1] == shape[0]
        and arrays["centres"].shape == (lists, shape[1])
        and len(starts) == lists + 1
        and starts[-1] == shape[0]
    )


def remove(place: Path) -> None:
    """Delete the layouts in *place*, unless a writer is there, who does it."""
    with contextlib.suppress(OSError):
        if place.is_dir():
            with _alone(place, wait=False):
                _remove(place)
                place.rmdir()


def _remove(place: Path, *, keep: str | None = None) -> None:
    for path in place.iterdir():
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True)


def _remove_draft(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    with contextlib.suppress(OSError):  # which others are in
        draft.parent.rmdir()


@contextlib.contextmanager
def _alone(place: Path, *, wait: bool) -> Iterator[None]:
    """Keep writers out of *place*; BlockingIOError when one is there, unless *wait*."""
    place.parent.mkdir(parents=True, exist_ok=True)
    path = place.with_name(f".{place.name}.lock")
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had the lock has deleted the file, and another may be there now.
            if _is_at(file, path):
                try:
                    yield
                finally:
                    path.unlink()
                return


def _is_at(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
