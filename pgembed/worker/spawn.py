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
from pgembed.errors import WorkerError

# Where another application wants its own metrics. A folder of that application's would
# get the worker's among them, and one that is not there would end the worker.
_NOT_OURS = {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"}


def spawn(
    module: str,
    *arguments: str,
    stdout: int | IO[Any] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start ``python -m module``, with a pipe as its standard input.

    *environment* is added to this process's own, of which it gets all but _NOT_OURS.
    Secrets such as a DSN belong in the pipe: arguments are visible to every user.
    """
    # -P: no module is taken from the directory that happens to be the current one.
    root = str(Path(pgembed.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    inherited = {k: v for k, v in os.environ.items() if k not in _NOT_OURS}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        env={**inherited, "PYTHONPATH": path, **environment},
    )


def read_line() -> bytes:
    """Return the line that whoever spawned this process wrote to its input.

    Raises WorkerError when it ends before.
    """
    # Not through sys.stdin: a thread that reads it cannot be left behind at exit.
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            raise WorkerError("this process is started by 'pgembed worker' alone")
        line += part
    return line
