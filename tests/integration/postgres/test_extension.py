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
from pgembed.errors import InstallError, SettingError
from pgembed.postgres import extension
from pgembed.postgres.resources import Transport
from pgembed.postgres.schema import install, uninstall, verify
from tests.conftest import Connect
from tests.harness.extension import Files, catalog, declare_docs, extension_files
from tests.harness.models import register_model
from tests.harness.roles import ordinary_role
from tests.harness.server import Databases
from tests.harness.server import run_program as run
from tests.harness.sql_worker import SqlWorker, assert_converged, rows, value

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
    connection.execute("CREATE EXTENSION pgembed CASCADE")
    return connection


@pytest.mark.parametrize("transport", ["dblink", "plpython", "none"])
def test_the_catalog_is_that_of_install(
    files: Files,
    server: Databases,
    empty_dsn: str,
    connect: Connect,
    transport: Transport,
) -> None:
    extended = connect(empty_dsn)
    if transport == "plpython" and not value(
        extended,
        "SELECT count(*) FROM pg_available_extensions WHERE name = 'plpython3u'",
    ):
        pytest.skip("this server has no PL/Python")
    extension.write(files.server, transport)
    extended.execute("CREATE EXTENSION pgembed CASCADE")
    with server.database() as name:
        installed = connect(server.dsn(name))
        install(installed, transport=transport)
        wanted = catalog(installed)
        installed.close()
    assert len(wanted) > 300
    assert catalog(extended) == wanted
    assert value(extended, "SELECT transport FROM pgembed.installation") == transport


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "setting", ["plpgsql.extra_errors = 'all'", "standard_conforming_strings = off"]
)
def test_settings_of_the_database_do_not_matter(
    empty_dsn: str, connect: Connect, setting: str
) -> None:
    database = connect(empty_dsn).info.dbname
    connect(empty_dsn).execute(f"ALTER DATABASE {database} SET {setting}".encode())
    connection = connect(empty_dsn)
    connection.execute("CREATE EXTENSION pgembed CASCADE")
    name = setting.split(" ")[0]
    assert value(connection, f"SHOW {name}") in ("all", "off")


def test_the_rights_it_begins_with_are_recorded(extended: Connection) -> None:
    """By these an update tells what is new, and a dump what was granted since."""
    unrecorded = extended.execute(
        """
        SELECT i.identity
        FROM pg_depend AS d
        JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'pgembed'
        CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
        WHERE d.deptype = 'e' AND i.type <> 'type' AND NOT EXISTS (
            SELECT FROM pg_init_privs AS p
            WHERE p.classoid = d.classid AND p.objoid = d.objid AND p.objsubid = 0)
        """
    ).fetchall()
    assert unrecorded == []


def test_the_doctor_is_content_and_install_refuses(extended: Connection) -> None:
    [finding] = [f for f in verify(extended) if f.subject == "schema"]
    assert finding.level == "ok"
    with pytest.raises(InstallError, match="as an extension"):
        install(extended)


def test_the_doctor_says_how_an_extension_gets_a_transport(
    files: Files, empty_dsn: str, connect: Connect
) -> None:
    extension.write(files.server, "none")
    connection = connect(empty_dsn)
    connection.execute("CREATE EXTENSION pgembed CASCADE")
    [finding] = [f for f in verify(connection) if f.subject == "transport"]
    assert finding.level == "ok"
    assert "'pgembed extension install --transport dblink'" in finding.message


def test_an_extension_elsewhere_is_found(
    files: Files, empty_dsn: str, connect: Connect
) -> None:
    if files.major < 16:
        pytest.skip("a script cannot ask where another extension is")
    connection = connect(empty_dsn)
    connection.execute(
        "CREATE SCHEMA types; CREATE EXTENSION vector SCHEMA types;"
        "CREATE EXTENSION pgembed CASCADE"
    )
    connection.execute("SET search_path = types, public")
    worker = declare_docs(connection)
    worker.drain()
    assert_converged(connection, "docs_body")


def test_what_it_needs_stays_where_it_looks_for_it(extended: Connection) -> None:
    if extended.info.server_version < 160000:
        pytest.skip("the server cannot be told")
    extended.execute("CREATE SCHEMA types")
    for name in ("vector", "dblink"):
        with pytest.raises(errors.FeatureNotSupported, match=name):
            extended.execute(f"ALTER EXTENSION {name} SET SCHEMA types".encode())


def test_pgvector_that_was_moved_is_moved_back(
    files: Files, empty_dsn: str, connect: Connect
) -> None:
    """As older servers, and extensions of before, let it be."""
    control = files.share / "extension" / "pgembed.control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text("".join(s for s in lines if not s.startswith("no_relocate")))
    connection = connect(empty_dsn)
    connection.execute("CREATE EXTENSION pgembed CASCADE; CREATE SCHEMA types")
    connection.execute("ALTER EXTENSION vector SET SCHEMA types")
    [finding] = [f for f in verify(connection) if f.subject == "schema"]
    assert finding.level == "error"
    assert "moved from schema public" in finding.message.replace('"', "")
    connection.execute(finding.remedy.split("'")[1].encode())
    [finding] = [f for f in verify(connection) if f.subject == "schema"]
    assert finding.level == "ok"


def test_an_older_server_is_told_nothing_that_it_refuses(tmp_path: Path) -> None:
    for major in (15, 16):
        extension.write(extension.Server(major, tmp_path), "dblink")
        text = (tmp_path / "pgembed.control").read_text()
        assert ("\nno_relocate = 'vector, dblink'\n" in text) == (major == 16)


def test_the_doctor_sends_nobody_to_install(extended: Connection) -> None:
    extended.execute("GRANT SELECT ON pgembed.model TO PUBLIC")
    extended.execute("ALTER EXTENSION pgembed DROP FUNCTION pgembed.retry_failed(text)")
    extended.execute("DROP FUNCTION pgembed.retry_failed(text)")
    remedies = [f.remedy for f in verify(extended) if f.level != "ok"]
    assert any("then 'CREATE EXTENSION pgembed CASCADE'" in r for r in remedies)
    assert any("REVOKE it FROM PUBLIC" in r for r in remedies)
    assert not any("'pgembed install" in r for r in remedies)


def test_over_a_schema_that_install_made(files: Files, connection: Connection) -> None:
    with pytest.raises(errors.RaiseException, match='"pgembed install" made') as caught:
        connection.execute("CREATE EXTENSION pgembed CASCADE")
    assert 'run "pgembed uninstall" first' in str(caught.value.diag.message_hint)
    uninstall(connection)
    connection.execute("CREATE EXTENSION pgembed CASCADE")


@pytest.mark.usefixtures("files")
def test_a_schema_that_cannot_stand_in_a_pattern_is_refused(
    empty_dsn: str, connect: Connect
) -> None:
    connection = connect(empty_dsn)
    connection.execute('CREATE SCHEMA "100%"; CREATE EXTENSION vector SCHEMA "100%"')
    with pytest.raises(psycopg.errors.RaiseException, match="extension pgembed"):
        connection.execute("CREATE EXTENSION pgembed CASCADE")


def test_it_is_not_dropped_from_under_its_triggers(extended: Connection) -> None:
    worker = declare_docs(extended)
    worker.drain()
    assert_converged(extended, "docs_body")
    with pytest.raises(errors.DependentObjectsStillExist, match="docs"):
        extended.execute("DROP EXTENSION pgembed")
    before = extended.execute("SELECT id, body, body_embedding FROM docs").fetchall()
    extended.execute("DROP EXTENSION pgembed CASCADE")
    after = extended.execute("SELECT id, body, body_embedding FROM docs").fetchall()
    assert [[str(v) for v in row] for row in after] == [
        [str(v) for v in row] for row in before
    ]
    assert all(row[2] is not None for row in after)
    extended.execute("INSERT INTO docs VALUES (6, 'nobody listens')")


def test_after_it_was_dropped_all_begins_anew(extended: Connection) -> None:
    declare_docs(extended)
    extended.execute("DROP EXTENSION pgembed CASCADE")
    assert (
        rows(
            extended,
            "SELECT relname FROM pg_class WHERE relnamespace = 'pgembed'::regnamespace "
            "UNION ALL "
            "SELECT proname FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace",
        )
        == []
    )
    again = "SELECT pgembed.create_embedding('docs', 'body', 'tiny')"
    extended.execute("CREATE EXTENSION pgembed CASCADE")
    register_model(extended)
    extended.execute(again.encode())
    SqlWorker(extended).drain()
    assert_converged(extended, "docs_body")
    extended.execute("DROP EXTENSION pgembed CASCADE")
    assert install(extended).changed
    register_model(extended)
    extended.execute(again.encode())
    uninstall(extended)


def test_its_schema_cannot_be_changed(extended: Connection) -> None:
    with pytest.raises(errors.FeatureNotSupported, match="does not support SET SCHEMA"):
        extended.execute("ALTER EXTENSION pgembed SET SCHEMA public")


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
    source = server.dsn(extended.info.dbname)
    with server.database("template0") as copy:
        run(server, "pg_dump", "-Fc", f"--file={path}", source)
        run(server, "pg_restore", "-e", f"--dbname={server.dsn(copy)}", path)
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


def test_the_registry_in_the_order_of_a_parallel_restore(
    extended: Connection, server: Databases, connect: Connect, tmp_path: Path
) -> None:
    """That takes any order of tables, and the extension has made foreign keys."""
    declare_docs(extended).drain()
    path, order = tmp_path / "dump", tmp_path / "order"
    run(server, "pg_dump", "-Fc", f"--file={path}", server.dsn(extended.info.dbname))
    run(server, "pg_restore", "--list", f"--file={order}", str(path))
    entries = order.read_text().splitlines(keepends=True)
    entries.sort(key=lambda entry: " TABLE DATA pgembed model " in entry)
    order.write_text("".join(entries))
    for setting, found in [("origin", ["registry"]), ("replica", [])]:
        with server.database("template0") as copy:
            target = f"--dbname={server.dsn(copy)}"
            subprocess.run(
                [server.programs / "pg_restore", f"--use-list={order}", target, path],
                env={"PGOPTIONS": f"-c session_replication_role={setting}"},
                stderr=subprocess.DEVNULL,
                check=not found,
                timeout=60,
            )
            restored = connect(server.dsn(copy))
            lost = [f.subject for f in verify(restored) if f.subject == "registry"]
            assert lost == found
            restored.close()


@pytest.fixture
def owned(
    files: Files, server: Databases, empty_dsn: str, connect: Connect
) -> Iterator[Connection]:
    """Return a connection of an ordinary role that created the extension itself."""
    with ordinary_role(empty_dsn) as dsn:
        superuser = connect(empty_dsn)
        superuser.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        superuser.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        owner = connect(dsn)
        owner.execute("CREATE EXTENSION pgembed")
        yield owner
        owner.execute("DROP EXTENSION pgembed CASCADE")


def test_an_ordinary_role_creates_it(owned: Connection) -> None:
    definers = owned.execute(
        "SELECT DISTINCT proowner = current_user::regrole FROM pg_proc "
        "WHERE pronamespace = 'pgembed'::regnamespace"
    ).fetchall()
    assert definers == [(True,)]
    declare_docs(owned).drain()
    assert_converged(owned, "docs_body")


@pytest.mark.parametrize("by_parts", [False, True], ids=["whole", "data alone"])
def test_an_ordinary_role_dumps_and_restores_it(
    owned: Connection,
    server: Databases,
    connect: Connect,
    tmp_path: Path,
    by_parts: bool,
) -> None:
    declare_docs(owned).drain()
    owned.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    user = owned.info.user
    source = server.dsn(owned.info.dbname, user=user)
    parts = ["--schema-only", "--data-only"] if by_parts else ["--format=custom"]
    with server.database("template0") as copy:
        superuser = connect(server.dsn(copy))
        superuser.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        superuser.execute(f'GRANT CREATE ON DATABASE {copy} TO "{user}"'.encode())
        superuser.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        for part in parts:
            path = str(tmp_path / f"dump{part}")
            run(server, "pg_dump", "-Fc", part, f"--file={path}", source)
            # Comments on vector and dblink are their owner's.
            restored_by = f"--dbname={server.dsn(copy, user=user)}"
            run(server, "pg_restore", "-e", "--no-comments", restored_by, path)
        restored = connect(server.dsn(copy, user=user))
        if by_parts:
            restored.execute("SELECT pgembed.reconcile('docs_body')")
        restored.execute("INSERT INTO docs VALUES (6, 'new')")
        SqlWorker(restored).drain()
        assert_converged(restored, "docs_body")
        restored.close()
        superuser.execute(f'DROP OWNED BY "{user}" CASCADE'.encode())
        superuser.close()


def test_a_schema_of_somebody_else_is_refused(
    files: Files, empty_dsn: str, connect: Connect
) -> None:
    with ordinary_role(empty_dsn) as dsn:
        connect(dsn).execute("CREATE SCHEMA pgembed")
        connection = connect(empty_dsn)
        with pytest.raises(errors.RaiseException, match="belongs to role test_role"):
            connection.execute("CREATE EXTENSION pgembed CASCADE")


@pytest.mark.parametrize("fires", [False, True], ids=["disabled", "fired"])
def test_data_alone_is_restored_and_reconciled(
    extended: Connection,
    server: Databases,
    connect: Connect,
    tmp_path: Path,
    fires: bool,
) -> None:
    declare_docs(extended).drain()
    extended.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    source = server.dsn(extended.info.dbname)
    with server.database("template0") as copy:
        target = f"--dbname={server.dsn(copy)}"
        for part in ("--schema-only", "--data-only"):
            path = str(tmp_path / f"dump{part}")
            run(server, "pg_dump", "-Fc", part, f"--file={path}", source)
            options = [] if fires or part == "--schema-only" else ["--disable-triggers"]
            run(server, "pg_restore", "-e", *options, target, path)
        restored = connect(server.dsn(copy))
        restored.execute("SELECT pgembed.reconcile('docs_body')")
        restored.execute("INSERT INTO docs VALUES (6, 'new')")
        SqlWorker(restored).drain()
        assert_converged(restored, "docs_body")
        restored.close()


def test_with_the_schema_alone_all_begins_anew(
    extended: Connection, server: Databases, connect: Connect, tmp_path: Path
) -> None:
    declare_docs(extended).drain()
    path = str(tmp_path / "schema")
    source = server.dsn(extended.info.dbname)
    run(server, "pg_dump", "-Fc", "--schema-only", f"--file={path}", source)
    with server.database("template0") as copy:
        run(server, "pg_restore", "-e", f"--dbname={server.dsn(copy)}", path)
        restored = connect(server.dsn(copy))
        register_model(restored)
        restored.execute("CREATE TABLE animals (id text PRIMARY KEY, body text)")
        restored.execute("INSERT INTO animals VALUES ('1', 'cat')")
        for table in ("animals", "docs"):
            restored.execute(
                "SELECT pgembed.create_embedding(%s::regclass, 'body', 'tiny')",
                (table,),
            )
            restored.execute("INSERT INTO docs SELECT count(*), 'new' FROM docs")
        SqlWorker(restored).drain()
        for name in ("animals_body", "docs_body"):
            assert_converged(restored, name)
        restored.close()


def test_the_socket_s_folder_is_data() -> None:
    server = extension.Server(18, Path("unused"))
    text = extension.script_for(server, "plpython", "/run/it's; here")
    assert "socket_dir = '/run/it''s; here';" in text


def test_the_socket_s_folder_is_kept(tmp_path: Path) -> None:
    server = extension.Server(18, tmp_path)
    for given in ('/run/it\'s; "here"', None):
        extension.write(server, "plpython", given)
        (script,) = tmp_path.glob("pgembed--*.sql")
        assert """socket_dir = '/run/it''s; "here"';""" in script.read_text()
    extension.write(server, "plpython", "/run/there")
    assert "socket_dir = '/run/there';" in script.read_text()


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


def test_a_folder_of_sockets_is_absolute(tmp_path: Path) -> None:
    server = extension.Server(18, tmp_path)
    with pytest.raises(SettingError, match="socket_dir is 'run', but must be absolute"):
        extension.write(server, "plpython", "run")
    assert not list(tmp_path.iterdir())
