"""Databases for the batch tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgembed.postgres.connection import connect
from tests.harness.server import Databases
from tests.integration.search.support import Connection


@pytest.fixture(scope="module")
def shared(server: Databases) -> Iterator[Connection]:
    """Return a connection to a database with pgembed that a module's tests share."""
    with (
        server.database(server.installed_template()) as name,
        connect(server.dsn(name), purpose="test") as connection,
    ):
        yield connection
