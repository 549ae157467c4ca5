"""The worker's metrics over HTTP, where Prometheus fetches them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psycopg
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pgembed.errors import ConnectError, WorkerError
from pgembed.postgres.connection import connect, fetch_all
from pgembed.settings import Settings

_log = logging.getLogger(__name__)

_STATEMENT_TIMEOUT = "5s"


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of the worker that runs."""

    role: str
    pid: int


@contextlib.contextmanager
def serving(
    settings: Settings, processes: Callable[[], Iterable[Process]]
) -> Iterator[dict[str, str]]:
    """Serve metrics during the block, if settings.metrics_port is not 0.

    Yields the environment that the processes need for their part. Raises WorkerError
    when the port cannot be had.
    """
    if not settings.metrics_port:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="pgembed-metrics-") as folder:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        registry.register(QueueCollector(settings.dsn))
        registry.register(MemoryCollector(processes))
        with _server(settings, registry):
            yield {"PROMETHEUS_MULTIPROC_DIR": folder}


@contextlib.contextmanager
def _server(settings: Settings, registry: CollectorRegistry) -> Iterator[None]:
    address, port = settings.metrics_address, settings.metrics_port
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise WorkerError(
            f"metrics cannot be served on {address}:{port}: {error.strerror or error}; "
            "choose another --metrics-port or --metrics-address"
        ) from error
    _log.info("metrics are at http://%s:%d/metrics", address, port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_UP = "pgembed_database_up", "Whether the database answers."
_QUEUE = (
    ("pgembed_queue_rows", "Rows that wait for their vector."),
    ("pgembed_failed_rows", "Rows in pgembed.failures."),
    ("pgembed_queue_age_seconds", "How long the oldest row has waited."),
)
_MEMORY = (
    "pgembed_process_resident_memory_bytes",
    "Resident memory of a worker's process, its models included.",
)


class QueueCollector(Collector):
    """What the database knows, of all workers' work; asked at every scrape."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def describe(self) -> Iterator[Metric]:
        """Return the names: a scrape of others does not wait for the database."""
        for name, help_text in (_UP, *_QUEUE):
            yield GaugeMetricFamily(name, help_text)

    def collect(self) -> Iterator[Metric]:
        """Return the gauges; of an unreachable database only that it is so."""
        try:
            rows = self._rows()
        except (psycopg.Error, ConnectError) as error:
            _log.warning("metrics without the queue: %s", str(error).splitlines()[0])
            yield GaugeMetricFamily(*_UP, 0)
            return
        yield GaugeMetricFamily(*_UP, 1)
        for position, (name, help_text) in enumerate(_QUEUE, 1):
            family = GaugeMetricFamily(name, help_text, labels=["embedding"])
            for row in rows:
                family.add_metric([row[0]], float(row[position]))
            yield family

    def _rows(self) -> list[tuple[str, int, int, float]]:
        # Not in the session, which behind a pooler others use next.
        with (
            connect(self._dsn, purpose="metrics") as connection,
            connection.transaction(),
        ):
            connection.execute(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")
            return [
                (str(name), int(pending), int(failed), float(age))
                for name, pending, failed, age in fetch_all(
                    connection,
                    "SELECT name, pending, failed, age FROM pgembed._queue_depths()",
                )
            ]


class MemoryCollector(Collector):
    """The resident memory of the worker's processes: most of it is their models."""

    def __init__(self, processes: Callable[[], Iterable[Process]]) -> None:
        self._processes = processes

    def describe(self) -> Iterator[Metric]:
        """Return the name, by which it can be asked for alone."""
        yield GaugeMetricFamily(*_MEMORY)

    def collect(self) -> Iterator[Metric]:
        """Return the gauge; where there is no /proc it has no values."""
        family = GaugeMetricFamily(*_MEMORY, labels=["role", "pid"])
        page = os.sysconf("SC_PAGE_SIZE")
        for process in self._processes():
            with contextlib.suppress(OSError):  # it has just ended
                pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
                family.add_metric([process.role, str(process.pid)], int(pages) * page)
        yield family
