"""A real PgBouncer in transaction mode, in front of a server."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

_POOL = 3  # fewer sessions than clients, so that they change hands


def install() -> str | None:
    """Return the path of pgbouncer, installed as a Debian package when possible."""
    if not _find() and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*command, "pgbouncer"],
                env=environ,
                capture_output=True,
                timeout=100,
                check=False,
            )
    return _find()


def _find() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextlib.contextmanager
def pgbouncer(program: str, dsn: str, folder: Path, user: int) -> Iterator[str]:
    """Run PgBouncer as user id *user* during the block; yield the DSN to use."""
    given = conninfo_to_dict(dsn)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""
        [databases]
        * = host={given["host"]} port={given.get("port") or 5432} user=postgres
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = transaction
        default_pool_size = {_POOL}
        """,
        encoding="utf-8",
    )
    address = f"postgresql://postgres@127.0.0.1:{port}/{given['dbname']}"
    with serving(program, config, user, address):
        yield address


@contextlib.contextmanager
def serving(program: str, config: Path, user: int, address: str) -> Iterator[None]:
    """Run PgBouncer with these settings during the block, once *address* answers."""
    for path in (config, *config.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    log = config.with_name("pgbouncer.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, str(config)], stdout=output, stderr=output, user=user
        )
    try:
        _wait(address, process, log)
        yield
    finally:
        process.kill()
        process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while not _answers(address):
        said = log.read_text(encoding="utf-8")
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


def _answers(address: str) -> bool:
    try:
        psycopg.connect(address).close()
    except psycopg.OperationalError:
        return False
    return True
