"""`pgembed demo` and `pgembed up`, as processes, on real parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgembed.postgres.connection import connect, fetch_one

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path: Unix sockets have little room."""
    with tempfile.TemporaryDirectory(prefix="pgembed-cli-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a pgembed command; its output can be read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgembed", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_demo_tells_the_whole_story(folder: Path) -> None:
    """Backfill, searches with and without a filter, an update, and what to do next."""
    process = start("demo", "--data", str(folder / "data"))
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "rows/s" in output
    assert "ready" in output
    assert "date_trunc" in output
    assert "work_mem now" in output
    assert "postgresql://" in output
    assert "pgembed.search" in output


@pytest.mark.parametrize(
    ("command", "number"), [("up", signal.SIGHUP), ("demo", signal.SIGTERM)]
)
def test_no_server_outlives_its_terminal(
    folder: Path, command: str, number: signal.Signals
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, and so by what is started")
    process = start(command, "--data", str(folder / "data"))
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert (folder / "data" / "postmaster.pid").exists()
    finally:
        process.send_signal(number)
        process.communicate()
    assert process.returncode == 128 + number
    assert not (folder / "data" / "postmaster.pid").exists()


def test_up_serves_until_interrupted(folder: Path) -> None:
    """The DSN stands on a line of its own; Ctrl-C stops server and worker."""
    process = start("up", "--data", str(folder / "data"))
    try:
        assert process.stdout is not None
        dsn = process.stdout.readline().strip()
        assert dsn.startswith("postgresql://")
        with connect(dsn, purpose="test") as connection:
            (dimensions,) = fetch_one(
                connection, "SELECT vector_dims(pgembed.embed('minilm', 'a text'))"
            )
            assert dimensions == 384
            (pid,) = fetch_one(connection, "SELECT pid FROM pgembed.workers LIMIT 1")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0
    assert not (folder / "data" / "postmaster.pid").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
