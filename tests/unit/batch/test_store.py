"""Layouts on disk: whole or absent, never half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pgembed.batch import store
from pgembed.batch.precision import Rounding

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


def arrays() -> dict[str, NDArray[Any]]:
    """Return what belongs to the vectors."""
    return {
        "ids": np.arange(4, dtype=np.uint64),
        "xmins": np.arange(4, dtype=np.uint32),
        "norms": np.ones(4, np.float32),
        "starts": np.array([0, 1, 4]),
        "leaves": np.array([0, 0]),
        "centres": VECTORS[:2],
    }


def write(place: Path) -> store.Writer:
    """Write a layout; return its writer."""
    with store.Writer(place) as writer:
        writer.add(VECTORS[:3])
        writer.add(VECTORS[3:])
        assert writer.finish(3, arrays(), {"tables": [1]}) > VECTORS.nbytes
    return writer


def test_what_was_written_is_read(tmp_path: Path) -> None:
    version = write(tmp_path / "x").version
    found = store.open_store(tmp_path / "x", version)
    assert found is not None
    assert (found.vectors == VECTORS).all()
    assert found.origin == {"tables": [1]}
    assert len(found.lists) == 2
    assert (tmp_path / "x" / version).stat().st_mode & 0o077 == 0


def test_float16_takes_half_the_room(tmp_path: Path) -> None:
    rounding = Rounding(0.25, 0.125)
    with store.Writer(tmp_path, "float16") as writer:
        writer.add(VECTORS + np.float32(2048))
        writer.finish(3, arrays(), {}, rounding)
    file = tmp_path / writer.version / "vectors"
    assert file.stat().st_size == VECTORS.nbytes // 2
    found = store.open_store(tmp_path, writer.version)
    assert found is not None
    assert found.rounding == rounding
    assert (found.vectors == (VECTORS + 2048).astype(np.float16)).all()


@pytest.mark.parametrize("missing", [("precision",), ("precision", "rounding")])
def test_what_older_versions_wrote_is_float32(
    tmp_path: Path, missing: tuple[str, ...]
) -> None:
    version = write(tmp_path).version
    file = tmp_path / version / "layout.json"
    description = json.loads(file.read_text())
    for name in missing:
        del description[name]
    file.write_text(json.dumps(description))
    found = store.open_store(tmp_path, version)
    assert found is not None
    assert (found.vectors == VECTORS).all()
    assert found.vectors.dtype == np.float32
    assert found.rounding.lossless


@pytest.mark.parametrize("precision", ["float16", "float8"])
def test_a_file_of_another_precision_is_none(tmp_path: Path, precision: str) -> None:
    version = write(tmp_path).version
    file = tmp_path / version / "layout.json"
    file.write_text(file.read_text().replace("float32", precision))
    assert store.open_store(tmp_path, version) is None


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with store.Writer(tmp_path) as writer:
            writer.add(VECTORS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["vectors", "layout.json", "ids.npy", "starts.npy"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_layout_is_none(tmp_path: Path, name: str, cut: bool) -> None:
    version = write(tmp_path).version
    file = tmp_path / version / name
    if cut:
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    assert store.open_store(tmp_path, version) is None


def test_old_versions_are_removed(tmp_path: Path) -> None:
    first, second = write(tmp_path).version, write(tmp_path).version
    kept = store.open_store(tmp_path, first)
    store.remove(tmp_path, keep=second)
    assert [path.name for path in tmp_path.iterdir()] == [second]
    # Who has it mapped goes on reading it.
    assert kept is not None
    assert (kept.vectors == VECTORS).all()
    store.remove(tmp_path)
    assert not tmp_path.exists()
