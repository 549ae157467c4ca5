"""Servers for a test session, and databases cloned from a template."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql

from pgembed.postgres import system
from pgembed.postgres.connection import connect
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.postgres.schema import install
from pgembed.postgres.transports import Wish
from tests.harness.debian import DebianServer

TEMPLATE = "pgembed_template"

# Nothing here outlives the session, so nothing needs to reach the disk.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "256MB",
    "wal_level": "logical",
    "max_connections": "200",
}


class Server(Protocol):
    """A server that runs."""

    def dsn(self, database: str = "postgres") -> str:
        """Return the URI of *database*."""


class Databases:
    """A server of the test session, from which each test takes a database."""

    def __init__(self, server: Server, folder: Path, programs: Path) -> None:
        self.server = server
        self.folder = folder
        """Where the server keeps its data."""
        self.programs = programs
        """The folder of its programs, such as pg_dump."""
        self.socket_dir = folder / "calls"
        """Where workers open sockets for SQL functions in PL/Python."""
        self._numbers = itertools.count(1)
        self._templates: set[str] = set()

    def dsn(self, database: str = "postgres", **parameters: str) -> str:
        """Return the URI of *database*; *parameters* are libpq's, such as user."""
        uri = self.server.dsn(database)
        if "user" in parameters:
            uri = uri.replace("postgres@", f"{parameters['user']}@", 1)
        return uri

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Create a database, yield its name, and drop it with its sessions."""
        name = f"test_{next(self._numbers)}"
        # Six times as fast as a copy through the WAL, as long as fsync is off.
        self._execute(
            "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template
        )
        try:
            yield name
        finally:
            self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def installed_template(self, transport: Wish = "auto") -> str:
        """Return the name of a database with pgembed in it, made when first asked."""
        name = f"{TEMPLATE}_{transport}"
        if name not in self._templates:
            self._execute("DROP DATABASE IF EXISTS {}", name)
            self._execute("CREATE DATABASE {}", name)
            with connect(self.dsn(name), purpose="test template") as connection:
                install(
                    connection, transport=transport, socket_dir=str(self.socket_dir)
                )
            self._templates.add(name)
        return name

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def run_program(server: Databases, program: str, *arguments: str) -> None:
    """Run one of the server's programs; what it says is in the error when it fails."""
    done = subprocess.run(
        [server.programs / program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running_server() -> Iterator[Databases]:
    """Start the embedded server on a folder of its own, which is deleted."""
    with (
        _folder("pgembed-tests", _stop_embedded) as folder,
        EmbeddedServer(folder, settings=_SETTINGS) as server,
    ):
        programs = system.binaries(system.Account.current())
        yield Databases(server, folder, programs)


@contextlib.contextmanager
def running_debian_server(
    settings: Mapping[str, str] | None = None,
) -> Iterator[Databases]:
    """Start Debian's server, which has PL/Python, likewise."""
    with (
        _folder("pgembed-debian", lambda f: DebianServer(f, {}).stop()) as folder,
        DebianServer(folder, {**_SETTINGS, **(settings or {})}) as server,
    ):
        yield Databases(server, folder, server.programs)


@contextlib.contextmanager
def _folder(prefix: str, stop: Callable[[Path], None]) -> Iterator[Path]:
    _stop_abandoned(prefix, stop)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop_abandoned(prefix: str, stop: Callable[[Path], None]) -> None:
    """Stop the servers of test sessions that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}-*"):
        match = re.match(rf"{prefix}-(\d+)-", folder.name)
        if match is None or Path(f"/proc/{match[1]}").exists():
            continue
        with contextlib.suppress(Exception):
            stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _stop_embedded(folder: Path) -> None:
    server = EmbeddedServer(folder)
    server.start()
    server.started = True
    server.stop()
