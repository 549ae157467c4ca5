"""A server that one test may stop in the roughest way."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pgembed.postgres import system
from pgembed.postgres.embedded import EmbeddedServer
from tests.harness.server import Databases

# What was committed must survive an immediate stop: the WAL leaves the process at every
# commit. It need not reach the disk, because the machine goes on.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "deadlock_timeout": "200ms",
}


class OwnServer(Databases):
    """A server of a test's own; its DSNs outlive a restart."""

    def __init__(self, server: EmbeddedServer) -> None:
        programs = system.binaries(system.Account.current())
        super().__init__(server, server.data_dir, programs)
        self._embedded = server

    def restart_immediately(self) -> None:
        """Stop without a word to the sessions, as a crash does; start with recovery."""
        self.stop_immediately()
        self._embedded.start()

    def stop_immediately(self) -> None:
        """Stop without a word to the sessions and without a checkpoint."""
        self._embedded._pg_ctl("-m", "immediate", "stop")

    def start(self) -> None:
        """Start again."""
        self._embedded.start()

    def promote(self) -> None:
        """Let a standby become a primary."""
        self._embedded._pg_ctl("promote")

    def copy(self, folder: Path) -> None:
        """Write into *folder* what a standby of this server starts with."""
        account = system.account_for(self.folder)
        os.chown(folder, account.uid, account.gid)
        options = ("-R", "-c", "fast", "-d", self.dsn(), "-D", str(folder))
        self._embedded._run("pg_basebackup", *options)
        for name in (".s.PGSQL.5432.lock", "server.log"):
            (folder / name).unlink()

    def log(self) -> str:
        """Return all that the server logged."""
        path = self.folder / "server.log"
        return path.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def own_server() -> Iterator[OwnServer]:
    """Start a server on a folder of its own; stop it and delete the folder."""
    folder = Path(tempfile.mkdtemp(prefix="pgembed-faults-"))
    try:
        with EmbeddedServer(folder, settings=_SETTINGS) as server:
            yield OwnServer(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def standby_of(primary: OwnServer) -> Iterator[OwnServer]:
    """Start a standby that follows *primary*; stop it and delete its folder."""
    folder = Path(tempfile.mkdtemp(prefix="pgembed-standby-"))
    try:
        primary.copy(folder)
        with EmbeddedServer(folder) as server:
            yield OwnServer(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
