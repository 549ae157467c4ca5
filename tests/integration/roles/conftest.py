"""The three roles in one database, and a role that logs in for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from psycopg import sql

from pgembed.postgres.connection import Connection, fetch_all
from tests.conftest import Connect

GROUPS = ("pgembed_user", "pgembed_owner", "pgembed_worker")
PEOPLE = {"ursula": "pgembed_user", "olga": "pgembed_owner", "walter": "pgembed_worker"}


@dataclasses.dataclass(frozen=True)
class Roles:
    """A superuser's DSN, and those of members of the roles."""

    superuser: str

    def dsn(self, name: str) -> str:
        """Return the DSN of ursula, olga, walter or stranger."""
        return self.superuser.replace("postgres@", f"{name}@", 1)


def execute(connection: Connection, statement: str, *names: str) -> None:
    """Run a statement with names in place of its braces."""
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture
def roles(dsn: str, connect: Connect) -> Iterator[Roles]:
    """Create the roles as `pgembed install --roles` does, and members of them.

    Olga owns schema olga. Nobody but her may look into it.
    """
    with connect(dsn, purpose="roles") as superuser:
        superuser.execute("SELECT pgembed.create_roles()")
        for name in (*PEOPLE, "stranger"):
            execute(superuser, "CREATE ROLE {} LOGIN", name)
        for name, group in PEOPLE.items():
            execute(superuser, "GRANT {} TO {}", group, name)
        superuser.execute("CREATE SCHEMA olga AUTHORIZATION olga")
        try:
            yield Roles(dsn)
        finally:
            _drop(superuser)


def _drop(superuser: Connection) -> None:
    found = fetch_all(
        superuser,
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)",
        [[*PEOPLE, "stranger", "landlord", *GROUPS]],
    )
    for (name,) in found:
        execute(superuser, "DROP OWNED BY {} CASCADE", name)
    for (name,) in found:
        execute(superuser, "DROP ROLE {}", name)


@pytest.fixture
def olga(roles: Roles, connect: Connect) -> Connection:
    """Return the session of a role that declares embeddings on its own tables."""
    connection = connect(roles.dsn("olga"), purpose="test")
    connection.execute("SET search_path = olga, public")
    return connection


@pytest.fixture
def walter(roles: Roles, connect: Connect) -> Connection:
    """Return the session of a worker's role."""
    return connect(roles.dsn("walter"), purpose="test")
