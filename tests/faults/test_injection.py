"""P8: hostile strings where embeddings are declared and named are only strings.

Filters, searches and paths into JSON: tests/integration/search/test_injection.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings

from pgembed.postgres.connection import connect
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import Connection, SqlWorker, assert_converged, rows
from tests.integration.search.test_injection import HOSTILE, PAYLOADS

NAMED = (
    "SELECT pgembed.drop_embedding(%s)",
    "SELECT pgembed.pause_embedding(%s)",
    "SELECT pgembed.resume_embedding(%s)",
    "SELECT pgembed.retry_failed(%s)",
    "SELECT pgembed.reconcile(%s)",
    "SELECT pgembed.drop_layout(%s)",
    "SELECT * FROM pgembed.recall(%s)",
    "SELECT pgembed.drop_model(%s)",
    "SELECT pgembed.embed(%s, 'x')",
)
short = HOSTILE.filter(lambda text: 0 < len(text.encode()) <= 40)
thorough = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def guarded(server: Databases) -> Iterator[Connection]:
    """Return a database with a table to embed and a sentinel, intact afterwards."""
    with (
        server.database(server.installed_template()) as name,
        connect(server.dsn(name)) as connection,
    ):
        register_model(connection)
        connection.execute(
            "CREATE TABLE docs (id int PRIMARY KEY, body text); "
            "INSERT INTO docs VALUES (1, 'one'), (2, '''; DROP TABLE sentinel; --'); "
            "CREATE TABLE sentinel AS SELECT 42 AS answer"
        )
        yield connection
        assert rows(connection, "SELECT answer FROM sentinel") == [(42,)]
        assert rows(connection, "SELECT count(*) FROM docs") == [(2,)]


@thorough
@example("\x1f", "x")
@given(short, short)
def test_names_are_only_names(guarded: Connection, name: str, column: str) -> None:
    """An embedding and its column may be called anything, and then work."""
    with guarded.transaction(force_rollback=True):
        worker = SqlWorker(guarded)
        rows(
            guarded,
            "SELECT pgembed.create_embedding('docs', 'body', 'tiny', name => %s, "
            "target_column => %s)",
            name,
            column + "t",
        )
        worker.drain()
        assert_converged(guarded, name)
        rows(guarded, "UPDATE docs SET body = %s WHERE id = 1", name)
        worker.drain()
        assert_converged(guarded, name)
        assert rows(guarded, "SELECT pgembed.reconcile(%s)", name) == [(0,)]
        rows(guarded, "SELECT pgembed.drop_embedding(%s, true)", name)


@thorough
@given(HOSTILE)
def test_templates_are_only_templates(guarded: Connection, text: str) -> None:
    """What stands around the columns of a template is part of the content."""
    template = text.replace("{", "{{").replace("}", "}}") + "{body}"
    with guarded.transaction(force_rollback=True):
        worker = SqlWorker(guarded)
        rows(
            guarded,
            "SELECT pgembed.create_embedding('docs', %s, 'tiny', name => 'x')",
            template,
        )
        worker.work()
        texts = set(worker.claim("x").texts)
    assert texts == {f"{text}one", f"{text}'; DROP TABLE sentinel; --"}


@pytest.mark.parametrize("query", NAMED)
def test_names_that_nothing_has(guarded: Connection, query: str) -> None:
    """They are looked up, not run."""
    for payload in PAYLOADS:
        with pytest.raises(psycopg.errors.UndefinedObject):
            rows(guarded, query, payload)
