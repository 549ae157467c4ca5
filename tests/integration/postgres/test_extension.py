"""CREATE EXTENSION leaves what `pgembed install` leaves, and goes without a trace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import errors

from pgembed.cli.main import pgembed
from pgembed.errors import InstallError
from pgembed.postgres import extension
from pgembed.postgres.schema import install, uninstall, verify
from tests.conftest import Connect
from tests.harness.extension import Files, catalog, declare_docs, extension_files
from tests.harness.server import Databases
from tests.harness.sql_worker import SqlWorker, assert_converged

Connection = psycopg.Connection[Any]


@pytest.fixture
def files(server: Databases, tmp_path: Path) -> Iterator[Files]:
    """Write the extension where the server finds it."""
    for files in extension_files(server):
        result = CliRunner().invoke(
            pgembed, ["extension", "install", "--pg-config", files.pg_config(tmp_path)]
        )
        assert result.exit_code == 0, result.output
        assert f"wrote {files.share}/extension/pgembed.control" in result.output
        yield files


@pytest.fixture
def extended(files: Files, empty_dsn: str, connect: Connect) -> Connection:
    """Return a connection to a database with the extension."""
    connection = connect(empty_dsn)
    files.find_in(connection)
    connection.execute("CREATE EXTENSION pgembed CASCADE")
    return connection


def test_the_catalog_is_that_of_install(
    extended: Connection, server: Databases, connect: Connect
) -> None:
    with server.database() as name:
        installed = connect(server.dsn(name))
        install(installed)
        wanted = catalog(installed)
        installed.close()
    assert len(wanted) > 300
    assert catalog(extended) == wanted


def test_the_doctor_is_content_and_install_refuses(extended: Connection) -> None:
    [finding] = [f for f in verify(extended) if f.subject == "schema"]
    assert finding.level == "ok"
    with pytest.raises(InstallError, match="as an extension"):
        install(extended)


def test_an_extension_elsewhere_is_found(
    files: Files, empty_dsn: str, connect: Connect
) -> None:
    if files.major < 16:
        pytest.skip("a script cannot ask where another extension is")
    connection = connect(empty_dsn)
    files.find_in(connection)
    connection.execute(
        "CREATE SCHEMA types; CREATE EXTENSION vector SCHEMA types;"
        "CREATE EXTENSION pgembed CASCADE"
    )
    connection.execute("SET search_path = types, public")
    worker = declare_docs(connection)
    worker.drain()
    assert_converged(connection, "docs_body")


def test_it_is_not_dropped_from_under_its_triggers(extended: Connection) -> None:
    worker = declare_docs(extended)
    worker.drain()
    assert_converged(extended, "docs_body")
    with pytest.raises(errors.DependentObjectsStillExist, match="docs"):
        extended.execute("DROP EXTENSION pgembed")
    extended.execute("DROP EXTENSION pgembed CASCADE")
    extended.execute("INSERT INTO docs VALUES (6, 'nobody listens')")


def test_uninstall_leaves_nothing_but_the_tables(extended: Connection) -> None:
    declare_docs(extended).drain()
    uninstall(extended)
    left = extended.execute(
        "SELECT to_regnamespace('pgembed'), count(body_embedding) FROM docs"
    ).fetchone()
    assert left == (None, 5)
    extended.execute("INSERT INTO docs VALUES (6, 'nobody listens')")


def test_a_dump_brings_it_all_back(
    extended: Connection, server: Databases, connect: Connect, tmp_path: Path
) -> None:
    worker = declare_docs(extended)
    worker.drain()
    extended.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    path = str(tmp_path / "dump")
    dump, restore = (str(server.programs / p) for p in ("pg_dump", "pg_restore"))
    source = server.dsn(extended.info.dbname)
    with server.database("template0") as copy:
        for command in (
            [dump, "-Fc", f"--file={path}", source],
            [restore, "-e", f"--dbname={server.dsn(copy)}", path],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        restored = connect(server.dsn(copy))
        restored.execute("INSERT INTO docs VALUES (6, 'new')")
        SqlWorker(restored).drain()
        assert_converged(restored, "docs_body")
        other = (
            "SELECT pgembed.create_embedding('docs', 'body', 'tiny', name => 'two', "
            "target_column => 'second')"
        )
        restored.execute(other.encode())
        restored.close()


def test_the_socket_s_folder_is_data() -> None:
    server = extension.Server(18, Path("unused"))
    text = extension.script_for(server, "plpython", "/run/it's; here")
    assert "socket_dir = '/run/it''s; here';" in text


def test_files_for_an_older_server_name_the_schema() -> None:
    text = extension.script_for(extension.Server(15, Path("unused")), "dblink")
    assert "@extschema" not in text
    assert "needs these in schema public" in text


@pytest.mark.parametrize("program", ["/no/such/pg_config", "/bin/false", "/bin/true"])
def test_a_pg_config_that_is_none(program: str) -> None:
    with pytest.raises(InstallError, match="--pg-config"):
        extension.Server.described_by(program)


def test_a_folder_that_is_not_there() -> None:
    server = extension.Server(18, Path("/no/such/folder"))
    with pytest.raises(InstallError, match="cannot write /no/such/folder"):
        extension.write(server, "dblink")
