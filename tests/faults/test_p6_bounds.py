"""P6: no transaction is open during inference; rows, bytes and seconds are capped."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.worker.exposition import QueueCollector
from tests.conftest import Connect
from tests.harness import pgbouncer
from tests.harness.oracle import assert_converged
from tests.harness.processes import worker_process
from tests.harness.server import Databases
from tests.integration.worker.running import (
    Connection,
    add_good,
    answering,
    create_docs,
    embed_all,
    embedding,
    insert,
    is_drained,
    leased,
    wait_until,
)


def test_no_transaction_is_open_while_the_model_runs(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    query = """
        SELECT application_name, state FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'pgembed %'
            AND pid <> pg_backend_pid()
            AND (xact_start IS NOT NULL OR backend_xid IS NOT NULL)
    """
    with worker_process(dsn, tmp_path, stop_at="embedded") as worker:
        worker.wait_stopped()
        assert leased(connection) == 2
        # Its other threads were stopped wherever they were: a statement may be ending.
        wait_until(lambda: fetch_all(connection, query) == [])
        held = "SELECT count(*) FROM pg_locks WHERE relation = 'docs'::regclass"
        assert fetch_one(connection, held) == (0,)
        connection.execute("SET lock_timeout = '5s'; ALTER TABLE docs ADD later int")


@pytest.mark.parametrize(
    "options", [{}, {"chunk_tokens": 100}], ids=["whole", "chunks"]
)
def test_ten_megabytes_of_text(
    dsn: str,
    connection: Connection,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, int],
) -> None:
    """Read in part, as the log says; its neighbours get their vectors, too."""
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog " * 1_250_000, "red", **options)
    with caplog.at_level("INFO", "pgembed.worker.runner"):
        embed_all(dsn)
    assert "texts truncated: 1" in caplog.text
    (length,) = fetch_one(connection, "SELECT max(length(body)) FROM docs")
    assert length == 10_000_000
    query = "SELECT count(*) FROM docs WHERE body_embedding IS NOT NULL"
    if options:
        query = "SELECT count(DISTINCT id) FROM docs_body_chunk"
    assert fetch_one(connection, query) == (3,)


def test_memory_has_a_ceiling(dsn: str, connection: Connection, tmp_path: Path) -> None:
    """Sixty megabytes of text wait, and a worker reads four of them at a time."""
    add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    with worker_process(dsn, tmp_path) as worker:
        wait_until(lambda: is_drained(connection))
        before = peak_megabytes(worker.pid)
        connection.execute(
            "INSERT INTO docs (id, body) SELECT i, repeat('the dog ' || i, 100000) "
            "FROM generate_series(2, 60) AS i"
        )
        wait_until(lambda: is_drained(connection))
        assert peak_megabytes(worker.pid) - before < 200
    query = "SELECT count(body_embedding) FROM docs"
    assert fetch_one(connection, query) == (60,)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_of_calls_has_a_ceiling(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    """Three callers at once, each with ten megabytes in as many texts as it may."""
    model = add_good(connection, tmp_path)
    connection.execute(
        "CREATE TABLE texts AS SELECT array_agg(repeat('the dog ' || i % 7, 111)) AS "
        "all_of_them FROM generate_series(1, 10000) AS i"
    )
    query = (
        "SELECT v[1], v[10000] FROM (SELECT pgembed.embed_batch('tiny', all_of_them) "
        "AS v FROM texts) AS r"
    )

    def patient(caller: Connection) -> Any:
        caller.execute("SET pgembed.call_timeout = '300s'")
        return fetch_one(caller, query)

    wanted = model.embed([f"the dog {i % 7}" * 111 for i in (1, 10000)])
    with worker_process(dsn, tmp_path, role="calls") as worker:
        fetch_one(connection, "SELECT pgembed.embed('tiny', 'a cat')")
        before = peak_megabytes(worker.pid)
        callers = [connect(dsn) for _ in range(3)]
        with ThreadPoolExecutor(len(callers)) as pool:
            answers = list(pool.map(patient, callers))
        grown = peak_megabytes(worker.pid) - before
    for answer in answers:
        np.testing.assert_allclose(np.stack(answer), wanted, atol=1e-4)
    assert grown < 1000


def peak_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = [each for each in status.splitlines() if each.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


@pytest.fixture
def statement_timeout(connection: Connection) -> None:
    connection.execute(
        """
        DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET statement_timeout = 300',
                current_database());
            EXECUTE format('ALTER DATABASE %I SET lock_timeout = 10',
                current_database());
        END $$
        """
    )


@pytest.mark.usefixtures("statement_timeout")
def test_statements_that_take_too_long(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    """Cancelled by the server, again and again, without an attempt used up."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(20)])
    connection.execute(
        """
        CREATE TABLE tempo (slow bool); INSERT INTO tempo VALUES (true);
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT slow FROM public.tempo) THEN PERFORM pg_sleep(10); END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER dawdle BEFORE UPDATE OF body_embedding ON docs
        FOR EACH ROW EXECUTE FUNCTION dawdle();
        """
    )
    with worker_process(dsn, tmp_path, max_attempts=1) as worker:
        wait_until(lambda: worker.log().count("statement timeout") >= 2)
        connection.execute("UPDATE tempo SET slow = false")
        wait_until(lambda: is_drained(connection))
    assert_converged(connection, model)


@pytest.mark.usefixtures("statement_timeout")
def test_a_table_that_takes_longer_to_enqueue_than_a_statement_may(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    """It does not keep the others from being embedded."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(20)])
    connection.execute(
        """
        CREATE FUNCTION pgembed.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(0.05); RETURN NEW;
        END $$;
        CREATE TRIGGER dawdle BEFORE INSERT ON pgembed.job_1
        FOR EACH ROW EXECUTE FUNCTION pgembed.dawdle();
        """
    )
    embed_all(dsn)
    assert_converged(connection, model)


@pytest.fixture
def pooled_dsn(dsn: str, server: Databases, tmp_path: Path) -> Iterator[str]:
    """Return the DSN of the test's database by way of PgBouncer."""
    program = pgbouncer.install()
    if program is None:
        pytest.skip("pgbouncer is not installed, and apt-get could not install it")
    user = server.folder.stat().st_uid
    with pgbouncer.pgbouncer(program, dsn, tmp_path, user) as pooled:
        yield pooled


def test_pgbouncer_in_transaction_mode(
    dsn: str,
    pooled_dsn: str,
    connection: Connection,
    connect: Connect,
    tmp_path: Path,
) -> None:
    """Rows, chunks, index, calls, searches, batches: no setting stays behind."""
    kept = tmp_path / "models"
    client = connect(pooled_dsn)
    model = add_good(client, tmp_path)
    create_docs(client, "a cat", "the dog", None, index="hnsw")
    client.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', name => 'cut', "
        "chunk_tokens => 16)"
    )
    with embedding(pooled_dsn), answering(pooled_dsn, cache_dir=kept):
        wait_until(lambda: is_drained(client) and is_drained(client, "cut"))
        insert(client, "a man eats food", "blue", first=4)
        client.execute("UPDATE docs SET body = 'red' WHERE id = 1")
        wait_until(lambda: is_drained(client) and is_drained(client, "cut"))
        (vector,) = fetch_one(client, "SELECT pgembed.embed('tiny', 'the dog')")
        np.testing.assert_allclose(vector, model.embed(["the dog"])[0], atol=1e-4)
        found = fetch_one(
            client,
            "SELECT (item).id FROM pgembed.search("
            "NULL::docs, 'the dog', k => 1, embedding => 'docs_body')",
        )
        assert found == (2,)
        ready = "SELECT bool_and(index_state = 'ready') FROM pgembed.embedding_status"
        wait_until(lambda: fetch_one(client, ready) == (True,))
        post_batches(client)
        list(QueueCollector(pooled_dsn).collect())
    assert_converged(connection, model)
    assert settings_left_behind(pooled_dsn, connect) == set()


def post_batches(client: Connection) -> None:
    """Have a layout built and searched, under settings of the client's."""
    client.execute("CREATE TABLE asked AS SELECT 1 AS id, 'the dog' AS content")
    for call in (
        "build_layout('docs_body', 'asked')",
        "search_batch('docs_body', 'asked', 'answers', 1)",
    ):
        with client.transaction():
            client.execute("SET LOCAL IntervalStyle = iso_8601")
            (batch,) = fetch_one(client, f"SELECT pgembed.{call}")
        assert fetch_one(client, "SELECT pgembed.await_batch(%s)", [batch]) == ("done",)


def settings_left_behind(pooled_dsn: str, connect: Connect) -> set[str]:
    """Return what is set in the pool's sessions, and would surprise other clients."""
    clients = [connect(pooled_dsn) for _ in range(3)]
    left: set[str] = set()
    for client in clients:
        client.execute("BEGIN")  # each keeps a session of the pool for itself
        query = "SELECT name FROM pg_settings WHERE source = 'session'"
        left |= {name for (name,) in fetch_all(client, query)}
    for client in clients:
        client.execute("ROLLBACK")
    # What PgBouncer keeps for each client, and what ends with its transaction.
    kept = {"application_name", "client_encoding", "DateStyle", "TimeZone"}
    return left - kept - {"transaction_isolation", "transaction_read_only"}
