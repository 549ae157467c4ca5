"""Starts the worker's processes, replaces those that die, and stops them together."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from pgembed.batch import posted
from pgembed.embeddings import workers
from pgembed.errors import WorkerError
from pgembed.postgres.connection import (
    Connection,
    backoff,
    connect,
    fetch_all,
    fetch_one,
    require_primary,
)
from pgembed.postgres.versions import difference
from pgembed.settings import Settings
from pgembed.worker import child, exposition
from pgembed.worker.exposition import Process
from pgembed.worker.spawn import spawn

_log = logging.getLogger(__name__)

_ENDING = ("once", "batches")  # roles whose work is done some time
_POLL_SECONDS = 0.1
_HEALTHY_SECONDS = 60.0  # after so long, a death counts as the first again
_LONGEST_PAUSE = 60.0
_KILL_AFTER = 10.0  # seconds beyond drain_seconds


def run_worker(
    settings: Settings,
    *,
    once: bool = False,
    stop: threading.Event | None = None,
    started: threading.Event | None = None,
    quiet: bool = False,
) -> None:
    """Embed rows and answer calls until SIGTERM, SIGINT or *stop*.

    With *once*: embed all rows that wait or come due, build indexes, carry out all
    batches that are posted, and return when neither is left.
    *started* is set once nothing keeps the worker from starting.
    The processes log to standard error; with *quiet* only what goes wrong.
    Raises ConnectError or WorkerError when the worker cannot start, and WorkerError
    when a *once* process fails again and again, had to leave an embedding alone, or
    was told to stop before all was done.
    """
    check(settings)
    supervisor = Supervisor(settings, quiet=quiet)
    stop = stop or threading.Event()
    with (
        exposition.serving(settings, supervisor.processes) as environment,
        _signals(supervisor.stop),
    ):
        if started is not None:
            started.set()
        if once:
            _work_off(settings, supervisor, stop, environment)
        else:
            roles = ["embed"] * settings.processes
            supervisor.run([*roles, "calls"], stop, environment)


def _work_off(
    settings: Settings,
    supervisor: Supervisor,
    stop: threading.Event,
    environment: Mapping[str, str],
) -> None:
    """Embed first: batches are to find the rows. They may leave more to embed."""
    while True:
        supervisor.run(["once"] * settings.processes, stop, environment)
        if supervisor.stopping:
            raise WorkerError(
                "told to stop before all was done: rows or posted batches may still "
                "wait; run it again"
            )
        with connect(settings.dsn, purpose="check") as connection:
            if not posted.is_any_open(connection):
                _check_nothing_is_left(connection)
                return
        supervisor.run(["batches"], stop, environment)


def _check_nothing_is_left(connection: Connection) -> None:
    query = """
        SELECT name, blocked FROM pgembed.embedding
        WHERE kind = 'kept' AND blocked IS NOT NULL AND NOT paused ORDER BY name
    """
    left = [f"{name!r} ({reason})" for name, reason in fetch_all(connection, query)]
    if left:
        raise WorkerError(
            f"rows of these embeddings were left, because no worker can go on with "
            f"them: {', '.join(left)}; mend that, and run it again"
        )


def check(settings: Settings) -> None:
    """Raise ConnectError or WorkerError unless a worker can start: on no standby.

    It starts on the schema of another version, too, and says so in the log.
    """
    with connect(settings.dsn, purpose="check") as connection:
        require_primary(connection)
        row = fetch_one(
            connection, "SELECT pg_catalog.to_regprocedure('pgembed._work()')"
        )
        if row[0] is None:
            raise WorkerError(
                "the database has no pgembed, or this role may not use it: "
                "run 'pgembed install' with the same DSN"
            )
        workers.require_protocol(connection)
        differs = difference(connection)
    if differs is not None:
        _log.warning("%s", differs)


@dataclasses.dataclass
class _Child:
    """A place in the worker, and the process that fills it."""

    role: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    due: float = 0.0
    done: bool = False


class Supervisor:
    """Keeps one process per role running."""

    def __init__(self, settings: Settings, *, quiet: bool = False) -> None:
        self._settings = settings
        self._log_level = "WARNING" if quiet else "INFO"
        self._children: list[_Child] = []
        self._environment: Mapping[str, str] = {}
        self._told_to_stop = 0
        self._deadline: float | None = None

    def stop(self) -> None:
        """Let the children drain; a second time: kill them.

        It is the loop of *run* that does so: a signal may come at any moment, also
        between the start of a child and its being known.
        """
        self._told_to_stop += 1

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._told_to_stop > 0

    def processes(self) -> list[Process]:
        """Return what runs now."""
        running = [(each.role, each.process) for each in self._children]
        return [
            Process(role, process.pid)
            for role, process in running
            if process is not None and process.poll() is None
        ]

    def run(
        self, roles: list[str], stop: threading.Event, environment: Mapping[str, str]
    ) -> None:
        """Start a child for each role and watch them until all have ended.

        *environment* is added to theirs.
        """
        self._children = [_Child(role) for role in roles]
        self._environment = environment
        try:
            while not self._is_over():
                if stop.is_set() and not self.stopping:
                    self.stop()
                self._heed_stop()
                for each in self._children:
                    self._tend(each)
                self._kill_late()
                time.sleep(_POLL_SECONDS)
        finally:
            for process in self._running():
                process.kill()
            for each in self._children:
                _reap(each)

    def _heed_stop(self) -> None:
        if self.stopping and self._deadline is None:
            patience = self._settings.drain_seconds + _KILL_AFTER
            self._deadline = time.monotonic() + patience
            for process in self._running():
                process.terminate()
        elif self._told_to_stop > 1:
            self._deadline = 0.0

    def _is_over(self) -> bool:
        if self._deadline is not None:
            return not any(True for _ in self._running())
        return all(each.done for each in self._children)

    def _running(self) -> Iterator[subprocess.Popen[bytes]]:
        for each in self._children:
            if each.process is not None and each.process.poll() is None:
                yield each.process

    def _tend(self, each: _Child) -> None:
        if each.process is not None and each.process.poll() is not None:
            self._bury(each)
        waits = each.process is None and not each.done and self._deadline is None
        if waits and time.monotonic() >= each.due:
            each.process = _spawn(
                each.role, self._settings, self._log_level, self._environment
            )
            each.started = time.monotonic()

    def _bury(self, each: _Child) -> None:
        status = _reap(each)
        if self._deadline is not None:
            return
        if each.role in _ENDING and status == 0:
            each.done = True
            return
        if time.monotonic() - each.started > _HEALTHY_SECONDS:
            each.deaths = 0
        each.deaths += 1
        if each.role in _ENDING and each.deaths > self._settings.max_attempts:
            raise WorkerError(
                f"the worker's process ended {each.deaths} times ({_ending(status)}): "
                "its log above says why"
            )
        pause = 0.0 if each.deaths == 1 else backoff(each.deaths, cap=_LONGEST_PAUSE)
        each.due = time.monotonic() + pause
        _log.warning(
            "the %s process ended (%s); starting it again in %.1f s",
            each.role,
            _ending(status),
            pause,
        )

    def _kill_late(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        for process in self._running():
            _log.warning("process %d did not stop in time: killed", process.pid)
            process.kill()
            process.wait()


def _spawn(
    role: str, settings: Settings, log_level: str, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    process = spawn("pgembed.worker.child", role, log_level, environment=environment)
    assert process.stdin is not None  # noqa: S101 - asked for above
    with contextlib.suppress(BrokenPipeError):  # it died: noticed soon enough
        process.stdin.write(child.dump(settings))
        process.stdin.flush()
    return process


def _reap(each: _Child) -> int:
    process, each.process = each.process, None
    if process is None:
        return 0
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return process.wait()


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* on SIGTERM and SIGINT; outside the main thread do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop()

    before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
