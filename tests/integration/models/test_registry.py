from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from pgembed.errors import ModelError, ModelFileError
from pgembed.models import registry, store
from pgembed.models.sources import resolve
from tests.harness import tiny_models

Connection = psycopg.Connection[Any]
TEXTS = ["a cat", "the dog eats food"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.good_model(tmp_path / "tiny")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def chunks(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM pgembed.blob_chunk").fetchone()
    assert row is not None
    return int(row[0])


def test_add_then_load(connection: Connection, folder: Path, cache: Path) -> None:
    record = registry.add_model(connection, "tiny", str(folder))
    assert registry.get_model(connection, "tiny") == record
    assert registry.list_models(connection) == [record]
    candidate = resolve(str(folder))
    assert (record.hash, record.options) == (candidate.hash, candidate.options)
    assert (record.dimensions, record.max_tokens) == (tiny_models.DIMENSIONS, 512)
    for _ in range(2):
        model = registry.load(connection, "tiny", cache_dir=cache)
        assert model.embed(TEXTS).shape == (2, tiny_models.DIMENSIONS)


def test_what_is_loaded_is_what_was_checked(
    connection: Connection, folder: Path
) -> None:
    registry.add_model(connection, "tiny", str(folder), {"query_prompt": "the "})
    files = registry.fetch(connection, "tiny")
    assert files == dict(resolve(str(folder)).files)
    model = registry.load(connection, "tiny")
    assert model.options.query_prompt == "the "


def test_adding_again_is_a_no_op(connection: Connection, folder: Path) -> None:
    first = registry.add_model(connection, "tiny", str(folder))
    before = chunks(connection)
    assert registry.add_model(connection, "tiny", str(folder)) == first
    assert chunks(connection) == before


def test_a_name_never_changes_its_files(
    connection: Connection, folder: Path, tmp_path: Path
) -> None:
    registry.add_model(connection, "tiny", str(folder))
    other = tiny_models.good_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="a name never changes its files"):
        registry.add_model(connection, "tiny", str(other))
    with pytest.raises(ModelError, match="a name never changes its files"):
        registry.add_model(connection, "tiny", str(folder), {"max_tokens": 9})


def test_names(connection: Connection, folder: Path) -> None:
    with pytest.raises(ModelError, match="the name of a model is empty"):
        registry.add_model(connection, "", str(folder))
    with pytest.raises(ModelError, match="has 256 bytes: choose"):
        registry.add_model(connection, "é" * 128, str(folder))
    name = 'Müller\'s "model"; --'
    registry.add_model(connection, name, str(folder))
    assert registry.load(connection, name).dimensions == tiny_models.DIMENSIONS
    with pytest.raises(ModelError, match=r"no model 'tiny' \(there are: Müller's"):
        registry.get_model(connection, "tiny")
    assert registry.find_model(connection, "tiny") is None
    with pytest.raises(ModelError, match=r" add 'x y; \$\(id\)' SOURCE$"):
        registry.get_model(connection, "x y; $(id)")


def test_nothing_is_stored_of_a_model_that_fails(
    connection: Connection, folder: Path
) -> None:
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError):
        registry.add_model(connection, "tiny", str(folder))
    assert registry.list_models(connection) == []
    assert chunks(connection) == 0


def test_models_share_files(connection: Connection, folder: Path) -> None:
    registry.add_model(connection, "one", str(folder))
    before = chunks(connection)
    registry.add_model(connection, "two", str(folder), {"max_tokens": 9})
    assert chunks(connection) == before
    registry.remove_model(connection, "one")
    assert registry.load(connection, "two").max_tokens == 9
    registry.remove_model(connection, "two")
    assert chunks(connection) == 0


def test_large_files_come_back_whole(
    connection: Connection, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CHUNK_BYTES", 1000)
    for size in (0, 999, 1000, 1001, 54_321):
        data = np.random.default_rng(size).bytes(size)
        sha256 = hashlib.sha256(data).digest()
        with connection.transaction():
            store.put(connection, data)
        assert store.get(connection, sha256, size, cache) == data
        assert (cache / sha256.hex()).read_bytes() == data


def test_a_model_in_use_stays(connection: Connection, folder: Path) -> None:
    registry.add_model(connection, "tiny", str(folder))
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', name => 'docs_body')"
    )
    with pytest.raises(ModelError, match=r"docs_body"):
        registry.remove_model(connection, "tiny")
    connection.execute("SELECT pgembed.drop_embedding('docs_body')")
    registry.remove_model(connection, "tiny")
    with pytest.raises(ModelError, match=r"no model 'tiny' \(there are: none\)"):
        registry.remove_model(connection, "tiny")


FLIP = """
    UPDATE pgembed.blob_chunk SET data = set_byte(data, 7, 255 - get_byte(data, 7))
"""
LOSE = "DELETE FROM pgembed.blob_chunk"
EXTEND = "UPDATE pgembed.blob_chunk SET data = data || '\\x00'"


@pytest.mark.parametrize("damage", [FLIP, LOSE, EXTEND])
def test_damaged_files_are_refused_and_can_be_repaired(
    connection: Connection, folder: Path, cache: Path, damage: Any
) -> None:
    registry.add_model(connection, "tiny", str(folder))
    connection.execute(damage)
    with pytest.raises(ModelFileError, match="repair it by adding the model again"):
        registry.load(connection, "tiny", cache_dir=cache)
    assert not list(cache.glob("*"))
    registry.add_model(connection, "tiny", str(folder))
    assert registry.load(connection, "tiny").dimensions == tiny_models.DIMENSIONS


def test_a_model_of_another_hash_is_refused(
    connection: Connection, folder: Path
) -> None:
    """What is kept under the hash that was asked for must be that model."""
    record = registry.add_model(connection, "tiny", str(folder))
    assert registry.load(connection, "tiny", record.hash).dimensions
    with pytest.raises(ModelError, match="was replaced meanwhile"):
        registry.load(connection, "tiny", bytes(32))


def test_options_that_were_tampered_with_are_refused(
    connection: Connection, folder: Path
) -> None:
    registry.add_model(connection, "tiny", str(folder))
    connection.execute(
        "UPDATE pgembed.model SET options = jsonb_set(options, '{pooling}', '\"cls\"')"
    )
    with pytest.raises(ModelFileError, match="are not those of its hash"):
        registry.load(connection, "tiny")


def swap_files(connection: Connection, other: str) -> None:
    connection.execute(
        """
        UPDATE pgembed.model_file AS f SET sha256 = o.sha256, bytes = o.bytes
        FROM pgembed.model_file AS o
        WHERE f.model = 'tiny' AND o.model = %s AND o.path = f.path
        """,
        [other],
    )


def test_files_of_another_model_are_refused(
    connection: Connection, folder: Path, tmp_path: Path
) -> None:
    registry.add_model(connection, "tiny", str(folder))
    other = tiny_models.wrong_size_model(tmp_path / "other")
    registry.add_model(connection, "other", str(other))
    swap_files(connection, "other")
    with pytest.raises(ModelFileError, match="are not those of its hash"):
        registry.load(connection, "tiny")


def test_a_corrupt_cached_file_is_fetched_again(
    connection: Connection,
    folder: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry.add_model(connection, "tiny", str(folder))
    expected = registry.fetch(connection, "tiny", cache)
    for damaged in cache.iterdir():
        damaged.write_bytes(b"damaged")
    assert registry.fetch(connection, "tiny", cache) == expected
    assert caplog.text.count("is corrupt and is fetched again") == len(expected)
    assert registry.fetch(connection, "tiny", cache) == expected
    for kept in cache.iterdir():
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == kept.name


def test_what_killed_processes_were_writing_does_not_stay(
    connection: Connection, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what another may still be writing does."""
    registry.add_model(connection, "tiny", str(folder))
    monkeypatch.setattr("os.replace", lambda *_: sys.exit())
    for _ in range(2):
        with pytest.raises(SystemExit):
            registry.fetch(connection, "tiny", cache)
    monkeypatch.undo()
    old, new = cache.iterdir()
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    files = registry.fetch(connection, "tiny", cache)
    hashes = {hashlib.sha256(data).hexdigest() for data in files.values()}
    assert {path.name for path in cache.iterdir()} == {*hashes, new.name}


def test_the_cache_spares_the_database(
    connection: Connection, folder: Path, cache: Path
) -> None:
    registry.add_model(connection, "tiny", str(folder))
    registry.load(connection, "tiny", cache_dir=cache)
    connection.execute(LOSE)
    assert registry.load(connection, "tiny", cache_dir=cache).dimensions


def test_a_cache_that_cannot_be_written_is_no_error(
    connection: Connection, folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("in the way")
    registry.add_model(connection, "tiny", str(folder))
    assert registry.load(connection, "tiny", cache_dir=cache).dimensions
    assert "cannot be kept" in caplog.text


def test_two_who_add_the_same_at_once(
    dsn: str, folder: Path, connect: Callable[..., Connection]
) -> None:
    candidate = resolve(str(folder))
    connections = [connect(dsn) for _ in range(4)]
    hashes: list[bytes] = []

    def add(connection: Connection) -> None:
        hashes.append(registry.store_model(connection, "tiny", candidate).hash)

    threads = [threading.Thread(target=add, args=[one]) for one in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hashes == [candidate.hash] * 4
    assert registry.load(connections[0], "tiny").dimensions
