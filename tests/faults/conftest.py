"""A server that tests may stop, and a database on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.own_server import OwnServer, own_server


@pytest.fixture(scope="session")
def rough_server() -> Iterator[OwnServer]:
    """Return a server that may be stopped immediately; it runs when a test begins."""
    with own_server() as server:
        yield server


@pytest.fixture
def rough_dsn(rough_server: OwnServer) -> Iterator[str]:
    """Return the DSN of a new database with pgembed on the rough server."""
    with rough_server.database(rough_server.installed_template()) as name:
        yield rough_server.dsn(name)
