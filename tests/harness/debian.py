"""Debian's PostgreSQL with PL/Python and pgvector, on a private folder."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from pgembed.postgres import system

HOW_TO_INSTALL = "run 'make server' as root (docker/install-postgres.sh)"

_BINARIES = Path("/usr/lib/postgresql")
_EXTENSIONS = Path("/usr/share/postgresql")


def installed_major() -> int | None:
    """Return the newest major version that has all it takes, or None."""
    majors = (int(f.name) for f in _BINARIES.glob("*") if f.name.isdigit())
    return max(filter(_is_complete, majors), default=None)


def _is_complete(major: int) -> bool:
    extensions = _EXTENSIONS / str(major) / "extension"
    names = ("plpython3u", "vector", "dblink")
    return all((extensions / f"{name}.control").exists() for name in names)


class DebianServer:
    """A cluster on *folder*, never run by root, on a Unix socket alone.

    Raises ServerError when a program fails.
    """

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        major = installed_major()
        assert major is not None, HOW_TO_INSTALL
        self.programs = _BINARIES / str(major) / "bin"
        self._folder = folder
        self._data = folder / "data"
        self._settings = settings
        self._account = system.account_for(folder)

    def __enter__(self) -> Self:
        self._run(
            "initdb",
            *("-D", str(self._data), "-U", "postgres", "-E", "UTF8", "--locale=C"),
            *("--auth=trust", "--no-sync", "--no-instructions"),
        )
        lines = [f"{name} = '{value}'\n" for name, value in self._settings.items()]
        lines += [
            f"unix_socket_directories = '{self._folder}'\n",
            "listen_addresses = ''\n",
        ]
        with open(self._data / "postgresql.conf", "a", encoding="ascii") as file:
            file.writelines(lines)
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def dsn(self, database: str = "postgres") -> str:
        """Return the URI of *database*."""
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def stop(self) -> None:
        """Stop the server at once, if it runs."""
        if (self._data / "postmaster.pid").exists():
            self._pg_ctl("-m", "immediate", "stop")

    def restart(self) -> None:
        """Stop the server as a crash would, and start it again."""
        self.stop()
        self._start()

    def _start(self) -> None:
        self._pg_ctl("-l", str(self._folder / "server.log"), "start")

    def _pg_ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-s", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        system.run([str(self.programs / program), *arguments], self._account)
