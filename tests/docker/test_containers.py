"""The images, built and run by a container engine, where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from testcontainers.compose import DockerCompose

from pgembed.models import registry
from pgembed.postgres.connection import Connection, connect, fetch_one
from tests.harness import tiny_models
from tests.integration.worker.running import is_drained, wait_until

DOCKER = Path(__file__).parents[2] / "docker"
PASSWORDS = {f"{name}_PASSWORD": "secret" for name in ("POSTGRES", "APP", "WORKER")}


def engine_is_there() -> bool:
    """Whether a container engine answers, that knows compose."""
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "info"], ["docker", "compose", "version"])
    return all(subprocess.run(c, capture_output=True).returncode == 0 for c in commands)


pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not engine_is_there(), reason="no container engine answers here"
    ),
]


@pytest.fixture(scope="module")
def services() -> Iterator[DockerCompose]:
    """Build and start what compose.yaml says; take it down with its volumes."""
    os.environ.update(PASSWORDS)
    compose = DockerCompose(DOCKER, "compose.yaml", build=True)
    try:
        with compose:
            yield compose
    finally:
        for name in PASSWORDS:
            del os.environ[name]


@pytest.fixture
def app(services: DockerCompose, tmp_path: Path) -> Iterator[Connection]:
    """Return the application's session, with a model."""
    admin = "host=127.0.0.1 dbname=app user=postgres password=secret"
    with connect(admin, purpose="test") as superuser:
        folder = tiny_models.good_model(tmp_path / "tiny")
        registry.add_model(superuser, "tiny", str(folder), {})
    dsn = "host=127.0.0.1 dbname=app user=app password=secret"
    with connect(dsn, purpose="test") as connection:
        yield connection


def test_rows_calls_and_index(services: DockerCompose, app: Connection) -> None:
    """By the socket that both containers mount, with a worker that owns nothing."""
    app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    app.execute("INSERT INTO docs VALUES (1, 'a cat'), (2, 'the dog')")
    app.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    wait_until(lambda: is_drained(app), timeout=120)
    query = "SELECT (item).id FROM pgembed.search(NULL::docs, 'the dog', k => 1)"
    assert fetch_one(app, query) == (2,)
    ready = "SELECT index_state FROM pgembed.embedding_status"
    wait_until(lambda: fetch_one(app, ready) == ("ready",), timeout=120)


def test_the_worker_is_healthy_and_not_root(services: DockerCompose) -> None:
    container = services.get_container("worker")
    wait_until(
        lambda: services.get_container("worker").Health == "healthy", timeout=120
    )
    output, _, _ = services.exec_in_container(["id", "--user"], "worker")
    assert output.strip() == "10001"
    _, _, failed = services.exec_in_container(
        ["sh", "-c", "! touch /opt/written"], "worker"
    )
    assert failed == 0
    assert container.State == "running"
