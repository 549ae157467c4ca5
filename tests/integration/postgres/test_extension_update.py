"""ALTER EXTENSION pgembed UPDATE: from an older version, with embeddings in it."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from psycopg import errors

import pgembed
from pgembed.errors import InstallError
from pgembed.postgres import extension, migrate, vectors, versions
from pgembed.postgres.resources import Resources
from pgembed.postgres.schema import install, verify
from pgembed.worker import supervisor
from tests.conftest import Connect
from tests.harness.extension import Files, catalog, declare_docs, extension_files
from tests.harness.roles import ordinary_role
from tests.harness.server import Databases, run_program
from tests.harness.sql_worker import SqlWorker, assert_converged, value
from tests.integration.worker.running import (
    add_good,
    assert_current,
    create_docs,
    embed_all,
    settings_for,
)

Connection = psycopg.Connection[Any]

OLD_VERSION = "0.0.1"
OLD_HEAD = "0003"

# A column and a parent that came later, as the old version's statements have it.
LATER = (
    (
        re.compile(r"'CREATE TABLE %s \(%s\) INHERITS \(pgembed\.job\)'"),
        "'CREATE TABLE %s (%s, pgembed_changed_at timestamptz, "
        "pgembed_available_at timestamptz DEFAULT now(), "
        "pgembed_version integer NOT NULL DEFAULT 0, "
        "pgembed_attempts smallint NOT NULL DEFAULT 0, pgembed_slot integer, "
        "pgembed_lease bigint, pgembed_fingerprint uuid, pgembed_error text)'",
    ),
    (re.compile(r"EXECUTE format\('ALTER TABLE %s REPLICA IDENTITY FULL', job\);"), ""),
    (re.compile(r", watching_until = CASE.*?END", re.DOTALL), ""),
    (re.compile(r"w\.watching_until > clock_timestamp\(\)"), "false"),
)

# What the old version has, and the new one has otherwise or no more.
OLD = """
CREATE OR REPLACE FUNCTION pgembed.gone() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE FUNCTION pgembed.same() RETURNS int LANGUAGE sql AS 'SELECT 1';
"""
OLD_RETYPED = """
CREATE OR REPLACE FUNCTION pgembed.retyped() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE VIEW pgembed.seen AS SELECT pgembed.retyped() AS one, 2 AS two;
CREATE OR REPLACE FUNCTION pgembed.of_seen() RETURNS SETOF pgembed.seen LANGUAGE sql
AS 'SELECT s.one, s.two FROM pgembed.seen AS s';
"""
NEW = """
CREATE OR REPLACE FUNCTION pgembed.same() RETURNS int LANGUAGE sql AS 'SELECT 2';
CREATE OR REPLACE FUNCTION pgembed.retyped() RETURNS text LANGUAGE sql
AS 'SELECT ''a''';
CREATE OR REPLACE VIEW pgembed.seen AS SELECT pgembed.retyped() AS one;
CREATE OR REPLACE FUNCTION pgembed.of_seen() RETURNS SETOF pgembed.seen LANGUAGE sql
AS 'SELECT s.one FROM pgembed.seen AS s';
"""


def cut_off(resources: Resources, head: str) -> None:
    """Take away the migrations after *head*, and the SQL files that need them."""
    config = migrate.alembic_config(resources.migrations)
    script = ScriptDirectory.from_config(config)
    made: list[str] = []
    for revision in script.iterate_revisions("head", head):
        path = Path(str(revision.path))
        text = path.with_suffix(".sql").read_text(encoding="utf-8")
        made += re.findall(r"CREATE (?:UNLOGGED )?TABLE pgembed\.(\w+)", text)
        path.unlink()
        path.with_suffix(".sql").unlink()
    assert made
    for path in resources.sql.glob("*.sql"):
        text = path.read_text("utf-8")
        for pattern, before in LATER:
            text = pattern.sub(before, text)
        if re.search(rf"\bpgembed\.({'|'.join(made)})\b", text):
            path.unlink()
            continue
        assert "watching_until" not in text
        path.write_text(text, "utf-8")


def copy(folder: Path) -> Resources:
    found = Resources.found()
    shutil.copytree(found.sql, folder / "sql")
    shutil.copytree(found.migrations, folder / "migrations")
    return Resources(folder / "sql", folder / "migrations")


@pytest.fixture
def old(tmp_path: Path) -> Resources:
    """Return an old version: fewer tables and functions, and some that are gone now."""
    resources = copy(tmp_path / "old")
    cut_off(resources, OLD_HEAD)
    (resources.sql / "99_test.sql").write_text(OLD)
    return dataclasses.replace(resources, version=OLD_VERSION)


@pytest.fixture
def new(tmp_path: Path) -> Resources:
    """Return this version, which knows the old one."""
    resources = copy(tmp_path / "new")
    path = resources.migrations / "releases.json"
    path.write_text(f'{{"{OLD_VERSION}": "{OLD_HEAD}"}}')
    (resources.sql / "99_test.sql").write_text(NEW)
    return resources


@pytest.fixture
def files(server: Databases) -> Iterator[Files]:
    yield from extension_files(server)


@pytest.fixture
def db(files: Files, old: Resources, empty_dsn: str, connect: Connect) -> Connection:
    """Return a connection to a database with the old version."""
    connection = connect(empty_dsn)
    create(connection, files, old)
    return connection


def create(connection: Connection, files: Files, resources: Resources) -> None:
    extension.write(files.server, "dblink", resources=resources)
    connection.execute("CREATE EXTENSION pgembed CASCADE")


def update(connection: Connection, files: Files, new: Resources) -> None:
    extension.write(files.server, resources=new)
    connection.execute("ALTER EXTENSION pgembed UPDATE")


def members(connection: Connection) -> list[Any]:
    """Return what belongs to the extension, and what of it dumps carry."""
    return connection.execute(
        """
        SELECT i.type, i.identity, d.objid = ANY (e.extconfig),
            p.initprivs::text, p.initprivs IS NULL
        FROM pg_extension AS e
        JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass
            AND d.refobjid = e.oid AND d.deptype = 'e'
        CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
        LEFT JOIN pg_init_privs AS p
            ON p.classoid = d.classid AND p.objoid = d.objid AND p.objsubid = 0
        WHERE e.extname = 'pgembed'
        ORDER BY 1, 2
        """
    ).fetchall()


def fresh(server: Databases, connect: Connect, files: Files, new: Resources) -> Any:
    """Return catalog and members after CREATE EXTENSION of the new version."""
    with server.database() as name:
        connection = connect(server.dsn(name))
        create(connection, files, new)
        found = catalog(connection), members(connection)
        connection.close()
    return found


def version(connection: Connection) -> Any:
    return value(
        connection, "SELECT extversion FROM pg_extension WHERE extname = 'pgembed'"
    )


@pytest.mark.parametrize("extra", ["", OLD_RETYPED], ids=["replaced", "made anew"])
def test_the_catalog_is_that_of_a_fresh_install(
    server: Databases,
    connect: Connect,
    files: Files,
    old: Resources,
    new: Resources,
    empty_dsn: str,
    extra: str,
) -> None:
    (old.sql / "99_test.sql").write_text(OLD + extra)
    connection = connect(empty_dsn)
    create(connection, files, old)
    assert version(connection) == OLD_VERSION
    assert value(connection, "SELECT to_regclass('pgembed.batch')") is None
    update(connection, files, new)
    assert version(connection) == pgembed.__version__
    assert value(connection, "SELECT pgembed.same()") == 2
    assert value(connection, "SELECT to_regproc('pgembed.gone')") is None
    wanted = fresh(server, connect, files, new)
    assert len(wanted[0]) > 300
    assert catalog(connection) == wanted[0]
    assert members(connection) == wanted[1]


def test_embeddings_are_kept_and_go_on(
    db: Connection, files: Files, new: Resources, tmp_path: Path, empty_dsn: str
) -> None:
    vectors.register(db)
    model = add_good(db, tmp_path)
    create_docs(db, "one", "two", None)
    embed_all(empty_dsn)
    before = db.execute(
        "SELECT id, body_embedding::text, xmin::text FROM docs"
    ).fetchall()
    db.execute("UPDATE docs SET body = 'waits' WHERE id = 2")
    update(db, files, new)
    query = "SELECT id, body_embedding::text, xmin::text FROM docs WHERE id <> 2"
    assert db.execute(query).fetchall() == [row for row in before if row[0] != 2]
    identity = "SELECT relreplident FROM pg_class WHERE oid = 'pgembed.job_1'::regclass"
    assert value(db, identity) == "f"
    db.execute("INSERT INTO docs (id, body) VALUES (4, 'new')")
    embed_all(empty_dsn)
    assert_current(db, model)
    assert value(db, "SELECT count(body_embedding) FROM docs") == 3
    db.execute("DROP EXTENSION pgembed CASCADE")
    assert value(db, "SELECT to_regclass('pgembed.job_1')") is None


def test_a_dump_after_the_update_brings_it_all_back(
    db: Connection,
    files: Files,
    new: Resources,
    server: Databases,
    connect: Connect,
    tmp_path: Path,
) -> None:
    declare_docs(db).drain()
    db.execute("CREATE ROLE reader_of_dumps")
    try:
        db.execute(
            "GRANT EXECUTE ON FUNCTION pgembed.pause_embedding(text) TO reader_of_dumps"
        )
        update(db, files, new)
        path = str(tmp_path / "dump")
        source = server.dsn(db.info.dbname)
        with server.database("template0") as name:
            run_program(server, "pg_dump", "-Fc", f"--file={path}", source)
            target = f"--dbname={server.dsn(name)}"
            run_program(server, "pg_restore", "-e", target, path)
            restored = connect(server.dsn(name))
            restored.execute("INSERT INTO docs VALUES (6, 'new')")
            SqlWorker(restored).drain()
            assert_converged(restored, "docs_body")
            check = "'reader_of_dumps', 'pgembed.pause_embedding(text)', 'EXECUTE'"
            assert value(restored, f"SELECT has_function_privilege({check})")
            restored.close()
    finally:
        db.execute("DROP OWNED BY reader_of_dumps")
        db.execute("DROP ROLE reader_of_dumps")


def test_an_owner_who_is_no_superuser_updates_it(
    files: Files, old: Resources, new: Resources, empty_dsn: str, connect: Connect
) -> None:
    with ordinary_role(empty_dsn) as dsn:
        superuser = connect(empty_dsn)
        superuser.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        superuser.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        owner = connect(dsn)
        create(owner, files, old)
        worker = declare_docs(owner)
        update(owner, files, new)
        assert version(owner) == pgembed.__version__
        worker.drain()
        assert_converged(owner, "docs_body")
        # Its functions are made anew by reconcile, which an update may not do.
        owner.execute("SELECT pgembed.reconcile('docs_body')")
        assert_converged(owner, "docs_body")


def test_grants_that_are_lost_are_told(
    files: Files, old: Resources, new: Resources, empty_dsn: str, connect: Connect
) -> None:
    (old.sql / "99_test.sql").write_text(OLD + OLD_RETYPED)
    connection = connect(empty_dsn)
    create(connection, files, old)
    notices: list[str] = []
    connection.add_notice_handler(lambda n: notices.append(f"{n.message_detail}"))
    connection.execute("CREATE ROLE loser")
    try:
        connection.execute("GRANT SELECT ON pgembed.seen TO loser")
        update(connection, files, new)
        assert notices == ["GRANT SELECT ON TABLE seen TO loser;"]
    finally:
        connection.execute("DROP OWNED BY loser")
        connection.execute("DROP ROLE loser")


def test_roles_are_to_be_granted_what_is_new(
    db: Connection, files: Files, new: Resources
) -> None:
    roles = ("pgembed_user", "pgembed_owner", "pgembed_worker")
    warnings: list[str] = []
    db.add_notice_handler(lambda n: warnings.append(f"{n.severity}: {n.message_hint}"))
    missing = [r for r in roles if value(db, f"SELECT to_regrole('{r}') IS NULL")]
    try:
        for role in missing:
            db.execute(f"CREATE ROLE {role}".encode())
        for role in roles:
            db.execute(f"GRANT USAGE ON SCHEMA pgembed TO {role}".encode())
        update(db, files, new)
        [warning] = warnings
        assert warning.startswith("WARNING: ")
        db.execute(warning[warning.index("SELECT") :].encode())
        check = "'pgembed_owner', 'pgembed.await_batch(bigint, interval)', 'EXECUTE'"
        assert value(db, f"SELECT has_function_privilege({check})")
    finally:
        for role in missing:
            db.execute(f"DROP OWNED BY {role}".encode())
            db.execute(f"DROP ROLE {role}".encode())


def test_what_is_said_until_the_update(
    db: Connection,
    files: Files,
    new: Resources,
    empty_dsn: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = f"has extension pgembed {OLD_VERSION}, and this is pgembed {new.version}"
    update_it = "run 'ALTER EXTENSION pgembed UPDATE' in this database"
    differs = versions.difference(db)
    assert differs is not None
    assert differs.message == f"the database {here}"
    assert differs.remedy == (
        f"run 'pgembed extension install' on the server's machine, then {update_it}"
    )
    extension.write(files.server, resources=new)
    with pytest.raises(InstallError, match=f"{here}: {update_it}"):
        install(db)
    [finding] = [f for f in verify(db) if f.subject == "schema"]
    assert (finding.level, finding.remedy) == ("warning", update_it)
    supervisor.check(settings_for(empty_dsn))
    assert f"{here}: {update_it}" in caplog.text
    db.execute("ALTER EXTENSION pgembed UPDATE")
    assert versions.difference(db) is None
    [finding] = [f for f in verify(db) if f.subject == "schema"]
    assert finding.level == "ok"
    caplog.clear()
    supervisor.check(settings_for(empty_dsn))
    assert not caplog.text


def test_a_newer_extension_asks_for_a_newer_package(
    db: Connection, files: Files, new: Resources
) -> None:
    update(db, files, dataclasses.replace(new, version="77.0"))
    with pytest.raises(InstallError, match=r"pgembed 77\.0.*pip install --upgrade"):
        install(db)


def test_what_users_built_on_it_stops_the_update(
    db: Connection, files: Files, new: Resources
) -> None:
    db.execute("CREATE VIEW mine AS SELECT pgembed.gone()")
    with pytest.raises(errors.DependentObjectsStillExist, match="gone") as caught:
        update(db, files, new)
    assert str(caught.value.diag.message_detail).startswith("view public.mine depends")
    assert len(str(caught.value)) < 10_000
    assert version(db) == OLD_VERSION
    db.execute("DROP VIEW mine")
    update(db, files, new)


def test_a_schema_that_is_no_release_is_refused(
    db: Connection, files: Files, new: Resources
) -> None:
    db.execute("UPDATE pgembed.alembic_version SET version_num = '0002'")
    with pytest.raises(errors.RaiseException, match=r"at migration 0002.*with 0003"):
        update(db, files, new)


def test_the_transport_stays_unless_it_is_named(files: Files, old: Resources) -> None:
    control = files.share / "extension" / "pgembed.control"
    extension.write(files.server, resources=old)
    assert "requires = 'vector, dblink'" in control.read_text()
    extension.write(files.server, "plpython", resources=old)
    extension.write(files.server, resources=old)
    assert "requires = 'vector, plpython3u'" in control.read_text()
    extension.write(files.server, "none", resources=old)
    assert "requires = 'vector'\n" in control.read_text()


def test_releases_are_written_down() -> None:
    resources = Resources.found()
    script = ScriptDirectory.from_config(migrate.alembic_config(resources.migrations))
    known = {revision.revision for revision in script.walk_revisions()}
    released = dataclasses.replace(resources, version="").earlier_releases()
    assert set(released.values()) <= known
    changelog = (Path(__file__).parents[3] / "CHANGELOG.md").read_text("utf-8")
    assert set(re.findall(r"^## \[([0-9.]+)\]", changelog, re.M)) == set(released)
    if pgembed.__version__ in released:
        head = script.get_current_head()
        assert released[pgembed.__version__] == head, "a new version is due"
