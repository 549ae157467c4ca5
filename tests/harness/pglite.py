"""PGlite: PostgreSQL in WebAssembly, which comes with pg_textsearch.

That extension is in no package for the servers that the other tests start. PGlite is
one process with one session, whatever connects: tests use one connection at a time.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

HOW_TO_INSTALL = "run 'make pglite' (with Node.js and npm)"

_FOLDER = Path(__file__).parent / "pglite"
_PROGRAM = _FOLDER / "node_modules" / ".bin" / "pglite-server"
_EXTENSIONS = (
    "@electric-sql/pglite-pgvector:vector",
    "@electric-sql/pglite-pg_textsearch:pg_textsearch",
)


def is_installed() -> bool:
    """Say whether 'make pglite' was run here."""
    return _PROGRAM.exists() and shutil.which("node") is not None


@contextlib.contextmanager
def running_pglite(folder: Path) -> Iterator[str]:
    """Run PGlite in memory, with a socket in *folder*; yield its database's DSN."""
    command = [
        str(_PROGRAM),
        f"--path={folder / '.s.PGSQL.5432'}",
        f"--extensions={','.join(_EXTENSIONS)}",
        "--max-connections=10",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            _wait_until_it_listens(process)
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            process.terminate()
            process.communicate(timeout=60)


def _wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "listening" in line:
            return
    raise RuntimeError(f"PGlite did not start: {''.join(said)}")
