"""P5: one bad row, model or embedding blocks nothing else; nor does a full disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgembed.embeddings.queue import read_leniently
from pgembed.postgres.connection import connect, fetch_one
from pgembed.postgres.schema import install
from tests.harness.oracle import assert_converged
from tests.harness.own_server import OwnServer
from tests.harness.processes import worker_process
from tests.integration.worker.running import (
    Connection,
    add_good,
    create_docs,
    embed_all,
    is_drained,
    vectors,
    wait_until,
)

MOUNT, UMOUNT = "/bin/mount", "/bin/umount"
_FILL = "INSERT INTO filler SELECT repeat('x', 7000) FROM generate_series(1, %s)"


@pytest.fixture
def small_disk(rough_server: OwnServer) -> Iterator[str]:
    """Return the name of a tablespace of 16 MB."""
    owner = rough_server.folder.stat()
    folder = Path(tempfile.mkdtemp(prefix="pgembed-disk-"))
    command = [MOUNT, "-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"a file system of 16 MB cannot be mounted: {done.stderr.strip()}")
    try:
        place = folder / "data"
        place.mkdir(mode=0o700)
        os.chown(place, owner.st_uid, owner.st_gid)
        with psycopg.connect(rough_server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'".encode())
            yield "small"
            connection.execute("DROP TABLESPACE small")
    finally:
        subprocess.run([UMOUNT, "--lazy", str(folder)], check=False)
        folder.rmdir()


def fill(connection: Connection) -> None:
    """Use every byte of the disk."""
    for rows in (100, 10, 1):
        with contextlib.suppress(psycopg.errors.DiskFull):
            while True:
                connection.execute(_FILL, [rows])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(rough_server: OwnServer, small_disk: str, tmp_path: Path) -> None:
    """Work pauses and says why; no attempt is used up; then it goes on."""
    with (
        rough_server.database(rough_server.installed_template()) as name,
        connect(rough_server.dsn(name)) as connection,
    ):
        dsn = rough_server.dsn(name)
        model = add_good(connection, tmp_path)
        connection.execute(f"SET default_tablespace = {small_disk}".encode())
        create_docs(connection, *[f"the dog {i}" for i in range(300)])
        connection.execute("CREATE TABLE filler (x text STORAGE PLAIN)")
        fill(connection)
        with worker_process(dsn, tmp_path, max_attempts=1, claim_rows=300) as worker:
            wait_until(lambda: "the server's disk is full" in worker.log())
            burned = "SELECT count(*) FROM pgembed.failures"
            assert fetch_one(connection, burned) == (0,)
            assert not is_drained(connection)
            connection.execute("DROP TABLE filler")
            wait_until(lambda: is_drained(connection))
            assert worker.terminate() == 0
        assert_converged(connection, model)
        connection.execute("DROP TABLE docs")


@pytest.fixture
def ascii_dsn(rough_server: OwnServer) -> Iterator[str]:
    """Return the DSN of a database that takes any bytes for text."""
    with psycopg.connect(rough_server.dsn(), autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE any_bytes TEMPLATE template0 ENCODING 'SQL_ASCII' "
            "LOCALE_PROVIDER libc LOCALE 'C'"
        )
        dsn = rough_server.dsn("any_bytes")
        with connect(dsn) as installing:
            install(installing)
        yield dsn
        connection.execute("DROP DATABASE any_bytes WITH (FORCE)")


def test_bytes_that_are_no_text(ascii_dsn: str, tmp_path: Path) -> None:
    """They are read as U+FFFD; the row has a vector, and so have all others."""
    with connect(ascii_dsn) as connection:
        read_leniently(connection)
        model = add_good(connection, tmp_path)
        create_docs(connection, "a cat", "the dog")
        connection.execute(r"INSERT INTO docs (id, body) VALUES (3, E'red \xff\xfe')")
        connection.execute(r"INSERT INTO docs (id, body) VALUES (4, E'\xc3')")
        embed_all(ascii_dsn)
        assert_converged(connection, model)
        assert all(vector is not None for vector in vectors(connection).values())


def test_failures_in_bytes_that_are_no_text(ascii_dsn: str, tmp_path: Path) -> None:
    """Keys may be such bytes as well, and statuses are still readable."""
    with connect(ascii_dsn) as connection:
        read_leniently(connection)
        model = add_good(connection, tmp_path)
        connection.execute("CREATE TABLE docs (id text PRIMARY KEY, body text)")
        connection.execute(
            r"INSERT INTO docs VALUES (E'k\xff', 'a cat'), ('b', E'\xff')"
        )
        connection.execute(
            "SELECT pgembed.create_embedding('docs', 'body', 'tiny', index => 'none')"
        )
        embed_all(ascii_dsn)
        assert_converged(connection, model)
