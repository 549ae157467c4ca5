"""Sessions that are not what a batch is used to."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import psycopg
import pytest

from pgembed.batch.execute import Options
from pgembed.batch.job import run_batch, run_join
from pgembed.batch.layout import build_layout
from pgembed.batch.search import knn_join, search_batch
from pgembed.errors import FilterError, PgembedError
from tests.integration.search.support import Connection, adopt, create_items

ONE = np.ones((1, 3), np.float32)
CALLS: list[Callable[[Any], Any]] = [
    lambda c: search_batch(c, "items_v", ONE),
    lambda c: knn_join(c, "items_v"),
    lambda c: build_layout(c, "items_v"),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_pipeline_is_refused(dsn: str, call: Callable[[Any], Any]) -> None:
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        connection.pipeline(),
        pytest.raises(PgembedError, match="in pipeline mode"),
    ):
        call(connection)


@pytest.mark.parametrize("kind", ["search", "join", "to a table", "join to a table"])
def test_a_batch_may_take_longer_than_transactions_idle(
    connection: Connection, kind: str
) -> None:
    create_items(connection, "items", np.eye(3, dtype=np.float32))
    adopt(connection, "items")
    connection.execute("CREATE TABLE queries AS SELECT id, v AS embedding FROM items")
    connection.execute("SET idle_in_transaction_session_timeout = 50")

    def pause(stage: str, share: float) -> None:
        time.sleep(0.2 if stage == "reading" else 0)

    options = Options(1.0, 64 << 20, 1, progress=pause, few_by_sql=False)
    if kind == "search":
        search_batch(connection, "items_v", ONE, progress=pause, few_by_sql=False)
    elif kind == "join":
        knn_join(connection, "items_v", progress=pause)
    elif kind == "to a table":
        run_batch(connection, "items_v", "queries", "results", options=options)
    else:
        run_join(connection, "items_v", "results", options=options)
    row = connection.execute("SHOW idle_in_transaction_session_timeout").fetchone()
    assert row == ("50ms",)


def test_other_threads_wait_for_a_batch(connection: Connection) -> None:
    """As they do for any statement on the connection that they share."""
    create_items(connection, "items", np.eye(3, dtype=np.float32))
    adopt(connection, "items")
    others: list[Future[Any]] = []
    early: list[bool] = []

    def ask(stage: str, share: float) -> None:
        others.append(pool.submit(connection.execute, "SELECT 'other'"))
        early.append(bool(wait([others[-1]], timeout=0.2).done))

    with ThreadPoolExecutor(9) as pool:
        found = search_batch(
            connection, "items_v", ONE, k=3, progress=ask, few_by_sql=False
        )
        assert found.counts.tolist() == [3]
        assert others
        assert not any(early)
        assert {other.result().fetchone() for other in others} == {("other",)}


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
@pytest.mark.parametrize("singly", [False, True])
def test_sessions_of_another_encoding(
    dsn: str, connection: Connection, encoding: str, singly: bool
) -> None:
    """They mean what they write, and go on in their encoding, also after an error."""
    names = {"s": ("text", ["ä", "a", "Ã¤"])}
    create_items(connection, "tä", np.eye(3, dtype=np.float32), columns=names)
    name = adopt(connection, "tä")
    with psycopg.connect(dsn, autocommit=True, client_encoding=encoding) as own:
        given: dict[str, Any] = {"few_by_sql": singly, "k": 3}
        for filter_ in ({"predicates": "s = 'ä'"}, {"filters": {"s": "ä"}}):
            found = search_batch(own, name, ONE, **filter_, **given)
            assert found.keys[0, : found.counts[0]].tolist() == [0]
        with pytest.raises(FilterError):
            search_batch(own, name, ONE, predicates="s = 1", **given)
        row = own.execute("SELECT current_setting('client_encoding'), 'ä'").fetchone()
        assert row == (encoding, "ä")


def test_notifications_reach_the_owner_of_the_session(
    dsn: str, connection: Connection
) -> None:
    """Those that come while a batch reads."""
    create_items(connection, "items", np.eye(3, dtype=np.float32))
    adopt(connection, "items")
    heard: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as listening:
        listening.add_notify_handler(lambda notify: heard.append(notify.payload))
        listening.execute("LISTEN news")
        connection.execute("NOTIFY news, 'before'")
        search_batch(listening, "items_v", ONE)
        assert heard == ["before"]
        connection.execute("NOTIFY news, 'after'")
        listening.execute("SELECT 1")
        assert heard == ["before", "after"]
