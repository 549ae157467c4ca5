"""A service without superuser and PL/Python, behind TLS, PgBouncer in front."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import psycopg
import pytest

from pgembed.errors import ConnectError
from pgembed.models.session import Model
from pgembed.postgres.connection import Connection, connect, fetch_all, fetch_one
from tests.harness.managed import ManagedServer
from tests.integration.batch.posting import ended, post
from tests.integration.managed.page import Page
from tests.integration.worker.running import (
    answering,
    assert_current,
    create_docs,
    embedding,
    insert,
    is_drained,
    status,
    wait_until,
)


def test_the_role_is_an_ordinary_one(app: Connection, page: Page) -> None:
    assert fetch_one(
        app,
        "SELECT rolsuper, rolcreaterole, rolbypassrls, "
        "(SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), "
        "(SELECT count(*) FROM pg_extension WHERE extname = 'plpython3u') "
        "FROM pg_roles WHERE rolname = current_user",
    ) == (False, False, False, True, 0)


def test_the_certificate_is_checked(
    managed: ManagedServer, page: Page, tmp_path: Path
) -> None:
    """Neither another authority's certificate, nor another host's, nor none."""
    with pytest.raises(ConnectError, match="certificate"):
        connect(page.dsn.replace("localhost", "127.0.0.1"))
    with pytest.raises(ConnectError, match="no encryption"):
        connect(page.dsn.replace("verify-full", "disable"))
    other = tmp_path / "other.crt"
    other.write_text("", encoding="ascii")
    with pytest.raises(ConnectError, match="certificate"):
        connect(page.dsn.replace(str(managed.certificate), str(other)))


def work_through(app: Connection, model: Model) -> None:
    """Rows and index, calls, searches, a batch: with the worker that runs."""
    wait_until(lambda: is_drained(app))
    insert(app, "a man eats food", "blue", first=4)
    app.execute("UPDATE docs SET body = 'red' WHERE id = 1")
    wait_until(lambda: is_drained(app))
    assert_current(app, model)
    wait_until(lambda: status(app)["index_state"] == "ready")
    with app.transaction():
        app.execute("SET LOCAL pgembed.call_timeout = '30s'")
        (vector,) = fetch_one(app, "SELECT pgembed.embed('minilm', 'the dog')")
    np.testing.assert_allclose(vector, model.embed(["the dog"])[0], atol=1e-4)
    with app.transaction():
        app.execute("SET LOCAL pgembed.call_timeout = '30s'")
        query = "SELECT (item).id FROM pgembed.search(NULL::docs, 'the dog', k => 1)"
        assert fetch_one(app, query) == (2,)
    app.execute("CREATE TABLE queries AS SELECT 1 AS id, 'the dog' AS content")
    batch = post(app, "search_batch('docs_body', 'queries', 'results', k => 1)")
    assert ended(app, batch)["error"] is None
    assert fetch_all(app, "SELECT query_id, id FROM results") == [(1, 2)]


def declare(app: Connection) -> None:
    create_docs(app, "a cat", "the dog", None, index="hnsw", model="minilm")


def test_everything_works(page: Page, app: Connection, model: Model) -> None:
    declare(app)
    with embedding(page.dsn), answering(page.dsn):
        work_through(app, model)


@pytest.mark.parametrize("worker", ["direct", "pooled"])
def test_everything_works_through_pgbouncer(
    page: Page, pooled: str, model: Model, worker: str
) -> None:
    dsn = pooled if worker == "pooled" else page.dsn
    with connect(pooled, purpose="test") as client:
        declare(client)
        with embedding(dsn), answering(dsn):
            work_through(client, model)


def test_without_a_user_mapping_the_error_says_how_to_make_one(
    page: Page, app: Connection, model: Model
) -> None:
    app.execute("DROP SERVER pgembed_calls CASCADE")
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
        app.execute("SELECT pgembed.embed('minilm', 'x')")
    hint = str(caught.value.diag.message_hint)
    statements = re.findall("CREATE [^;]*;", hint)
    assert len(statements) == 2
    for statement in statements:
        app.execute(statement.replace("'...'", "'secret'").encode())
    with answering(page.dsn):
        assert app.execute("SELECT pgembed.embed('minilm', 'x')").fetchone()


def test_the_doctor_finds_nothing_wrong(
    page: Page, app: Connection, model: Model
) -> None:
    declare(app)
    with embedding(page.dsn), answering(page.dsn):
        wait_until(lambda: is_drained(app))
        output = page.run("doctor")
    assert "error" not in output


def test_callers_need_no_mapping(
    page: Page,
    app: Connection,
    managed: ManagedServer,
    model: Model,
    provider: psycopg.Connection[tuple[object, ...]],
) -> None:
    """The functions run as the owner of the schema, who has one."""
    provider.execute("CREATE ROLE caller LOGIN PASSWORD 'secret'")
    try:
        app.execute("SELECT pgembed.grant_search('caller')")
        with (
            answering(page.dsn),
            connect(managed.dsn("caller", page.database), purpose="test") as caller,
        ):
            (vector,) = fetch_one(caller, "SELECT pgembed.embed('minilm', 'a cat')")
        np.testing.assert_allclose(vector, model.embed(["a cat"])[0], atol=1e-4)
    finally:
        provider.execute("DROP OWNED BY caller; DROP ROLE caller")
