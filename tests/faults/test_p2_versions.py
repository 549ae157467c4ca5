"""P2: a worker of another version than the schema's stops, and leaves nothing undone.

The other version is a copy of the sources: another protocol, other functions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.worker.crash_points import Point
from tests.faults.mutations import copy_of_project
from tests.faults.protections import Edit
from tests.harness.oracle import assert_converged
from tests.harness.processes import worker_process
from tests.integration.worker.running import (
    Connection,
    add_good,
    create_docs,
    is_drained,
    leased,
    wait_until,
)

TEXTS = ("a cat", "the dog", None, "a man eats food")
NEWER = (
    Edit("pgembed/__init__.py", '__version__ = "', '__version__ = "9.'),
    Edit("pgembed/embeddings/workers.py", "PROTOCOL = 1\n", "PROTOCOL = 2\n"),
    Edit("pgembed/embeddings/queue.py", "pgembed._claim(", "pgembed._claim_more("),
    Edit("sql/41_claim.sql", "FUNCTION pgembed._claim(\n", "FUNCTION _NEW(\n"),
    Edit("sql/41_claim.sql", "ON FUNCTION pgembed._claim(", "ON FUNCTION _NEW("),
)


@pytest.fixture(scope="module")
def newer() -> Iterator[Path]:
    """Return the sources of a version that does not work with the workers of this."""
    with copy_of_project() as root:
        for edit in NEWER:
            edit.apply(root)
        claim = root / "sql" / "41_claim.sql"
        text = claim.read_text(encoding="utf-8")
        claim.write_text(text.replace("_NEW(", "pgembed._claim_more("))
        workers = root / "sql" / "50_workers.sql"
        text = workers.read_text(encoding="utf-8")
        workers.write_text(text.replace("constant integer := 1", "integer := 2"))
        yield root


def pgembed(root: Path, dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of the sources below *root*."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "pgembed", *arguments, "--dsn", dsn],
        env=environ(root),
        capture_output=True,
        text=True,
        check=False,
    )


def environ(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root)}


def upgrade(root: Path, dsn: str) -> None:
    done = pgembed(root, dsn, "install")
    assert done.returncode == 0, done.stderr


def blocked(connection: Connection) -> list[str]:
    query = "SELECT blocked FROM pgembed.embedding WHERE blocked IS NOT NULL"
    return [reason for (reason,) in fetch_all(connection, query)]


@pytest.mark.parametrize("point", ["claimed", "embedded", "before_commit"])
def test_an_old_worker_on_a_new_schema(
    point: Point, dsn: str, connection: Connection, newer: Path, tmp_path: Path
) -> None:
    """It ends what it holds or hands it back, claims no more, and says why it stops."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    with worker_process(dsn, tmp_path, stop_at=point, claim_rows=2) as old:
        old.wait_stopped()
        upgrade(newer, dsn)
        old.go_on()
        assert old.finish() == 1
        assert "pip install --upgrade pgembed-vector" in old.log()
    assert leased(connection) == 0
    assert blocked(connection) == []
    burned = "SELECT max(pgembed_attempts) FROM pgembed.job_1"
    assert fetch_one(connection, burned) == (0,)
    with worker_process(dsn, tmp_path, environ=environ(newer)):
        wait_until(lambda: is_drained(connection))
    assert_converged(connection, model)


def test_an_old_worker_that_waits(
    dsn: str, connection: Connection, newer: Path, tmp_path: Path
) -> None:
    """Its next sign of life tells, also when there is nothing to do."""
    add_good(connection, tmp_path)
    create_docs(connection)
    idle = "SELECT count(*) FROM pgembed.worker WHERE idle"
    with worker_process(dsn, tmp_path, lease_seconds=1.0) as old:
        wait_until(lambda: fetch_one(connection, idle) == (1,))
        upgrade(newer, dsn)
        assert old.finish() == 1
        assert "not 1. Upgrade the worker" in old.log()
    assert fetch_one(connection, "SELECT count(*) FROM pgembed.worker") == (0,)


def test_an_old_worker_that_is_still_accepted(
    dsn: str, connection: Connection, newer: Path, tmp_path: Path
) -> None:
    """A schema may work with two protocols: then workers are replaced at leisure."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    accept = (newer / "sql" / "50_workers.sql").read_text(encoding="utf-8")
    accept = accept[: accept.index("COMMENT ON")]
    with worker_process(dsn, tmp_path, stop_at="embedded", claim_rows=2) as old:
        old.wait_stopped()
        connection.execute(
            accept.replace("oldest integer := 2", "oldest integer := 1").encode()
        )
        old.go_on()
        wait_until(lambda: is_drained(connection))
        assert old.terminate() == 0
    assert_converged(connection, model)


@pytest.mark.parametrize("role", ["embed", "calls"])
def test_a_new_worker_on_an_old_schema(
    role: str, dsn: str, connection: Connection, newer: Path, tmp_path: Path
) -> None:
    """It takes nothing and names the remedy; after the upgrade it works."""
    model = add_good(connection, tmp_path)
    create_docs(connection, *TEXTS)
    refused = pgembed(newer, dsn, "worker")
    assert refused.returncode != 0
    assert "pgembed install" in refused.stderr
    with worker_process(dsn, tmp_path, role=role, environ=environ(newer)) as new:
        assert new.finish() == 1
        assert "not 2. Upgrade the schema: pgembed install" in new.log()
    assert leased(connection) == 0
    assert blocked(connection) == []
    upgrade(newer, dsn)
    with worker_process(dsn, tmp_path, environ=environ(newer)):
        wait_until(lambda: is_drained(connection))
    assert_converged(connection, model)


def test_a_worker_on_a_schema_from_before_there_were_protocols(
    dsn: str, connection: Connection, tmp_path: Path
) -> None:
    connection.execute("DROP FUNCTION pgembed._accept_protocol")
    with worker_process(dsn, tmp_path) as worker:
        assert worker.finish() == 1
        assert "older than this worker" in worker.log()
