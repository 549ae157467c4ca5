"""P9: a worker's death, however sudden, never disturbs PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from pgembed.postgres.connection import fetch_one
from tests.conftest import Connect
from tests.harness.oracle import assert_converged
from tests.harness.processes import worker_process
from tests.integration.worker.running import (
    Connection,
    add_good,
    create_docs,
    embed_all,
    leased,
    wait_until,
)


def test_sessions_live_on_when_workers_are_killed(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    model = add_good(connection, tmp_path)
    create_docs(connection, *[f"the dog {i}" for i in range(500)])
    started = fetch_one(connection, "SELECT pg_postmaster_start_time()")
    user = connect(dsn)
    user.execute("BEGIN")
    user.execute("CREATE TEMP TABLE mine AS SELECT 42 AS answer")
    pid = user.info.backend_pid
    for _ in range(3):
        with worker_process(dsn, tmp_path, claim_rows=8, lease_seconds=1.0) as worker:
            wait_until(lambda: leased(connection) > 0)
            worker.kill()
    # A crash of a backend would have ended every session.
    assert fetch_one(user, "SELECT answer, pg_backend_pid() FROM mine") == (42, pid)
    user.execute("COMMIT")
    assert fetch_one(connection, "SELECT pg_postmaster_start_time()") == started
    sessions = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'pgembed w%'
    """
    wait_until(lambda: fetch_one(connection, sessions) == (0,))
    embed_all(dsn)
    assert_converged(connection, model)
