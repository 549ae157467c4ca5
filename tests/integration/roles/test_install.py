"""`pgembed install --roles`, as a superuser and as a role that may do little."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from pgembed.cli.main import pgembed
from pgembed.postgres.connection import Connection, connect
from pgembed.postgres.guards import open_to_public
from pgembed.postgres.schema import install, uninstall
from tests.harness.models import register_model
from tests.harness.roles import ordinary_role
from tests.harness.sql_worker import value
from tests.integration.roles.conftest import Roles


def test_doing_it_again_changes_nothing(roles: Roles) -> None:
    arguments = ["install", "--roles", "--dsn", roles.superuser]
    result = CliRunner().invoke(pgembed, arguments)
    assert result.exit_code == 0, result.output
    assert "already up to date" in result.output
    assert "pgembed_worker have their rights here" in result.output


def test_without_createrole_the_roles_are_asked_for(empty_dsn: str) -> None:
    """The installation itself needs no roles; later the owner grants what is there."""
    with (
        connect(empty_dsn, purpose="test") as superuser,
        ordinary_role(empty_dsn) as role,
        connect(role, purpose="test") as owner,
    ):
        superuser.execute("CREATE EXTENSION vector")
        assert CliRunner().invoke(pgembed, ["install", "--dsn", role]).exit_code == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            owner.execute("SELECT pgembed.create_roles()")
        assert "CREATE ROLE pgembed_user" in str(caught.value.diag.message_hint)
        names = ("pgembed_user", "pgembed_owner", "pgembed_worker")
        for name in names:
            superuser.execute(f"CREATE ROLE {name}".encode())
        try:
            owner.execute("SELECT pgembed.create_roles()")
            query = "SELECT has_schema_privilege('pgembed_worker', 'pgembed', 'USAGE')"
            assert value(owner, query)
            for name in names:
                owner.execute("SELECT pgembed.revoke_all(%s::text::regrole)", [name])
            assert not value(owner, query)
        finally:
            for name in names:
                superuser.execute(f"DROP OWNED BY {name}".encode())
                superuser.execute(f"DROP ROLE {name}".encode())


DECLARED_BY_KEEPER = """
    GRANT CREATE ON SCHEMA public TO keeper;
    SET ROLE keeper;
    CREATE TABLE docs (id int PRIMARY KEY, body text);
    SELECT pgembed.create_embedding('docs', 'body', 'tiny');
    RESET ROLE
"""


def test_what_the_owner_of_the_schema_cannot_take_back_is_told(empty_dsn: str) -> None:
    told: list[str] = []
    held = "SELECT has_any_column_privilege('clerk', 'docs', 'UPDATE')"
    with (
        connect(empty_dsn, purpose="test") as superuser,
        ordinary_role(empty_dsn) as role,
        connect(role, purpose="test") as owner,
    ):
        superuser.execute("CREATE EXTENSION vector")
        assert CliRunner().invoke(pgembed, ["install", "--dsn", role]).exit_code == 0
        register_model(superuser)
        superuser.execute("CREATE ROLE clerk; CREATE ROLE keeper")
        try:
            owner.execute("SELECT pgembed.grant_worker('clerk')")
            owner.execute("SELECT pgembed.grant_owner('keeper')")
            superuser.execute(f"GRANT keeper TO {owner.info.user}".encode())
            superuser.execute(DECLARED_BY_KEEPER)
            superuser.execute(f"REVOKE keeper FROM {owner.info.user}".encode())
            owner.add_notice_handler(
                lambda d: told.extend((str(d.message_primary), str(d.message_hint)))
            )
            owner.execute("SELECT pgembed.revoke_all('clerk')")
            message, hint = told
            assert "role clerk may still work on public.docs, a table" in message
            assert value(superuser, held)
            superuser.execute(hint.removeprefix("Let that role run: ").encode())
            assert not value(superuser, held)
        finally:
            superuser.execute("DROP TABLE IF EXISTS docs")
            superuser.execute("DROP OWNED BY clerk, keeper CASCADE")
            superuser.execute("DROP ROLE clerk, keeper")


def test_the_owner_of_the_schema_keeps_his_rights(empty_dsn: str) -> None:
    """Capture runs as him: without them nobody could write a source any more."""
    with (
        connect(empty_dsn, purpose="test") as superuser,
        ordinary_role(empty_dsn) as role,
        connect(role, purpose="test") as owner,
    ):
        superuser.execute("CREATE EXTENSION vector")
        assert CliRunner().invoke(pgembed, ["install", "--dsn", role]).exit_code == 0
        name = owner.info.user
        with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
            superuser.execute("SELECT pgembed.revoke_all(%s::text::regrole)", [name])
        assert f"role {name} owns schema pgembed" in str(caught.value)
        assert value(owner, "SELECT has_schema_privilege('pgembed', 'USAGE')")
        superuser.execute("CREATE ROLE clerk")
        try:
            owner.execute("SELECT pgembed.grant_worker('clerk')")
            uninstall(owner)
        finally:
            superuser.execute("DROP OWNED BY clerk")
            superuser.execute("DROP ROLE clerk")


@pytest.mark.parametrize("number", [0, 4294967295])
@pytest.mark.parametrize(
    "function",
    ["grant_search", "grant_batch", "grant_owner", "grant_worker", "revoke_all"],
)
def test_a_role_that_does_not_exist_is_named(
    connection: Connection, function: str, number: int
) -> None:
    with pytest.raises(psycopg.errors.UndefinedObject, match=f"number {number}"):
        connection.execute(f"SELECT pgembed.{function}({number})".encode())


PAGE = (Path(__file__).parents[3] / "docs" / "roles.md").read_text(encoding="utf-8")


def test_the_statements_of_the_page(dsn: str, connection: Connection) -> None:
    blocks = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = ("web", "app", "worker", "pgembed_user", "pgembed_owner", "pgembed_worker")
    try:
        for block in blocks:
            connection.execute(block.encode())
        register_model(connection)
        connection.execute("CREATE SCHEMA app AUTHORIZATION app")
        with connect(dsn.replace("postgres@", "app@", 1), purpose="test") as app:
            app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
            app.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    finally:
        for name in names:
            connection.execute(f"DROP OWNED BY {name} CASCADE".encode())
        for name in names:
            connection.execute(f"DROP ROLE {name}".encode())


@pytest.fixture
def three_roles(empty_dsn: str) -> Iterator[Connection]:
    """Return a superuser's session; the roles are there, pgembed is not."""
    names = ("pgembed_user", "pgembed_owner", "pgembed_worker", "tenant")
    with connect(empty_dsn, purpose="test") as superuser:
        superuser.execute("CREATE EXTENSION vector")
        for name in names:
            superuser.execute(f"CREATE ROLE {name} LOGIN".encode())
        try:
            yield superuser
        finally:
            for name in names:
                superuser.execute(f"DROP OWNED BY {name} CASCADE".encode())
                superuser.execute(f"DROP ROLE {name}".encode())


def test_an_ordinary_owner_of_the_schema_serves_its_own_members(
    empty_dsn: str, three_roles: Connection
) -> None:
    """It makes functions for a table's owner only if it is a member of that role."""
    superuser = three_roles
    superuser.execute("GRANT pgembed_owner TO tenant")
    superuser.execute("CREATE SCHEMA tenant AUTHORIZATION tenant")
    with (
        ordinary_role(empty_dsn) as role,
        connect(role, purpose="test") as owner,
        connect(empty_dsn.replace("postgres@", "tenant@", 1), purpose="test") as tenant,
    ):
        install(owner)
        register_model(owner)
        owner.execute("SELECT pgembed.create_roles()")
        tenant.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        declare = "SELECT pgembed.create_embedding('docs', 'body', 'tiny')"
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            tenant.execute(declare)
        assert f"GRANT tenant TO {owner.info.user}" in str(
            caught.value.diag.message_hint
        )
        superuser.execute(f"GRANT tenant TO {owner.info.user}".encode())
        tenant.execute(declare)
        # The right to create, which making the functions took, was lent for a moment.
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            tenant.execute("CREATE TABLE pgembed.mine (id int)")
        tenant.execute("INSERT INTO docs VALUES (1, 'one')")
        jobs = "SELECT count(*) FROM pgembed.job_2"  # the first number was refused
        assert value(owner, jobs) == 1
        owner.execute("UPDATE pgembed.installation SET digest = ''")
        assert install(owner).changed
        uninstall(owner)
        tenant.execute("INSERT INTO docs VALUES (2, 'two')")


def test_create_roles_takes_back_what_anybody_may_do(
    roles: Roles, connection: Connection
) -> None:
    connection.execute("GRANT EXECUTE ON ALL ROUTINES IN SCHEMA pgembed TO PUBLIC")
    connection.execute("SELECT pgembed.create_roles()")
    assert open_to_public(connection) == []
