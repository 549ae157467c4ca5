"""Layouts on disk: whole or absent, never half."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
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
        "keys": np.arange(4),
        "norms": np.ones(4, np.float32),
        "starts": np.array([0, 1, 4]),
        "leaves": np.array([0, 0]),
        "centres": VECTORS[:2],
    }


def write(place: Path, *, alone: bool = False) -> store.Writer:
    """Write a layout, which is to be left *alone*; return its writer."""
    with store.Writer(place) as writer:
        writer.add(VECTORS[:3])
        writer.add(VECTORS[3:])
        assert writer.finish(3, arrays(), {"tables": [1]}) > VECTORS.nbytes
        if alone:
            writer.remove_others()
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


@pytest.mark.parametrize("precision", ["float16", "float8"])
def test_a_file_of_another_precision_is_none(tmp_path: Path, precision: str) -> None:
    version = write(tmp_path).version
    file = tmp_path / version / "layout.json"
    file.write_text(file.read_text().replace("float32", precision))
    assert store.open_store(tmp_path, version) is None


@pytest.mark.parametrize("finished", [False, True])
def test_a_failure_leaves_nothing(tmp_path: Path, finished: bool) -> None:
    def interrupted() -> None:
        with store.Writer(tmp_path / "x") as writer:
            writer.add(VECTORS)
            if finished:
                writer.finish(3, arrays(), {})
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


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}"])
@pytest.mark.parametrize("name", ["layout.json", "xmins.npy"])
def test_a_file_of_something_else_is_none(
    tmp_path: Path, name: str, content: bytes
) -> None:
    version = write(tmp_path).version
    (tmp_path / version / name).write_bytes(content)
    assert store.open_store(tmp_path, version) is None


@pytest.mark.parametrize("name", ["xmins", "keys", "norms", "starts", "centres"])
def test_arrays_of_other_lengths_are_none(tmp_path: Path, name: str) -> None:
    version = write(tmp_path).version
    np.save(tmp_path / version / f"{name}.npy", arrays()[name][:-1])
    assert store.open_store(tmp_path, version) is None


def test_old_versions_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "x"
    kept = store.open_store(place, write(place).version)
    (place / ".of a killed writer").mkdir()
    second = write(place, alone=True).version
    assert [path.name for path in place.iterdir()] == [second]
    # Who has it mapped goes on reading it.
    assert kept is not None
    assert (kept.vectors == VECTORS).all()
    store.remove(place)
    assert not list(tmp_path.iterdir())


def test_writers_wait_for_one_another(tmp_path: Path) -> None:
    place = tmp_path / "x"
    with ThreadPoolExecutor(2) as pool:
        with store.Writer(place) as writer:
            others = [pool.submit(write, place, alone=True) for _ in range(2)]
            time.sleep(0.1)
            assert not any(other.done() for other in others)
            store.remove(place)
            writer.add(VECTORS)
            writer.finish(3, arrays(), {})
            writer.remove_others()
            assert store.open_store(place, writer.version) is not None
        versions = {other.result().version for other in others}
    (left,) = place.iterdir()
    assert left.name in versions
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("cache_dir", ["cache/models", "~/cache/models"])
def test_layouts_lie_where_every_process_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: str
) -> None:
    monkeypatch.setenv("PGEMBED_CACHE_DIR", cache_dir)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = store.folder(7, "db")
    assert place == tmp_path / "cache" / "layouts" / "db-7"
