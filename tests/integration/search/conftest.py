"""Databases for the search tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgembed.postgres.connection import connect
from tests.harness.server import Databases
from tests.integration.search.support import Connection, adopt, create_items
from tests.integration.search.workloads import ROWS, vectors


@pytest.fixture(scope="module")
def shared(server: Databases) -> Iterator[Connection]:
    """Return a connection to a database with pgembed that a module's tests share."""
    with (
        server.database(server.installed_template()) as name,
        connect(server.dsn(name), purpose="test") as connection,
    ):
        yield connection


@pytest.fixture(scope="module")
def advised(shared: Connection) -> Connection:
    """Rows with a kind (0 to 4) and a number; exact search is made to look dear."""
    columns = {
        "kind": ("int", [i % 5 for i in range(ROWS)]),
        "n": ("int", range(ROWS)),
    }
    create_items(shared, "items", vectors(), columns=columns)
    shared.execute("ANALYZE items")
    shared.execute("CREATE INDEX items_v_all ON items USING hnsw (v vector_l2_ops)")
    adopt(shared, "items", distance="l2", name="items_v")
    shared.execute("SET pgembed.cost_dimension = 1")
    return shared


@pytest.fixture
def recording(advised: Connection) -> Iterator[Connection]:
    """The same, with every search's filter recorded and no record yet."""
    advised.execute("TRUNCATE pgembed.recorded_filter")
    advised.execute("SET pgembed.record_filters = 1")
    yield advised
    advised.execute("RESET pgembed.record_filters")
