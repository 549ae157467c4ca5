"""`pgembed install --roles`, as a superuser and as a role that may do little."""

from __future__ import annotations

import psycopg
import pytest
from click.testing import CliRunner

from pgembed.cli.main import pgembed
from pgembed.postgres.connection import connect
from tests.harness.roles import ordinary_role
from tests.harness.sql_worker import value
from tests.integration.roles.conftest import Roles


def test_doing_it_again_changes_nothing(roles: Roles) -> None:
    arguments = ["install", "--roles", "--dsn", roles.superuser]
    result = CliRunner().invoke(pgembed, arguments)
    assert result.exit_code == 0, result.output
    assert "already up to date" in result.output


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
