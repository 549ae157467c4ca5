"""pg_dump and pg_restore: the work goes on in the copy."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pgembed.postgres.connection import connect
from tests.harness.server import Databases
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    rows,
    value,
)
from tests.integration.embeddings.support import declare

NAMES = ("docs_body", "cut", "parts_body")


def run(server: Databases, program: str, *arguments: str) -> None:
    """Run one of the server's programs."""
    subprocess.run(
        [server.programs / program, *arguments],
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.fixture
def source(db: Connection, worker: SqlWorker) -> Connection:
    """Return a database with work done, held, failed and waiting."""
    db.execute(
        """
        CREATE TABLE docs (id bigint PRIMARY KEY, body text);
        CREATE SCHEMA far;
        CREATE TABLE far.parts (id int, year int, body text, PRIMARY KEY (id, year))
            PARTITION BY RANGE (year);
        CREATE TABLE far.parts_1 PARTITION OF far.parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE far.parts_2 PARTITION OF far.parts FOR VALUES FROM (10) TO (20);
        INSERT INTO docs
            SELECT i, 'row number ' || i FROM generate_series(1, 20) AS i;
        INSERT INTO far.parts
            SELECT i, i, 'part ' || i FROM generate_series(1, 19) AS i;
        """
    )
    declare(db, "docs", "body", on_change="clear")
    declare(db, "docs", "body", name="cut", chunk_tokens=8)
    declare(db, "far.parts", "body")
    worker.drain()
    db.execute("UPDATE docs SET body = 'changed ' || id WHERE id < 6")
    worker.fail(worker.claim("docs_body", 1), max_attempts=1)
    worker.claim("docs_body", 2)
    db.execute("UPDATE far.parts SET body = 'changed' WHERE id = 3")
    return db


def goes_on(connection: Connection) -> None:
    worker = SqlWorker(connection)
    connection.execute("INSERT INTO docs VALUES (21, 'new'), (22, NULL)")
    connection.execute("UPDATE docs SET body = 'again' WHERE id = 7")
    connection.execute("UPDATE docs SET id = 30 WHERE id = 8")
    connection.execute("DELETE FROM docs WHERE id = 9")
    connection.execute("TRUNCATE far.parts_1")
    connection.execute("INSERT INTO far.parts VALUES (1, 11, 'new')")
    for name in NAMES:
        expire(connection, name)
    worker.drain()
    for name in NAMES:
        assert_converged(connection, name)
    connection.execute("TRUNCATE docs, far.parts")
    for name in NAMES:
        assert_converged(connection, name)
        rows(connection, "SELECT pgembed.drop_embedding(%s, true)", name)


def test_full(source: Connection, server: Databases, dsn: str, tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    run(server, "pg_dump", "--format=custom", f"--file={path}", dsn)
    with server.database("template0") as copy:
        target = server.dsn(copy)
        run(server, "pg_restore", "--exit-on-error", f"--dbname={target}", path)
        with connect(target) as connection:
            assert value(connection, "SELECT count(*) FROM pgembed.failures") == 1
            goes_on(connection)


@pytest.mark.parametrize("disable", [True, False], ids=["disabled", "fired"])
def test_data_only(
    source: Connection, server: Databases, dsn: str, tmp_path: Path, disable: bool
) -> None:
    schema, data = str(tmp_path / "schema"), str(tmp_path / "data")
    run(server, "pg_dump", "--schema-only", "--format=custom", f"--file={schema}", dsn)
    run(server, "pg_dump", "--data-only", "--format=custom", f"--file={data}", dsn)
    with server.database("template0") as copy:
        target = f"--dbname={server.dsn(copy)}"
        run(server, "pg_restore", "--exit-on-error", target, schema)
        options = ["--disable-triggers"] if disable else []
        run(server, "pg_restore", "--exit-on-error", *options, target, data)
        with connect(server.dsn(copy)) as connection:
            for name in NAMES:
                rows(connection, "SELECT pgembed.reconcile(%s)", name)
            goes_on(connection)
