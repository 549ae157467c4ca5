"""Every way in which a SQL function reaches a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgembed.models.session import Model
from pgembed.postgres.transports import Wish
from tests.harness import tiny_models
from tests.harness.server import Databases
from tests.integration.worker.running import Connection, add_tiny, answering

PROMPT = "red "


@pytest.fixture(params=["dblink", "plpython"])
def transport(request: pytest.FixtureRequest) -> str:
    """Return how calls travel in this test."""
    return str(request.param)


@pytest.fixture
def databases(transport: str, request: pytest.FixtureRequest) -> Databases:
    """Return a server that has the transport."""
    name = "full_server" if transport == "plpython" else "server"
    databases = request.getfixturevalue(name)
    assert isinstance(databases, Databases)
    return databases


@pytest.fixture
def dsn(transport: str, databases: Databases) -> Iterator[str]:
    """Return the DSN of a new database with pgembed and that transport."""
    wish: Wish = "plpython" if transport == "plpython" else "dblink"
    with databases.database(databases.installed_template(wish)) as name:
        yield databases.dsn(name)


@pytest.fixture
def model(connection: Connection, tmp_path: Path) -> Model:
    """Register a model that has a prompt for queries and raises for poison."""
    folder = tiny_models.raising_model(tmp_path / "tiny")
    return add_tiny(connection, folder, query_prompt=PROMPT)


@pytest.fixture
def worker(dsn: str, model: Model) -> Iterator[None]:
    """Answer calls during the test."""
    with answering(dsn):
        yield
