"""Each step of the Dockerfiles, on a plain Debian root; the worker then runs there.

Takes minutes, root, and roots made by debootstrap: PGEMBED_TEST_ROOTS names the folder
that holds them, trixie and bookworm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pgembed.postgres.connection import connect, fetch_one
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.postgres.schema import install
from tests.harness.managed import free_port
from tests.integration.worker.running import add_good, assert_current, create_docs

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
ROOTS = Path(os.environ.get("PGEMBED_TEST_ROOTS", "/nonexistent"))
# Folders that pip is to find in the root as well, separated by colons.
BINDS = [b for b in os.environ.get("PGEMBED_TEST_BINDS", "").split(":") if b]

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not ROOTS.is_dir() or os.geteuid() != 0,
        reason="no Debian roots: debootstrap trixie and bookworm, as root, into a "
        "folder that PGEMBED_TEST_ROOTS names",
    ),
]
PYTHON = (
    "apt-get update -qq && apt-get install -qq --yes --no-install-recommends "
    "python3 python3-venv > /dev/null && ln -sf python3 /usr/bin/python"
)


def dry_run(dockerfile: str, suite: str, *arguments: str) -> str:
    done = subprocess.run(
        [
            *(sys.executable, str(DOCKER / "dry_run.py"), str(DOCKER / dockerfile)),
            *("--root", str(ROOTS / suite), *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("suite", "major", "pgvector"),
    [("bookworm", 15, "trixie's source package"), ("trixie", 17, "its own package")],
)
def test_the_server_image(suite: str, major: int, pgvector: str) -> None:
    """On bookworm pgvector is built from trixie's source, on trixie it is a package."""
    share = f"/usr/share/postgresql/{major}/extension"
    output = dry_run(
        *("postgres.Dockerfile", suite, "--env", f"PG_MAJOR={major}"),
        *("--then", f"/usr/lib/postgresql/{major}/bin/postgres --version"),
        *("--then", f"ls {share}/plpython3u.control {share}/vector.control"),
        *("--then", "stat --format=%a:%U:%G /run/pgembed"),
        *("--then", f"dpkg --status postgresql-{major}-pgvector || echo built here"),
    )
    assert f"postgres (PostgreSQL) {major}." in output
    assert f"{share}/vector.control" in output
    assert "2770:postgres:postgres" in output
    assert output.endswith("built here\n") == (suite == "bookworm")


def test_the_worker_image(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As its user, on a read-only root, it embeds rows and is healthy; TERM ends it."""
    data = tempfile.mkdtemp(prefix="pgembed-dry-run-server-")
    request.addfinalizer(lambda: shutil.rmtree(data))
    server = EmbeddedServer(data, listen="127.0.0.1", port=free_port())
    with server, connect(server.dsn(), purpose="test") as connection:
        install(connection)
        model = add_good(connection, tmp_path)
        create_docs(connection, "a cat", "the dog")
        work = (
            "id --user; pgembed --version; touch /opt/x || echo read-only; "
            "pgembed worker & for i in $(seq 120); do sleep 0.5; "
            "python /opt/pgembed/healthcheck.py && echo healthy && break; done "
            "2> /dev/null; pgembed embedding status docs_body; sleep 5; "
            "kill $!; wait $!; echo ended $?"
        )
        output = dry_run(
            *("worker.Dockerfile", "trixie", "--context", str(ROOT)),
            *(word for bind in BINDS for word in ("--bind", bind)),
            *("--before", PYTHON, "--env", f"PGEMBED_DSN={server.dsn()}"),
            *("--then", work),
        )
        for expected in ("\n10001\n", "read-only\n", "healthy\n", "ended 0\n"):
            assert expected in output
        assert_current(connection, model)
        assert fetch_one(connection, "SELECT count(*) FROM pgembed.workers") == (0,)
