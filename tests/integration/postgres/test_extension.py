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
from pgembed.postgres import extension, vectors
from pgembed.postgres.connection import connect
from pgembed.postgres.schema import install, uninstall, verify
from tests.conftest import Connect
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import SqlWorker, assert_converged

Connection = psycopg.Connection[Any]

# What a user can see of the schema; object ids and row versions differ.
CATALOG = """
    SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid),
        obj_description(p.oid, 'pg_proc'), p.proacl::text
    FROM pg_proc AS p
    WHERE p.pronamespace = 'pgembed'::regnamespace AND p.prokind IN ('f', 'p')
    UNION ALL
    SELECT 'relation', c.oid::regclass::text,
        concat_ws(' ', c.relkind, c.relpersistence,
            CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END),
        obj_description(c.oid, 'pg_class'), c.relacl::text
    FROM pg_class AS c WHERE c.relnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'column', format('%s.%s', c.oid::regclass, a.attname), concat_ws(' ',
            a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
            a.attstorage, pg_get_expr(d.adbin, d.adrelid)),
        col_description(c.oid, a.attnum), a.attacl::text
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
    WHERE c.relnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'constraint', format('%s.%s', r.conrelid::regclass, r.conname),
        pg_get_constraintdef(r.oid), NULL, NULL
    FROM pg_constraint AS r WHERE r.connamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid),
        NULL, NULL
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'type', t.oid::regtype::text, t.typtype::text,
        obj_description(t.oid, 'pg_type'), t.typacl::text
    FROM pg_type AS t WHERE t.typnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'schema', n.nspname, NULL,
        obj_description(n.oid, 'pg_namespace'), n.nspacl::text
    FROM pg_namespace AS n WHERE n.nspname = 'pgembed'
    UNION ALL
    SELECT 'record', i.version, v.version_num,
        array_to_string(i.objects, E'\\n'), i.digest
    FROM pgembed.installation AS i, pgembed.alembic_version AS v
    ORDER BY 1, 2, 3
"""


def catalog(connection: Connection) -> list[tuple[Any, ...]]:
    connection.execute("SET search_path = pg_catalog")
    rows = connection.execute(CATALOG.encode()).fetchall()
    connection.execute("RESET search_path")
    # The installer quotes every schema, the server only those that need it.
    return [
        tuple(
            v.replace('"public".', "public.") if isinstance(v, str) else v for v in row
        )
        for row in rows
    ]


@pytest.fixture
def files(server: Databases) -> Iterator[Path]:
    """Write the extension where the server, with a setting, finds it."""
    with connect(server.dsn()) as connection:
        major = connection.info.server_version // 10000
    if major < 18:
        pytest.skip(f"PostgreSQL {major} reads extensions from its own folder alone")
    root = server.socket_dir.parent / "share"
    (root / "extension").mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    program = root / "pg_config"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --sharedir ] && echo {root} || echo PostgreSQL {major}\n'
    )
    program.chmod(0o755)
    result = CliRunner().invoke(
        pgembed, ["extension", "install", "--pg-config", str(program)]
    )
    assert result.exit_code == 0, result.output
    assert f"wrote {root}/extension/pgembed.control" in result.output
    with connect(server.dsn()) as connection:
        path = f"'{root}:$system'"
        connection.execute(f"ALTER SYSTEM SET extension_control_path = {path}".encode())
        connection.execute("SELECT pg_reload_conf()")
    yield root
    with connect(server.dsn()) as connection:
        connection.execute("ALTER SYSTEM RESET extension_control_path")
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture
def extended(files: Path, empty_dsn: str, connect: Connect) -> Connection:
    """Return a connection to a database with the extension."""
    connection = connect(empty_dsn)
    connection.execute(f"SET extension_control_path = '{files}:$system'".encode())
    connection.execute("CREATE EXTENSION pgembed CASCADE")
    return connection


def declare_docs(connection: Connection) -> SqlWorker:
    vectors.register(connection)
    register_model(connection)
    connection.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text);"
        "INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(1, 5) AS i"
    )
    connection.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    return SqlWorker(connection)


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
    files: Path, empty_dsn: str, connect: Connect
) -> None:
    connection = connect(empty_dsn)
    connection.execute(f"SET extension_control_path = '{files}:$system'".encode())
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
