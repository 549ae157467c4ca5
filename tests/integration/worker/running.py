"""Workers in threads and processes, and waiting for what they do."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from pgembed.models import registry
from pgembed.models.session import Model
from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.settings import Settings
from pgembed.worker import child
from pgembed.worker.callprocess import serve_calls
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.loop import EmbeddingLoop
from pgembed.worker.spawn import spawn
from tests.harness import tiny_models

Connection = psycopg.Connection[Any]
DEADLINE = 60.0


def wait_until(condition: Callable[[], Any], timeout: float = DEADLINE) -> Any:
    """Return the first true value of *condition*; fail after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout} s in vain"
        time.sleep(0.01)
    return value


def settings_for(dsn: str, **values: Any) -> Settings:
    """Return settings of a small and prompt worker."""
    return Settings(
        **{
            "dsn": dsn,
            "threads": 1,
            "poll_seconds": 0.2,
            "drain_seconds": 10.0,
            "cache_dir": Path("/dev/null/no-cache"),
            **values,
        }
    )


def add_tiny(
    connection: Connection, folder: Path, name: str = "tiny", **options: Any
) -> Model:
    """Add the model of a folder, and return it loaded."""
    registry.add_model(connection, name, str(folder), options)
    return registry.load(connection, name, threads=1)


def add_good(connection: Connection, tmp_path: Path) -> Model:
    """Add a model that embeds everything, named tiny, and return it loaded."""
    return add_tiny(connection, tiny_models.good_model(tmp_path / "tiny"))


def create_docs(connection: Connection, *bodies: str | None, **options: Any) -> str:
    """Create table docs with these rows and an embedding of them; return its name."""
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, extra int)")
    insert(connection, *bodies)
    return declare(connection, "docs", **options)


def declare(
    connection: Connection, table: str, *, model: str = "tiny", **options: Any
) -> str:
    """Declare an embedding of column body, without an index unless one is named."""
    given = {"index": "none", **options}
    extra = "".join(f", {name} => %s" for name in given)
    row = connection.execute(
        f"SELECT pgembed.create_embedding('{table}', 'body', %s{extra})".encode(),
        [model, *given.values()],
    ).fetchone()
    assert row is not None
    return str(row[0])


def insert(connection: Connection, *bodies: str | None, first: int = 1) -> None:
    """Insert rows into docs, numbered from *first*."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO docs (id, body) VALUES (%s, %s)",
            list(enumerate(bodies, first)),
        )


def embed_all(dsn: str, **values: Any) -> None:
    """Work off everything, in this process."""
    settings = settings_for(dsn, **values)
    EmbeddingLoop(settings, Lifetime(settings.drain_seconds), once=True).run()


@contextlib.contextmanager
def in_thread(run: Callable[[], None], lifetime: Lifetime) -> Iterator[None]:
    """Run a part of a worker beside the block; what it raises is raised after it."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        lifetime.stop()
        thread.join(DEADLINE)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def embedding(dsn: str, **values: Any) -> Iterator[None]:
    """Embed in a thread during the block."""
    settings = settings_for(dsn, **values)
    lifetime = Lifetime(settings.drain_seconds)
    with in_thread(EmbeddingLoop(settings, lifetime).run, lifetime):
        yield


@contextlib.contextmanager
def answering(dsn: str, **values: Any) -> Iterator[None]:
    """Answer calls in a thread during the block."""
    settings = settings_for(dsn, **values)
    lifetime = Lifetime(settings.drain_seconds)
    with in_thread(lambda: serve_calls(settings, lifetime), lifetime):
        yield


@contextlib.contextmanager
def child_process(
    role: str, dsn: str, **values: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child of the supervisor; it is killed at the end if it still runs."""
    process = spawn("pgembed.worker.child", role, "INFO")
    assert process.stdin is not None
    process.stdin.write(child.dump(settings_for(dsn, **values)))
    process.stdin.flush()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def vectors(connection: Connection, table: str = "docs") -> dict[int, Any]:
    """Return id → vector or None."""
    query = f"SELECT id, body_embedding FROM {table} ORDER BY id"
    return dict(fetch_all(connection, query))


def assert_current(connection: Connection, model: Model, table: str = "docs") -> None:
    """Recompute every row's vector and compare."""
    query = f"SELECT body, body_embedding FROM {table} ORDER BY id"
    rows = fetch_all(connection, query)
    for body, vector in rows:
        assert (vector is None) == (body is None or not body.strip()), body
    full = [(body, vector) for body, vector in rows if vector is not None]
    wanted = model.embed([body for body, _ in full])
    given = np.array([vector for _, vector in full]).reshape(wanted.shape)
    np.testing.assert_allclose(given, wanted, atol=1e-4)


def status(connection: Connection, name: str = "docs_body") -> dict[str, Any]:
    """Return an embedding's row of the status."""
    cursor = connection.execute(
        "SELECT * FROM pgembed.embedding_status WHERE name = %s", [name]
    )
    assert cursor.description is not None
    row = cursor.fetchone()
    assert row is not None
    return dict(zip((column.name for column in cursor.description), row, strict=True))


def is_drained(connection: Connection, name: str = "docs_body") -> bool:
    """Whether nothing waits to be embedded."""
    return bool(status(connection, name)["pending"] == 0)


def leased(connection: Connection, embedding: int = 1) -> int:
    """Return how many rows are held under leases."""
    query = f"""
        SELECT count(*) FROM pgembed.job_{embedding} WHERE pgembed_lease IS NOT NULL
    """
    return int(fetch_one(connection, query)[0])
