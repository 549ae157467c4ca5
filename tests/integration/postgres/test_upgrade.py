"""Upgrading an older schema, and refusing a newer one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgembed
from pgembed.errors import InstallError
from pgembed.postgres import installation, schema
from pgembed.postgres.resources import Resources
from pgembed.postgres.schema import install, verify
from tests.conftest import Connect

Connection = psycopg.Connection[Any]

OLD = """
CREATE OR REPLACE FUNCTION pgembed.same(a int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE FUNCTION pgembed.gone() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE FUNCTION pgembed.retyped() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE FUNCTION pgembed.renamed(a int) RETURNS int
LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE VIEW pgembed.seen AS SELECT pgembed.retyped() AS one, 2 AS two;
CREATE OR REPLACE FUNCTION pgembed.rows() RETURNS SETOF pgembed.seen LANGUAGE sql
AS 'SELECT s.one, s.two FROM pgembed.seen AS s';
"""
NEW = """
CREATE OR REPLACE FUNCTION pgembed.same(a int) RETURNS int LANGUAGE sql AS 'SELECT 2';
CREATE OR REPLACE FUNCTION pgembed.retyped() RETURNS text
LANGUAGE sql AS 'SELECT ''a''';
CREATE OR REPLACE FUNCTION pgembed.renamed(b int, c int DEFAULT 2) RETURNS int
LANGUAGE sql AS 'SELECT 2';
CREATE OR REPLACE VIEW pgembed.seen AS
SELECT pgembed.retyped() AS one, pgembed.renamed(1);
CREATE OR REPLACE FUNCTION pgembed.rows() RETURNS SETOF pgembed.seen LANGUAGE sql
AS 'SELECT s.* FROM pgembed.seen AS s';
"""
REVISION = '''
"""A later migration."""
from alembic import context, op
revision, down_revision, branch_labels, depends_on = "9999", {previous!r}, None, None
def upgrade():
    op.execute("ALTER TABLE pgembed.model ADD COLUMN fresh @extschema:vector@.vector"
        .replace("@extschema:vector@",
            context.config.attributes["resolve_schemas"]("@extschema:vector@")))
'''


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    """Return a copy of the migrations, with one SQL file of the test's own."""
    found = Resources.found()
    shutil.copytree(found.migrations, tmp_path / "migrations")
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "10_test.sql").write_text(OLD)
    shutil.copy(found.sql / "94_public.sql", tmp_path / "sql")
    return Resources(tmp_path / "sql", tmp_path / "migrations")


@pytest.fixture
def old(empty_dsn: str, connect: Connect, resources: Resources) -> Connection:
    """Return a connection to a database with the old schema."""
    connection = connect(empty_dsn)
    install(connection, resources=resources)
    return connection


def renew(resources: Resources, text: str = NEW) -> None:
    (resources.sql / "10_test.sql").write_text(text)


def value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_routines_and_views_are_replaced_and_dropped(
    old: Connection, resources: Resources
) -> None:
    renew(resources)
    assert install(old, resources=resources).changed
    assert value(old, "SELECT pgembed.same(1)") == 2
    assert value(old, "SELECT pgembed.retyped()") == "a"
    assert value(old, "SELECT renamed FROM pgembed.rows()") == 2
    assert value(old, "SELECT to_regproc('pgembed.gone')") is None
    assert value(old, "SELECT count(*) FROM pg_proc WHERE proname = 'renamed'") == 1
    assert not install(old, resources=resources).changed


def test_grants_survive(old: Connection, resources: Resources, role_dsn: str) -> None:
    role = psycopg.conninfo.conninfo_to_dict(role_dsn)["user"]
    for what in ("retyped()", "renamed(int)", "same(int)"):
        old.execute(f'GRANT EXECUTE ON FUNCTION pgembed.{what} TO "{role}"'.encode())
    old.execute(f'GRANT SELECT ON pgembed.seen TO "{role}" WITH GRANT OPTION'.encode())
    renew(resources)
    install(old, resources=resources)
    for what in ("retyped()", "renamed(int, int)", "same(int)"):
        check = f"has_function_privilege('{role}', 'pgembed.{what}', 'EXECUTE')"
        assert value(old, f"SELECT {check}")
    assert value(
        old,
        f"SELECT has_table_privilege('{role}', 'pgembed.seen', "
        "'SELECT WITH GRANT OPTION')",
    )
    assert not value(
        old, f"SELECT has_function_privilege('{role}', 'pgembed.rows()', 'EXECUTE')"
    )
    old.execute(f'REVOKE ALL ON pgembed.seen FROM "{role}" CASCADE'.encode())
    old.execute(f'DROP OWNED BY "{role}"'.encode())


@pytest.mark.parametrize("function", ["gone", "retyped"])
def test_what_users_built_on_it_stops_the_upgrade(
    old: Connection, resources: Resources, function: str
) -> None:
    old.execute(f"CREATE VIEW public.mine AS SELECT pgembed.{function}()".encode())
    renew(resources)
    with pytest.raises(InstallError, match=r"view public\.mine|pgembed\.retyped\(\)"):
        install(old, resources=resources)
    assert value(old, "SELECT pgembed.same(1)") == 1
    old.execute("DROP VIEW public.mine")
    assert install(old, resources=resources).changed


def test_functions_of_embeddings_and_of_users_are_left_alone(
    old: Connection, resources: Resources
) -> None:
    for name in ("_capture_7", "_capture_7_truncate", "of_the_owner"):
        old.execute(
            f"CREATE FUNCTION pgembed.{name}() RETURNS int LANGUAGE sql "
            "AS 'SELECT 7'".encode()
        )
    renew(resources)
    install(old, resources=resources)
    for name in ("_capture_7", "_capture_7_truncate", "of_the_owner"):
        assert value(old, f"SELECT pgembed.{name}()") == 7


def test_new_migration_runs_once(old: Connection, resources: Resources) -> None:
    [head] = old.execute("SELECT version_num FROM pgembed.alembic_version").fetchall()
    path = resources.migrations / "versions" / "9999_later.py"
    path.write_text(REVISION.format(previous=head[0]))
    findings = {f.subject: f for f in verify(old, resources=resources)}
    assert findings["schema"].remedy == "run 'pgembed install'"
    report = install(old, resources=resources)
    assert (report.changed, report.revision) == (True, "9999")
    assert value(old, "SELECT count(fresh) FROM pgembed.model") == 0
    assert not install(old, resources=resources).changed


def test_failing_migration_changes_nothing(
    old: Connection, resources: Resources
) -> None:
    path = resources.migrations / "versions" / "9999_later.py"
    text = REVISION.format(
        previous=value(old, "SELECT version_num FROM pgembed.alembic_version")
    )
    path.write_text(text.replace("pgembed.model", "pgembed.nowhere"))
    renew(resources)
    with pytest.raises(InstallError, match="nowhere"):
        install(old, resources=resources)
    assert value(old, "SELECT pgembed.same(1)") == 1
    path.unlink()
    assert install(old, resources=resources).changed


def test_error_in_a_file_is_named_with_its_line(
    old: Connection, resources: Resources
) -> None:
    renew(resources, "SELECT 1;\nSELECT 2;\nSELECT nonsense;\n")
    with pytest.raises(InstallError, match=r"nonsense(.|\n)*in 10_test\.sql, line 3"):
        install(old, resources=resources)


def test_unknown_revision_is_refused(old: Connection, resources: Resources) -> None:
    old.execute("UPDATE pgembed.alembic_version SET version_num = 'future'")
    with pytest.raises(InstallError, match=r"revision future.*newer than this code"):
        install(old, resources=resources)


def test_schema_of_a_later_version_is_refused(
    old: Connection, resources: Resources
) -> None:
    found = installation.read(old)
    assert found is not None
    installation.write(old, dataclasses.replace(found, version="77.1.0"))
    with pytest.raises(
        InstallError, match=rf"pgembed 77\.1\.0.*this code, {pgembed.__version__}"
    ):
        install(old, resources=resources)
    [finding] = [f for f in verify(old, resources=resources) if f.subject == "schema"]
    assert finding.level == "error"
    assert "pip install --upgrade" in finding.remedy


def test_files_follow_the_extensions(
    empty_dsn: str, connect: Connect, resources: Resources
) -> None:
    variant = (
        "CREATE OR REPLACE FUNCTION pgembed.which() RETURNS text LANGUAGE sql AS '{}';"
    )
    for name in ("plpython", "dblink", "none"):
        (resources.sql / f"20_way@{name}.sql").write_text(
            variant.format(f"SELECT ''{name}''")
        )
    connection = connect(empty_dsn)
    install(connection, resources=resources)
    assert value(connection, "SELECT pgembed.which()") == "dblink"


def test_names_exported() -> None:
    assert schema.resource_dir("sql").is_dir()
    assert (schema.resource_dir("migrations") / "env.py").is_file()
