from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgembed.errors import ModelFileError
from pgembed.models.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("secret")
    return Folder(tmp_path / "inside")


def test_files_are_found_and_read(folder: Folder) -> None:
    (folder.path / "b").write_bytes(b"bytes")
    assert folder.find("a", "b") == "b"
    assert folder.find("a") is None
    assert folder.read("b") == b"bytes"


def test_no_way_out(folder: Folder) -> None:
    (folder.path / "link").symlink_to(folder.path.parent / "secret")
    (folder.path / "up").symlink_to(folder.path.parent)
    for name in ("link", "up/secret", "../secret", str(folder.path.parent / "secret")):
        with pytest.raises(ModelFileError, match="outside of the folder"):
            folder.read(name)


def test_a_link_to_itself(folder: Folder) -> None:
    (folder.path / "loop").symlink_to("loop")
    # From Python 3.13 on, such a link resolves and cannot be read.
    with pytest.raises(ModelFileError, match=r"link to itself|cannot be read"):
        folder.read("loop")


def test_links_within_the_root_are_followed(folder: Folder) -> None:
    (folder.path / "link").symlink_to("../secret")
    wider = Folder(folder.path, root=folder.path.parent)
    assert wider.read("link") == b"secret"


def test_only_regular_files_are_read(folder: Folder) -> None:
    os.mkfifo(folder.path / "pipe")
    (folder.path / "folder").mkdir()
    with pytest.raises(ModelFileError, match="not a regular file"):
        folder.read("pipe")
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        folder.read("folder")
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        folder.read("nothing")


def test_size_limit(folder: Folder) -> None:
    (folder.path / "big").write_bytes(b"x" * 11)
    with pytest.raises(ModelFileError, match="more than the 10 bytes"):
        folder.read("big", limit=10)
    assert len(folder.read("big", limit=11)) == 11


def test_json(folder: Folder) -> None:
    (folder.path / "good").write_text('{"a": 1}')
    (folder.path / "bad").write_text("{")
    (folder.path / "deep").write_text("[" * 100_000)
    assert folder.json("good", dict) == {"a": 1}
    assert folder.json("missing", dict) == {}
    assert folder.json("missing", list) == []
    for name in ("bad", "deep"):
        with pytest.raises(ModelFileError, match=f"{name} in .* is not JSON"):
            folder.json(name, dict)
    with pytest.raises(ModelFileError, match=r"good in .* is not a JSON array"):
        folder.json("good", list)
