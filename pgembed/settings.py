"""One frozen object holds every setting: argument, else PGEMBED_*, else default."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_type_hints

import platformdirs

from pgembed.errors import SettingError

LOG_FORMATS = ("plain", "json")

_UNITS = {"": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_LEAST_MEMORY = 64 << 20
_DAY = 86_400
_TYPES: Mapping[type, tuple[str, tuple[type, ...]]] = {
    str: ("a string", (str,)),
    Path: ("a path", (Path,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
}
_RANGES = {
    "processes": (1, 1000),
    "threads": (0, 1000),
    "batch_tokens": (1, 1_000_000),
    "claim_rows": (1, 100_000),
    "lease_seconds": (1, _DAY),
    "poll_seconds": (0.01, _DAY),
    # The database counts attempts in a smallint.
    "max_attempts": (1, 10_000),
    "drain_seconds": (0, _DAY),
    "metrics_port": (0, 65_535),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a pgembed process can be told.

    Build it with :meth:`load`; the environment variable of a field is its name in
    capitals after ``PGEMBED_``. Raises SettingError for a value of the wrong type or
    out of range.
    """

    dsn: str = ""
    """libpq connection string or URI; empty: libpq's own PG* variables decide."""
    data_dir: Path = dataclasses.field(default_factory=lambda: _default_data_dir())
    """Where the embedded server keeps its data."""
    cache_dir: Path = Path(platformdirs.user_cache_dir("pgembed")) / "models"
    """Where verified model files are kept, by hash; safe to delete. Made absolute."""
    processes: int = 1
    """Processes that embed rows; one more answers calls."""
    threads: int = 0
    """Batches that run side by side in an embedding process, on a core each.

    0: cores divided by processes.
    """
    batch_tokens: int = 1024
    """Padded tokens in one inference batch."""
    claim_rows: int = 512
    """Rows held under one lease."""
    lease_seconds: float = 60.0
    """How long a lease lasts without a heartbeat."""
    poll_seconds: float = 2.0
    """How often a worker looks for work that no notification announced."""
    max_attempts: int = 5
    """Attempts at a row before it goes to pgembed.failures."""
    drain_seconds: float = 30.0
    """How long a worker told to stop may finish what it holds."""
    batch_memory: str = "512MB"
    """What a posted batch may use beyond mapped files, unless it asks for less.

    Bytes, or a size such as 2GB.
    """
    metrics_port: int = 0
    """Where a worker serves metrics to Prometheus; 0: nowhere."""
    metrics_address: str = "127.0.0.1"
    """The address for metrics_port; 0.0.0.0 is every one of this machine."""
    log_format: str = "plain"
    """How a worker logs: plain or json."""

    socket_dir: str = ""
    """Where a worker opens its socket for SQL functions; empty: as installed."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), kind)
        for name, (least, most) in _RANGES.items():
            _require(name, getattr(self, name), at_least=least, at_most=most)
        if self.log_format not in LOG_FORMATS:
            raise SettingError(
                f"log_format is {self.log_format!r}, but must be one of "
                f"{', '.join(LOG_FORMATS)}: pass one or unset PGEMBED_LOG_FORMAT"
            )
        memory_bytes(self.batch_memory, "batch_memory")
        check_socket_dir(self.socket_dir)
        object.__setattr__(self, "cache_dir", _absolute(self.cache_dir))

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, **arguments: Any) -> Self:
        """Return the settings; an argument that is None counts as not given.

        Raises SettingError for a value of the wrong type or out of range.
        """
        values = {k: v for k, v in arguments.items() if v is not None}
        for name, kind in get_type_hints(cls).items():
            text = environ.get(f"PGEMBED_{name.upper()}", "")
            if name not in values and text:
                values[name] = _parse(f"PGEMBED_{name.upper()}", text, kind)
        return cls(**values)


def check_socket_dir(folder: str | None) -> None:
    """Raise SettingError for a folder of sockets that is given, but is not absolute.

    Worker and server would each look for it where they were started.
    """
    if folder and not Path(folder).is_absolute():
        raise SettingError(
            f"socket_dir is {folder!r}, but must be absolute, for worker and server to "
            f"find it alike: pass a path such as {Path(folder).resolve()}"
        )


def memory_bytes(memory: str | int, name: str = "memory") -> int:
    """Return a number of bytes given as such or like '512MB'.

    Raises SettingError, which calls it *name*, for what is neither, or less than 64 MB.
    """
    match = re.fullmatch(r"([0-9]{1,20}) ?([kMGT]B)?", str(memory))
    if match is None:
        raise SettingError(
            f"{name} is {memory!r}: give bytes, or a size such as '512MB' or '2GB'"
        )
    found = int(match[1]) * _UNITS[match[2] or ""]
    if found < _LEAST_MEMORY:
        raise SettingError(f"{name} is {memory!r}, but a batch needs at least 64MB")
    return found


def _absolute(cache_dir: Path) -> Path:
    """Return the folder's path for all processes, wherever they were started."""
    try:
        return cache_dir.expanduser().absolute()
    except RuntimeError:
        raise SettingError(
            f"cache_dir is {str(cache_dir)!r}, but there is no such user's home: pass "
            "an absolute path or unset PGEMBED_CACHE_DIR"
        ) from None


def _default_data_dir() -> Path:
    # Root's server runs as another account, which may not enter root's home.
    if os.geteuid() == 0:
        return Path("/var/lib/pgembed/postgres")
    return Path(platformdirs.user_data_dir("pgembed")) / "postgres"


def _parse(variable: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise SettingError(
            f"{variable}={text!r} is not a valid {kind.__name__}: "
            f"correct it or unset it"
        ) from None


def _check_type(name: str, value: object, kind: type) -> None:
    wanted, types = _TYPES[kind]
    if not isinstance(value, types) or isinstance(value, bool):
        raise SettingError(
            f"{name} is {value!r}, but must be {wanted}: "
            f"pass one or unset PGEMBED_{name.upper()}"
        )


def _require(name: str, value: float, *, at_least: float, at_most: float) -> None:
    if not at_least <= value <= at_most:
        raise SettingError(
            f"{name} is {value!r}, but must be from {at_least} to {at_most:,}: "
            f"pass another value or unset PGEMBED_{name.upper()}"
        )
