"""The folder in which SQL functions find the sockets of workers, and who may use it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pgembed.errors import WorkerError
from pgembed.postgres.connection import Connection, fetch_one

_MAX_PATH = 107  # sockaddr_un holds 108 bytes, the last one a NUL
_BACKLOG = 128
_FOLDER_MODE = 0o750
_SOCKET_MODE = 0o660


@dataclasses.dataclass(frozen=True)
class Peer:
    """Who is at the other end of a Unix socket, as the kernel says."""

    user: int
    group: int

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """Return the process that connected, or that listens."""
        size = struct.calcsize("iII")
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, user, group = struct.unpack("iII", raw)
        return cls(user, group)


@dataclasses.dataclass(frozen=True)
class SocketPlace:
    """Where a worker of one database opens its socket."""

    folder: Path
    prefix: str
    """How the names of this database's sockets begin."""
    server_group: int | None
    """The group of PostgreSQL's processes, where that is known."""

    @classmethod
    def of(cls, connection: Connection, folder: Path | None) -> Self | None:
        """Return the place that the database names, or *folder* instead.

        None when SQL functions do not use sockets.
        """
        if fetch_one(connection, _USES_SOCKETS)[0] is None:
            return None
        named, prefix = fetch_one(connection, _PLACE)
        return cls(folder or Path(named), prefix, _server_group(connection))

    def admits(self, peer: Peer) -> bool:
        """Whether a process is root's, ours, the folder's owner's or its group's."""
        status = self.folder.stat()
        users = (0, os.geteuid(), status.st_uid)
        return peer.user in users or peer.group == status.st_gid

    def listen(self) -> tuple[socket.socket, Path]:
        """Open a socket of our own; remove those of workers that died.

        Raises WorkerError with the remedy when the folder cannot be used.
        """
        try:
            self._prepare()
            with self._alone():
                self._remove_stale()
                path = self.folder / f"{self.prefix}{secrets.token_hex(4)}"
                return self._bind(path), path
        except OSError as error:
            raise WorkerError(
                f"no socket for SQL functions in {self.folder}: {error}. Let the "
                "folder belong to this user and to PostgreSQL's group, or name another "
                "with 'pgembed install --socket-dir'"
            ) from None

    def _prepare(self) -> None:
        with contextlib.suppress(FileExistsError):  # by another worker, perhaps now
            self.folder.mkdir(_FOLDER_MODE)
            # Whatever the umask is.
            self.folder.chmod(_FOLDER_MODE)
            if self.server_group is not None:
                with contextlib.suppress(PermissionError):
                    os.chown(self.folder, -1, self.server_group)
        mode = self.folder.stat().st_mode
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder")
        if mode & 0o007:
            raise PermissionError(errno.EPERM, "everybody may enter it: run chmod o=")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other workers out: a socket that does not listen yet seems dead."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _remove_stale(self) -> None:
        for path in self.folder.glob(f"{self.prefix}*"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(0)
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink(missing_ok=True)
                except OSError:
                    continue

    def _bind(self, path: Path) -> socket.socket:
        if len(os.fsencode(path)) > _MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, f"{path} is too long for a socket")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(_SOCKET_MODE)
            with contextlib.suppress(PermissionError):
                os.chown(path, -1, self.folder.stat().st_gid)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener


_USES_SOCKETS = """
    SELECT pg_catalog.to_regproc('pgembed._talk')
"""

_PLACE = """
    SELECT i.socket_dir, pg_catalog.concat(s.system_identifier, '-', d.oid, '-')
    FROM pgembed.installation AS i, pg_catalog.pg_control_system() AS s,
        pg_catalog.pg_database AS d
    WHERE d.datname = pg_catalog.current_database()
"""


def _server_group(connection: Connection) -> int | None:
    """Return the group of the server's processes when it is reached over a socket."""
    copy = socket.socket(fileno=os.dup(connection.fileno()))
    try:
        return Peer.of(copy).group if copy.family == socket.AF_UNIX else None
    finally:
        copy.close()
