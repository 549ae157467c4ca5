"""One embedded server for a test session, and databases cloned from a template."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from pgembed.postgres.connection import connect
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.postgres.schema import install

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


class Databases:
    """The test session's server, from which each test takes a database."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._has_template = False

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

    def installed_template(self) -> str:
        """Return the name of a database with pgembed in it, made when first asked."""
        if not self._has_template:
            self._execute("DROP DATABASE IF EXISTS {}", TEMPLATE)
            self._execute("CREATE DATABASE {}", TEMPLATE)
            with connect(self.dsn(TEMPLATE), purpose="test template") as connection:
                install(connection)
            self._has_template = True
        return TEMPLATE

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextlib.contextmanager
def running_server() -> Iterator[Databases]:
    """Start a server on a folder of its own; stop it and delete the folder."""
    _stop_abandoned()
    prefix = f"pgembed-tests-{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with EmbeddedServer(folder, settings=_SETTINGS) as server:
            yield Databases(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop_abandoned() -> None:
    """Stop the servers of test sessions that were killed."""
    for folder in Path(tempfile.gettempdir()).glob("pgembed-tests-*"):
        match = re.match(r"pgembed-tests-(\d+)-", folder.name)
        if match is None or Path(f"/proc/{match[1]}").exists():
            continue
        with contextlib.suppress(Exception):
            server = EmbeddedServer(folder)
            server.start()
            server.started = True
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
