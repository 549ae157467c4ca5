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

from pgembed.postgres.connection import connect, fetch_all, fetch_one
from pgembed.postgres.embedded import EmbeddedServer
from tests.integration.worker.running import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path: Unix sockets have little room."""
    with tempfile.TemporaryDirectory(prefix="pgembed-cli-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def start(*arguments: str, stderr: int | None = None) -> subprocess.Popen[str]:
    """Start a pgembed command; its output can be read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgembed", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
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
    assert "The demo's server stops now" in output


def test_demo_in_a_database_of_the_users(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own table is made anew, no other; the folder may have any name."""
    monkeypatch.chdir(folder)
    folder = folder / "my data"
    with (
        EmbeddedServer(folder) as server,
        connect(server.dsn(), purpose="test") as connection,
    ):
        connection.execute("CREATE TABLE manual (id int PRIMARY KEY)")
        process = start("demo", "--data", "my data", stderr=subprocess.PIPE)
        _, errors = process.communicate()
        assert process.returncode == 1
        assert "has a table public.manual that is not the demo's" in errors
        connection.execute("ALTER TABLE manual RENAME TO ours")
        for _ in range(2):
            output, _ = start("demo", "--data", "my data").communicate()
            assert f"pgembed up --data '{folder.resolve()}'\n" in output
            assert output.endswith("which ran before the demo, goes on.\n")
        connection.execute("CREATE VIEW mine AS SELECT id FROM manual")
        process = start("demo", "--data", "my data", stderr=subprocess.PIPE)
        _, errors = process.communicate()
        assert "view mine depends on table manual" in errors
        assert fetch_all(connection, "SELECT name FROM pgembed.embedding")


@pytest.mark.parametrize(
    "name", ["/etc/passwd/x", "/etc/passwd/x/y", "~no-such-user/x"]
)
@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_folder_that_cannot_be_made(command: str, name: str) -> None:
    process = start(command, "--data", name, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith(f"Error: cannot create the folder of {name} for")
    assert "Traceback" not in errors


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
            connection.execute("SET pgembed.call_timeout = '60s'")
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


def test_up_on_a_server_that_runs(folder: Path) -> None:
    """It goes on, and the command that is told stops it."""
    with EmbeddedServer(folder / "my data") as server:
        process = start("up", "--data", str(server.data_dir), stderr=subprocess.STDOUT)
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            said = next(line for line in lines if line.startswith("ready"))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
        assert "Ctrl-C stops the worker; the server, which ran before, goes on" in said
        file = server.data_dir / "postmaster.pid"
        assert file.exists()
        command = said.partition("To stop it, too:")[2]
        subprocess.run(["/bin/sh", "-c", command], check=True)
        wait_until(lambda: not file.exists())
