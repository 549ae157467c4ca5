"""Fixtures: a server per session, a database per test, connections that close."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgembed.postgres import connection as connections
from tests.harness import debian
from tests.harness.roles import ordinary_role
from tests.harness.server import Databases, running_debian_server, running_server

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Return the session's embedded server; fsync is off, its folder is deleted.

    With PGEMBED_TEST_SERVER=debian it is Debian's.
    """
    if os.environ.get("PGEMBED_TEST_SERVER") == "debian":
        yield request.getfixturevalue("full_server")
        return
    with running_server() as databases:
        yield databases


@pytest.fixture(scope="session")
def full_server() -> Iterator[Databases]:
    """Return Debian's server, which has PL/Python; skips where it is not installed."""
    if debian.installed_major() is None:
        if os.environ.get("CI"):  # which installs it, and leaves nothing out
            pytest.fail(f"no PostgreSQL with PL/Python here: {debian.HOW_TO_INSTALL}")
        pytest.skip(f"no PostgreSQL with PL/Python here: {debian.HOW_TO_INSTALL}")
    with running_debian_server() as databases:
        yield databases


@pytest.fixture
def empty_dsn(server: Databases) -> Iterator[str]:
    """Return the DSN of a new database with neither pgembed nor an extension."""
    with server.database() as name:
        yield server.dsn(name)


@pytest.fixture
def dsn(server: Databases) -> Iterator[str]:
    """Return the DSN of a new database in which pgembed is installed."""
    with server.database(server.installed_template()) as name:
        yield server.dsn(name)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return pgembed's connect(); what it opens is closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_connection(dsn: str, **arguments: Any) -> psycopg.Connection[Any]:
            connection = connections.connect(dsn, **arguments)
            stack.callback(connection.close)
            return connection

        yield open_connection


@pytest.fixture
def connection(dsn: str, connect: Connect) -> psycopg.Connection[Any]:
    """Return an autocommit connection to a database with pgembed."""
    return connect(dsn, purpose="test")


@pytest.fixture
def role_dsn(dsn: str) -> Iterator[str]:
    """Return the DSN of a role that may create schemas, and nothing more."""
    with ordinary_role(dsn) as role:
        yield role
