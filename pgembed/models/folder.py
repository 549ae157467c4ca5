"""Reading a folder that nobody vouches for: no way out of it, every file once."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeVar

from pgembed.errors import ModelFileError
from pgembed.models.jsonfile import parse

MAX_BYTES = 8 << 30
MAX_JSON_BYTES = 256 << 20
ONNX_NAMES = ("model.onnx", "onnx/model.onnx")
WEIGHTS_NAME = "model.safetensors"
T = TypeVar("T")


class Folder:
    """A folder whose files are read only if they lie within root (itself)."""

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self._root = (root or path).resolve()

    def __str__(self) -> str:
        return str(self.path)

    def find(self, *names: str) -> str | None:
        """Return the first of these relative names that is there."""
        return next((name for name in names if os.path.lexists(self.path / name)), None)

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """Return a file's bytes, read once.

        Raises ModelFileError for a name that leads out of the folder, for what is
        not a regular file, and for more than limit bytes.
        """
        path = self._resolved(name)
        if not path.is_relative_to(self._root):
            raise ModelFileError(
                f"{name} in {self} leads to {path}, outside of the folder, which is "
                f"refused: copy the file itself into the folder"
            )
        try:
            return _read_regular(path, limit)
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error

    def _resolved(self, name: str) -> Path:
        try:
            return (self.path / name).resolve()
        except RuntimeError:
            raise ModelFileError(f"{name} in {self} is a link to itself") from None

    def json(self, name: str, kind: type[T]) -> T:
        """Return the dict or list in a JSON file, an empty one when it is not there.

        Raises ModelFileError for a file that does not hold that.
        """
        if self.find(name) is None:
            return kind()
        return parse(self.read(name, MAX_JSON_BYTES), f"{name} in {self}", kind)


def _read_regular(path: Path, limit: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise ModelFileError(f"{path} is not a regular file, which is refused")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ModelFileError(
            f"{path} has more than the {limit} bytes that are read of such a file"
        )
    return data
