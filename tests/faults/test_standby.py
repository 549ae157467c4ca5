"""A physical standby: what it answers, what it refuses, and its promotion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgembed import build_layout, search_batch
from pgembed.cli.main import pgembed
from pgembed.errors import StandbyError
from pgembed.postgres.connection import connect, fetch_all, fetch_one
from pgembed.postgres.schema import verify
from pgembed.worker import supervisor
from tests.harness.own_server import OwnServer, standby_of
from tests.integration.worker.running import (
    add_good,
    create_docs,
    embed_all,
    embedding,
    insert,
    settings_for,
    wait_until,
)

Connection = psycopg.Connection[Any]


@pytest.fixture
def standby(
    rough_server: OwnServer, rough_dsn: str, tmp_path: Path
) -> Iterator[OwnServer]:
    """Return a standby of the server, with three rows and their vectors."""
    with connect(rough_dsn) as connection:
        add_good(connection, tmp_path)
        create_docs(connection, "one", "two", "three")
    embed_all(rough_dsn)
    with standby_of(rough_server) as server:
        yield server


def on(server: OwnServer, dsn: str) -> str:
    """Return the DSN of the same database on another server."""
    return server.dsn(str(conninfo_to_dict(dsn)["dbname"]))


def either(*dsns: str) -> str:
    """Return a DSN of the servers of several, the first to be tried first."""
    hosts = [str(conninfo_to_dict(dsn)["host"]) for dsn in dsns]
    return make_conninfo(dsns[0], host=",".join(hosts))


def embedded(connection: Connection) -> int:
    return int(fetch_one(connection, "SELECT count(body_embedding) FROM docs")[0])


def test_workers_are_sent_to_the_primary(standby: OwnServer, rough_dsn: str) -> None:
    dsn = on(standby, rough_dsn)
    with pytest.raises(StandbyError, match=r"is a standby, .*several hosts and target"):
        supervisor.run_worker(settings_for(dsn), once=True)
    found = make_conninfo(either(dsn, rough_dsn), target_session_attrs="read-write")
    supervisor.check(settings_for(found))
    ask = CliRunner().invoke(pgembed, ["status", "--dsn", dsn])
    assert "start one with 'pgembed worker' and the primary's DSN" in ask.output
    with connect(dsn) as connection:
        findings = {finding.subject: finding for finding in verify(connection)}
    assert "a standby: workers and changes go to" in findings["server"].message
    assert findings["workers"].remedy.startswith("on the primary: start one with")


def test_searches_and_batches_are_answered(
    standby: OwnServer, rough_dsn: str, tmp_path: Path
) -> None:
    with connect(rough_dsn) as connection:
        layout = build_layout(connection, "docs_body", root=tmp_path / "layouts")
    with connect(on(standby, rough_dsn)) as connection:
        (vector,) = fetch_one(
            connection, "SELECT body_embedding FROM docs WHERE id = 2"
        )
        found = fetch_all(
            connection,
            "SELECT (item).id FROM pgembed.search(NULL::docs, %s::vector, 1)",
            (vector,),
        )
        assert found == [(2,)]
        (plan,) = fetch_one(
            connection,
            "SELECT pgembed.explain_search(NULL::docs, %s::vector, 1)",
            (vector,),
        )
        assert plan["strategy"] == "exact"
        layouts = "SELECT count(*) FROM pgembed.layout"
        wait_until(lambda: fetch_one(connection, layouts) == (1,))
        batch = search_batch(
            connection,
            "docs_body",
            np.array([vector]),
            k=1,
            layouts=tmp_path / "layouts",
            few_by_sql=False,
        )
        assert [list(keys) for keys in batch.keys] == [[2]]
        assert batch.report.layout == layout.version


def test_a_worker_waits_for_the_promotion(
    standby: OwnServer,
    rough_server: OwnServer,
    rough_dsn: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dsn = on(standby, rough_dsn)
    with embedding(either(rough_dsn, dsn)):
        with connect(rough_dsn) as connection:
            wait_until(
                lambda: fetch_one(connection, "SELECT count(*) FROM pgembed.worker")[0]
            )
        rough_server.stop_immediately()
        try:
            wait_until(lambda: "is a standby, which takes no writes" in caplog.text)
            standby.promote()
            with connect(dsn) as connection:
                insert(connection, "four", first=4)
                wait_until(lambda: embedded(connection) == 4)
        finally:
            rough_server.start()


def test_a_layout_built_after_a_promotion(
    standby: OwnServer, rough_dsn: str, tmp_path: Path
) -> None:
    """The control file learns of the new timeline at the checkpoint."""
    query = "SELECT advice FROM pgembed.layouts"
    with connect(rough_dsn) as connection:
        build_layout(connection, "docs_body", root=tmp_path / "layouts")
    with connect(on(standby, rough_dsn)) as connection:
        wait_until(lambda: fetch_one(connection, query) == ("current",))
        standby.promote()
        (advice,) = fetch_one(connection, query)
        assert "rebuild: the server was promoted or restored from a backup" in advice
        build_layout(connection, "docs_body", root=tmp_path / "layouts")
        connection.execute("CHECKPOINT")
        assert fetch_one(connection, query) == ("current",)
