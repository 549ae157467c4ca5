"""pg_dump and pg_restore: the work goes on in the copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgembed.errors import InstallError
from pgembed.postgres.connection import connect
from pgembed.postgres.findings import Finding
from pgembed.postgres.schema import install, uninstall, verify
from tests.harness.extension import declare_docs
from tests.harness.models import register_model
from tests.harness.roles import ordinary_role
from tests.harness.server import Databases
from tests.harness.server import run_program as run
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


def test_schema_only(
    source: Connection, server: Databases, dsn: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "schema")
    run(server, "pg_dump", "--schema-only", f"--file={path}", dsn)
    with server.database("template0") as copy:
        run(server, "psql", "--quiet", f"--file={path}", server.dsn(copy))
        with connect(server.dsn(copy)) as connection:
            [finding] = [f for f in verify(connection) if f.subject == "schema"]
            assert finding.level == "error"
            assert "restored without its data" in finding.message
            assert "run 'pgembed uninstall', then" in finding.remedy
            with pytest.raises(InstallError, match="restored without its data: resto"):
                install(connection)
            uninstall(connection)
            assert install(connection).changed
            connection.execute("INSERT INTO docs VALUES (1, 'nobody listens')")


TRIGGERS = """
    SELECT tgname FROM pg_trigger
    WHERE tgrelid IN ('docs'::regclass, 'far.parts'::regclass) AND NOT tgisinternal
"""


def test_a_table_without_its_embedding(
    source: Connection, server: Databases, dsn: str, tmp_path: Path
) -> None:
    """In the other database, the number of its embedding is that of another table."""
    path = str(tmp_path / "table")
    run(server, "pg_dump", "--table=docs", "--table=far.parts*", f"--file={path}", dsn)
    with (
        server.database(server.installed_template()) as copy,
        connect(server.dsn(copy)) as other,
    ):
        register_model(other)
        other.execute(
            """
            CREATE SCHEMA far;
            CREATE TABLE animals (id int PRIMARY KEY, body text);
            INSERT INTO animals SELECT i, 'cat' FROM generate_series(1, 9) AS i;
            """
        )
        for name in NAMES:
            declare(other, "animals", "body", name=name, target_column=name)
        SqlWorker(other).drain()
        before = jobs(other)
        run(server, "psql", "--quiet", f"--file={path}", server.dsn(copy))
        other.execute("UPDATE docs SET body = 'x', id = id + 50 WHERE id = 2")
        other.execute("DELETE FROM docs WHERE id < 9; DELETE FROM far.parts")
        other.execute("INSERT INTO docs VALUES (1, 'a'); TRUNCATE docs, far.parts")
        assert jobs(other) == before
        assert [f for f in verify(other) if "restored beside" in f.message] == []
        left = rows(other, TRIGGERS)
        for name in NAMES:
            rows(other, "SELECT pgembed.drop_embedding(%s)", name)
        assert rows(other, TRIGGERS) == left
        assert left == [("pgembed_3_wake",)]


def jobs(connection: Connection) -> list[object]:
    numbers = rows(connection, "SELECT id FROM pgembed.embedding ORDER BY id")
    return [
        rows(connection, f"SELECT * FROM pgembed.job_{number} AS j ORDER BY j.id")
        for (number,) in numbers
    ]


@pytest.mark.parametrize("by_parts", [False, True], ids=["whole", "data alone"])
def test_by_an_owner_who_is_no_superuser(
    server: Databases, empty_dsn: str, tmp_path: Path, by_parts: bool
) -> None:
    parts = ["--schema-only", "--data-only"] if by_parts else ["--format=custom"]
    with (
        ordinary_role(empty_dsn) as dsn,
        connect(empty_dsn) as superuser,
        server.database("template0") as copy,
        connect(server.dsn(copy)) as other,
    ):
        for each in (superuser, other):
            each.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
            each.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        with connect(dsn) as owner:
            install(owner)
            declare_docs(owner).drain()
            owner.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
            user = owner.info.user
        other.execute(f"GRANT CREATE ON DATABASE {copy} TO {user}".encode())
        target = server.dsn(copy, user=user)
        for part in parts:
            path = str(tmp_path / f"dump{part}")
            run(server, "pg_dump", "-Fc", part, f"--file={path}", dsn)
            # Comments on vector and dblink are their owner's.
            run(server, "pg_restore", "-e", "--no-comments", f"--dbname={target}", path)
        with connect(target) as restored:
            if by_parts:
                rows(restored, "SELECT pgembed.reconcile('docs_body')")
            restored.execute("INSERT INTO docs VALUES (6, 'new')")
            SqlWorker(restored).drain()
            assert_converged(restored, "docs_body")
        other.execute(f"DROP OWNED BY {user} CASCADE".encode())


def test_a_registry_that_was_not_restored(
    source: Connection, server: Databases, dsn: str, tmp_path: Path
) -> None:
    """Its rows name tables, all of which must be there when they are read."""
    source.execute("CREATE TABLE adopted (id int PRIMARY KEY, v vector(3))")
    rows(source, "SELECT pgembed.adopt_vectors('adopted', 'v')")
    assert registry_faults(source) == []
    path = str(tmp_path / "part")
    run(server, "pg_dump", "--exclude-table=adopted", f"--file={path}", dsn)
    with server.database("template0") as copy:
        run(server, "psql", "--quiet", f"--file={path}", server.dsn(copy))
        with connect(server.dsn(copy)) as connection:
            assert value(connection, "SELECT count(*) FROM pgembed.embedding") == 0
            found = registry_faults(connection)
            assert [f.message.split(", ")[0] for f in found] == [
                f"it has no embedding {n}" for n in (1, 2, 3)
            ]
            assert "triggers of docs add" in found[0].message
            assert "triggers of far.parts add" in found[2].message
            for each in found:
                connection.execute(each.remedy.split("again: ")[1].encode())
            assert registry_faults(connection) == []
            assert rows(connection, TRIGGERS) == []
            declare(connection, "docs", "body", on_change="clear")
            declare(connection, "docs", "body", name="two", chunk_tokens=8)
            SqlWorker(connection).drain()
            connection.execute("UPDATE docs SET body = 'again' WHERE id = 7")
            SqlWorker(connection).drain()
            for name in ("docs_body", "two"):
                assert_converged(connection, name)


def registry_faults(connection: Connection) -> list[Finding]:
    return [f for f in verify(connection) if f.subject == "registry"]
