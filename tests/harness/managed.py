"""A server as managed services run it: TLS and passwords, no superuser to be had."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psycopg

from tests.harness.debian import DebianServer

PASSWORD = "secret"  # noqa: S105 - of a server that a test makes


class ManagedServer:
    """Debian's server behind TLS on localhost; its own machine trusts the superuser."""

    def __init__(self, server: DebianServer, folder: Path, port: int) -> None:
        self.server = server
        self.folder = folder
        self.port = port
        self.certificate = folder / "server.crt"
        """Certificate of the server, and of the authority that signed it: itself."""
        self.key = folder / "server.key"

    @property
    def user(self) -> int:
        """The id of the user whose processes the server's are."""
        return self.folder.stat().st_uid

    def provider(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        """Return a superuser's session, over the socket that no customer reaches."""
        dsn = f"{self.server.dsn(database)}&port={self.port}"
        return psycopg.connect(dsn, autocommit=True)

    def dsn(self, user: str, database: str, **parameters: str) -> str:
        """Return the URI of a role that logs in by password over verified TLS."""
        query = {
            "sslmode": "verify-full",
            "sslrootcert": str(self.certificate),
            **parameters,
        }
        place = f"localhost:{parameters.get('port', self.port)}"
        query.pop("port", None)
        encoded = urlencode(query, safe="/")
        return f"postgresql://{user}:{PASSWORD}@{place}/{database}?{encoded}"


@contextlib.contextmanager
def managed_server() -> Iterator[ManagedServer]:
    """Start such a server; stop it and delete its folder after the block."""
    folder = Path(tempfile.mkdtemp(prefix="pgembed-managed-"))
    try:
        with DebianServer(folder, {"fsync": "off", "max_connections": "100"}) as server:
            port = free_port()
            managed = ManagedServer(server, folder, port)
            _make_certificate(managed)
            _close(managed)
            server.restart()
            yield managed
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a TCP port of localhost that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _make_certificate(server: ManagedServer) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(server.key), "-out", str(server.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    status = server.folder.stat()
    for path in (server.key, server.certificate):
        os.chown(path, status.st_uid, status.st_gid)
    server.key.chmod(0o600)
    # Clients read the certificate.
    server.certificate.chmod(0o644)
    server.folder.chmod(0o755)


def _close(server: ManagedServer) -> None:
    with psycopg.connect(server.server.dsn(), autocommit=True) as superuser:
        for name, value in {
            "listen_addresses": "localhost",
            "port": str(server.port),
            "ssl": "on",
            "ssl_cert_file": str(server.certificate),
            "ssl_key_file": str(server.key),
            "password_encryption": "scram-sha-256",
        }.items():
            superuser.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    rules = ["local all postgres trust", "hostssl all all localhost scram-sha-256"]
    path = server.folder / "data" / "pg_hba.conf"
    path.write_text("".join(f"{rule}\n" for rule in rules), encoding="ascii")
