"""The roles that the server's image makes, as compose.yaml uses them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgembed.postgres.connection import Connection, connect, fetch_one
from pgembed.postgres.schema import install
from tests.harness.server import Databases
from tests.integration.worker.running import add_good, assert_current, embed_all

SCRIPT = Path(__file__).parents[2] / "docker" / "create-roles.sh"
NAMES = ("pgembed_user", "pgembed_owner", "pgembed_worker", "app", "worker")


@pytest.fixture
def superuser(server: Databases, empty_dsn: str) -> Iterator[Connection]:
    """Return a superuser's session in a database that the script has been run on."""
    path = f"{server.programs}:{os.environ['PATH']}"
    if shutil.which("psql", path=path) is None:
        pytest.skip("this server has no psql")
    given = conninfo_to_dict(empty_dsn)
    environ = {
        **os.environ,
        "PATH": path,
        "PGHOST": str(given["host"]),
        "POSTGRES_USER": "postgres",
        "POSTGRES_DB": str(given["dbname"]),
        "APP_PASSWORD": "it's",
        "WORKER_PASSWORD": "secret",
    }
    with connect(empty_dsn, purpose="test") as connection:
        subprocess.run([str(SCRIPT)], env=environ, check=True)
        try:
            yield connection
        finally:
            connection.execute(
                "ALTER DATABASE CURRENT OWNER TO postgres".replace(
                    "CURRENT", str(given["dbname"])
                ).encode()
            )
            for name in NAMES:
                connection.execute(f"DROP OWNED BY {name} CASCADE".encode())
            for name in NAMES:
                connection.execute(f"DROP ROLE {name}".encode())


def test_the_worker_serves_the_application(
    empty_dsn: str, superuser: Connection, tmp_path: Path
) -> None:
    """Rows and index, without a superuser but for the installation."""
    install(superuser)
    superuser.execute("SELECT pgembed.create_roles()")
    model = add_good(superuser, tmp_path)
    with connect(empty_dsn.replace("postgres@", "app@", 1), purpose="test") as app:
        app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        app.execute("INSERT INTO docs VALUES (1, 'a cat'), (2, 'the dog')")
        app.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
        embed_all(empty_dsn.replace("postgres@", "worker@", 1))
        assert_current(app, model)
        state = "SELECT state, index_state FROM pgembed.embedding_status"
        assert fetch_one(app, state) == ("current", "ready")
