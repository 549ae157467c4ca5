"""A database with a model, and a worker for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgembed.postgres.connection import connect
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import Connection, SqlWorker


@pytest.fixture
def db(connection: Connection) -> Connection:
    """Return an autocommit connection to a database with model tiny."""
    register_model(connection)
    return connection


@pytest.fixture
def worker(db: Connection) -> SqlWorker:
    """Return a worker that uses the test's own connection."""
    return SqlWorker(db)


@pytest.fixture(scope="module")
def _shared(server: Databases) -> Iterator[Connection]:
    with (
        server.database(server.installed_template()) as name,
        connect(server.dsn(name), purpose="test") as connection,
    ):
        register_model(connection)
        yield connection


@pytest.fixture
def scratch(_shared: Connection) -> Iterator[Connection]:
    """Return a connection in a transaction that is rolled back after the test."""
    with _shared.transaction(force_rollback=True):
        yield _shared


@pytest.fixture
def scratch_worker(scratch: Connection) -> SqlWorker:
    """Return a worker that works inside the test's transaction."""
    return SqlWorker(scratch)
