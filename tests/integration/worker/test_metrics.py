"""What a worker tells those who operate it: metrics, and log lines for machines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgembed.cli.local import running_worker
from pgembed.errors import WorkerError
from pgembed.postgres.connection import fetch_all, fetch_one
from pgembed.worker import child
from pgembed.worker.exposition import Process, serving
from pgembed.worker.supervisor import run_worker
from tests.harness import tiny_models
from tests.integration.worker.running import (
    Connection,
    add_good,
    add_tiny,
    child_process,
    create_docs,
    insert,
    is_drained,
    settings_for,
    wait_until,
)

HEALTH_CHECK = Path(__file__).parents[3] / "docker" / "healthcheck.py"
Samples = dict[tuple[str, str], float]


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def worker(dsn: str, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``pgembed worker`` as a person does; its log goes to a file."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgembed", "worker", *arguments],
            env={**os.environ, "PGEMBED_DSN": dsn, "PGEMBED_POLL_SECONDS": "0.2"},
            stderr=file,
        )
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0


def scrape(port: int) -> Samples:
    """Return the samples by name, and by what they are about."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        (sample.name, about(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def about(labels: dict[str, str]) -> str:
    """Return the embedding, model or role of a sample."""
    return next((labels[n] for n in ("embedding", "model", "role") if n in labels), "")


def test_metrics_and_log(
    dsn: str, connection: Connection, tmp_path: Path, port: int
) -> None:
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog")
    log = tmp_path / "log"
    arguments = ("--metrics-port", str(port), "--log-format", "json")
    with worker(dsn, log, *arguments):
        wait_until(lambda: is_drained(connection))
        connection.execute("SET pgembed.call_timeout = '60s'")
        connection.execute("SELECT pgembed.embed_query('tiny', 'a man')")
        found = wait_until(
            lambda: (
                (samples := scrape(port)).get(("pgembed_call_seconds_count", "tiny"))
                and samples
            )
        )
        query = "SELECT pid FROM pgembed.workers WHERE role = 'embed'"
        (first,) = fetch_one(connection, query)
        os.kill(first, signal.SIGKILL)
        insert(connection, "a man", first=3)
        wait_until(lambda: set(fetch_all(connection, query)) - {(first,)})
        wait_until(lambda: is_drained(connection))
        later = scrape(port)
    assert found["pgembed_rows_total", "docs_body"] == 2
    assert found["pgembed_tokens_total", "docs_body"] >= 4
    assert found["pgembed_model_seconds_total", "tiny"] > 0
    assert found["pgembed_queue_rows", "docs_body"] == 0
    assert found["pgembed_failed_rows", "docs_body"] == 0
    assert found["pgembed_database_up", ""] == 1
    for role in ("embed", "calls"):
        assert found["pgembed_process_resident_memory_bytes", role] > 1_000_000
    assert later["pgembed_rows_total", "docs_body"] == 3
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["level"] for line in lines} <= {"INFO", "WARNING"}
    assert any(line["message"].startswith("docs_body: 2 rows") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dsn", "host=/nonexistent"), "cannot connect to database"),
        (("--claim-rows", "0"), "claim_rows is 0, but must be from 1"),
    ],
)
def test_errors_at_the_start_are_log_lines_too(
    arguments: tuple[str, ...], message: str
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pgembed", "worker"),
            *("--log-format", "json", *arguments),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    line = json.loads(done.stderr)
    assert line["level"] == "ERROR"
    assert line["message"].startswith(message)


def test_what_ends_a_process_is_a_log_line_too() -> None:
    code = """
import sys
from pgembed.worker import child

def fail(*_):
    raise RuntimeError("nobody expects this")

child._work = fail
sys.exit(child.main("calls", "INFO"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=child.dump(settings_for("", log_format="json")),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    [failure] = [line for line in lines if line["level"] == "ERROR"]
    assert failure["message"] == "the calls process failed"
    assert "nobody expects this" in failure["exc_info"]


def test_plain_log_lines_cannot_be_forged() -> None:
    """Owners choose the names that administrators read in the log."""
    code = r"""
import logging
from pgembed import logs

logs.configure()
logging.error("embedding %s is blocked", "a\n2026 INFO all is well\x1b[2J")
try:
    raise ValueError("b\n2026 INFO all is well\x9b2J")
except ValueError:
    logging.exception("it failed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert lines[0].endswith(r"embedding a\n2026 INFO all is well\x1b[2J is blocked")
    assert lines[1].endswith("it failed")
    assert lines[2] == "  Traceback (most recent call last):"
    assert lines[-1] == r"  2026 INFO all is well\x9b2J"


def test_a_database_that_hangs_is_not_the_worker_s_fault(port: int) -> None:
    """The health check of the container asks for what the worker knows by itself."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        dsn = f"postgresql://127.0.0.1:{deaf.getsockname()[1]}/app"
        settings = settings_for(dsn, metrics_port=port)
        processes = [Process(role, os.getpid()) for role in ("embed", "calls")]
        with serving(settings, lambda: processes):
            done = subprocess.run(
                [sys.executable, HEALTH_CHECK],
                env={**os.environ, "PGEMBED_METRICS_PORT": str(port)},
                timeout=30,
                check=False,
            )
    assert done.returncode == 0


def test_failures_are_counted(
    dsn: str, connection: Connection, tmp_path: Path, port: int
) -> None:
    add_tiny(connection, tiny_models.raising_model(tmp_path / "raising"))
    create_docs(connection, "a cat", "poison")
    log = tmp_path / "log"
    with worker(dsn, log, "--metrics-port", str(port), "--max-attempts", "1"):
        query = "SELECT count(*) FROM pgembed.failures"
        wait_until(lambda: fetch_one(connection, query)[0] == 1)
        found = scrape(port)
    assert found["pgembed_failures_total", "docs_body"] == 1
    assert found["pgembed_failed_rows", "docs_body"] == 1


def test_a_port_in_use_is_an_error(dsn: str, connection: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(WorkerError, match=f"127.0.0.1:{port}.*--metrics-port"):
            run_worker(settings_for(dsn, metrics_port=port))


@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_metrics_of_other_applications_are_left_to_them(
    dsn: str,
    connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: Callable[[str], str],
) -> None:
    monkeypatch.setenv(case("PROMETHEUS_MULTIPROC_DIR"), str(tmp_path / "not there"))
    add_good(connection, tmp_path)
    create_docs(connection, "a cat")
    with child_process("once", dsn) as process:
        assert process.wait(60) == 0
    assert is_drained(connection)


def test_nobody_waits_for_a_worker_that_cannot_start(
    dsn: str, connection: Connection
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = settings_for(dsn, metrics_port=listener.getsockname()[1])
        with (
            pytest.raises(WorkerError, match="metrics cannot be served"),
            running_worker(settings),
        ):
            pytest.fail("the demo goes on")
