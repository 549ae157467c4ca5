"""A worker that runs once carries posted batches out, too."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgembed.errors import WorkerError
from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.worker.supervisor import run_worker
from tests.conftest import Connect
from tests.integration.batch.posting import batch_of, post, waits_for_a_lock
from tests.integration.search.support import Connection
from tests.integration.worker.running import (
    add_good,
    assert_current,
    create_docs,
    is_drained,
    settings_for,
    wait_until,
)

SEARCH = "search_batch('docs_body', 'queries', 'results', 2, 1)"


def run_once(dsn: str, tmp_path: Path, **values: object) -> None:
    """Work off everything, in the processes of a worker."""
    settings = settings_for(dsn, cache_dir=tmp_path / "models", **values)
    run_worker(settings, once=True, quiet=True)


def test_rows_first_then_batches(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """Batches find what was inserted before, and one that fails holds nothing up."""
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog", "a cat sat")
    connection.execute("CREATE TABLE queries AS SELECT 1 AS id, 'a cat' AS content")
    built = post(connection, "build_layout('docs_body')")
    failing = post(connection, "knn_join('docs_body', 'r', predicate => '1 / 0 = id')")
    batch = post(connection, SEARCH)
    run_once(dsn, tmp_path, processes=2)
    assert_current(connection, model)
    assert batch_of(connection, failing)["state"] == "failed"
    assert batch_of(connection, built)["rows"] == 3
    assert batch_of(connection, batch)["state"] == "done"
    found = fetch_all(connection, "SELECT query_id, rank, id FROM results ORDER BY 2")
    assert found[0] == (1, 1, 1)
    assert len(found) == 2
    assert fetch_all(connection, "SELECT * FROM pgembed.workers") == []


def test_filters_of_joins_keep_their_digits(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    connection.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v vector(2), code text); "
        "INSERT INTO t VALUES (1, '[1,1]', '1.1'), (2, '[1,2]', '1.10'); "
        "SELECT pgembed.adopt_vectors('t', 'v')"
    )
    given = '{"code": 1.10}'
    batch = post(connection, "knn_join('t_v', 'plain', filter => %s)", given)
    run_once(dsn, tmp_path)
    assert batch_of(connection, batch)["state"] == "done"
    assert fetch_all(connection, "SELECT id, related_id FROM plain") == [(1, 2)]


def test_what_a_batch_leaves_to_embed_is_embedded(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    connection.execute(
        "CREATE TABLE queries AS SELECT 1 AS id, 'a cat' AS content; "
        "CREATE TABLE results (query_id int, rank int, id int, distance float8, "
        "body text DEFAULT 'a cat', PRIMARY KEY (query_id, rank)); "
        "SELECT pgembed.create_embedding('results', 'body', 'tiny', index => 'none')"
    )
    post(connection, SEARCH)
    run_once(dsn, tmp_path)
    assert is_drained(connection, "results_body")
    (count,) = fetch_one(connection, "SELECT count(body_embedding) FROM results")
    assert count == 2
    assert_current(connection, model)


def test_no_process_leaves_anything_to_report(
    dsn: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would keep in the home what it has to tell its makers."""
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    batch = post(connection, "knn_join('docs_body', 'results')")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for variable in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    run_once(dsn, tmp_path)
    assert batch_of(connection, batch)["state"] == "done"
    assert list(home.rglob("*onnxruntime*")) == []


def test_the_batch_of_a_dead_worker_is_waited_for(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    batch = post(connection, "knn_join('docs_body', 'results')")
    connection.execute("SELECT pgembed._claim_batch(gen_random_uuid(), '2 s', 3)")
    run_once(dsn, tmp_path)
    row = batch_of(connection, batch)
    assert (row["state"], row["attempts"], row["rows"]) == ("done", 2, 2)


def test_told_to_stop_it_hands_its_batch_back_and_says_so(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    connection.execute(
        "CREATE TABLE results (id int, rank int, related_id int, distance float8)"
    )
    other = connect(dsn)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool, other.transaction():
        other.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
        batch = post(connection, "knn_join('docs_body', 'results')")
        working = pool.submit(
            run_worker, settings_for(dsn), once=True, stop=stop, quiet=True
        )
        try:
            wait_until(lambda: waits_for_a_lock(connection))
        finally:
            stop.set()
            error = working.exception(60)
    assert isinstance(error, WorkerError)
    assert "told to stop before all was done" in str(error)
    row = batch_of(connection, batch)
    assert (row["state"], row["attempts"]) == ("waiting", 0)


def test_what_the_database_refuses_is_an_error(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """It does not wait for ever for batches that it cannot claim."""
    add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    post(connection, "knn_join('docs_body', 'results')")
    connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '42501'; END $$; "
        "CREATE TRIGGER refuse BEFORE UPDATE ON pgembed.batch "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(WorkerError, match="process ended 2 times"):
        run_once(dsn, tmp_path, max_attempts=1)
