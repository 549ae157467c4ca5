"""Batches posted by SQL: a process for each, watched by a thread.

The process yields to everything else that workers do; this thread renews the batch's
lease, passes its progress on, and ends it when it is cancelled or the worker stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import subprocess
import threading
import time
from typing import Any

import psycopg

from pgembed.batch import posted as batches
from pgembed.batch.posted import Hold, Posted, Progress
from pgembed.postgres.connection import Connection, backoff
from pgembed.settings import Settings
from pgembed.worker.leases import Identity
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link
from pgembed.worker.retries import Retries
from pgembed.worker.spawn import spawn

_log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""How often a batch is begun whose worker or connection dies."""
_SLICE = 0.1
_LONGEST_SILENCE = 2.0
_KILL_AFTER = 5.0


class Batches:
    """Carries out one batch after the other; run it in a thread."""

    def __init__(
        self, settings: Settings, identity: Identity, lifetime: Lifetime
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._lifetime = lifetime
        self._lease = datetime.timedelta(seconds=settings.lease_seconds)
        self._interval = min(settings.lease_seconds / 3, _LONGEST_SILENCE)
        self._link = Link(
            settings.dsn,
            "batches",
            lifetime,
            opened=lambda c: c.execute("LISTEN pgembed_batch"),
            finishing=True,
        )
        self._closed = threading.Event()
        self._retries = Retries(base=5, cap=300)

    @property
    def _stopping(self) -> bool:
        return self._closed.is_set() or self._lifetime.stopping

    def close(self) -> None:
        """Let run return; a batch that runs is handed back."""
        self._closed.set()

    def run(self, *, once: bool = False) -> None:
        """Carry out what is posted, until told to stop.

        With *once* until every batch has ended, those of other workers, too; then
        what the database refuses is raised.
        """
        try:
            while not self._stopping and not (once and self._is_done()):
                try:
                    self._next()
                except psycopg.Error as error:  # calls are answered nonetheless
                    if once:
                        raise
                    pause = self._retries.failed("batches")
                    _log.error("no batch is begun for %.0f s: %s", pause, error)
                    self._sleep(pause)
        except Stopped:
            pass
        finally:
            self._link.close()

    def _next(self) -> None:
        """Carry out a batch, or wait for one."""
        posted = self._claim()
        self._retries.succeeded("batches")
        if posted is None:
            self._wait()
        elif posted.state == "running":
            self._carry_out(posted)
        else:
            _log.info("batch %d is %s", posted.id, posted.state)

    def _is_done(self) -> bool:
        return not self._link.run(batches.is_any_open, beginning=True)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stopping:
            self._closed.wait(_SLICE)

    def _claim(self) -> Posted | None:
        worker = self._identity.id
        return self._link.run(
            lambda c: batches.claim(c, worker, self._lease, attempts=MOST_ATTEMPTS),
            beginning=True,
        )

    def _wait(self) -> None:
        until = time.monotonic() + self._settings.poll_seconds
        while time.monotonic() < until and not self._stopping:
            if self._link.run(_notified, beginning=True):
                return

    def _carry_out(self, posted: Posted) -> None:
        _log.info("batch %d: %s of %s", posted.id, posted.kind, posted.caller)
        process = _Process(posted, self._settings)
        hold: Hold = "held"
        due = time.monotonic() + self._interval
        try:
            while process.runs:
                told = self._link.run(_notified)
                if self._stopping or hold != "held":
                    process.stop()
                elif told or time.monotonic() >= due:
                    due = time.monotonic() + self._interval
                    hold = self._renew(posted, process.progress)
        finally:
            process.kill()
        self._settle(posted, process, hold)

    def _renew(self, posted: Posted, progress: Progress) -> Hold:
        return self._link.run(lambda c: batches.renew(c, posted, self._lease, progress))

    def _settle(self, posted: Posted, process: _Process, hold: Hold) -> None:
        """Record how a batch ended; its results are committed, or there are none."""
        outcome = process.outcome
        if outcome is not None and "rows" in outcome:
            _log.info("batch %d is done: %d rows", posted.id, outcome["rows"])
            return
        if hold == "lost":
            _log.warning("batch %d was lost to another worker", posted.id)
            return
        # Told to end, it may still have said that its statement was cancelled.
        silent = outcome is None and (self._stopping or hold == "cancel")
        if process.was_told_to_end or silent:
            self._end(posted, "waiting", None)
            return
        error = process.error
        again = outcome is None or outcome["transient"]
        if again and posted.attempts < MOST_ATTEMPTS:
            self._end(posted, "waiting", error, backoff(posted.attempts, base=0.5))
        else:
            self._end(posted, "failed", error)

    def _end(
        self, posted: Posted, state: Any, error: str | None, delay: float = 0.0
    ) -> None:
        ended = self._link.run(
            lambda c: batches.end(c, posted, state, error, delay=delay)
        )
        _log.info("batch %d is %s: %s", posted.id, ended or "lost", error)


class _Process:
    """The process of one batch, and what it has said."""

    def __init__(self, posted: Posted, settings: Settings) -> None:
        self.progress = Progress()
        self.outcome: dict[str, Any] | None = None
        """How it ended, in its own words; None when it was killed."""
        self._killed_at: float | None = None
        self._process = spawn("pgembed.worker.posted_batch", stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        message = {
            "dsn": settings.dsn,
            "cache_dir": str(settings.cache_dir),
            "batch_memory": settings.batch_memory,
            "log_format": settings.log_format,
            "posted": dataclasses.asdict(posted),
        }
        assert self._process.stdin is not None  # noqa: S101 - spawn makes a pipe
        with contextlib.suppress(BrokenPipeError):  # it died: noticed soon enough
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def was_told_to_end(self) -> bool:
        return self._killed_at is not None

    @property
    def error(self) -> str:
        if self.outcome is not None:
            return str(self.outcome["error"])
        return (
            f"its process ended with status {self._process.returncode}: "
            "the worker's log may say why"
        )

    def stop(self) -> None:
        """Tell it to end; kill it when it has not after some seconds."""
        if self._killed_at is None:
            self._killed_at = time.monotonic() + _KILL_AFTER
            self._close_input()
        elif time.monotonic() >= self._killed_at:
            self._process.kill()

    def kill(self) -> None:
        """Make sure that it has ended, and hear what it said."""
        if self.runs:
            self._process.kill()
        self._process.wait()
        self._close_input()
        self._reader.join()
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self._process.stdout.close()

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                _log.warning("a batch's process said %r", line)
                continue
            if "progress" in said:
                self.progress = Progress(**said["progress"])
            else:
                self.outcome = said


def _notified(connection: Connection) -> bool:
    return any(True for _ in connection.notifies(timeout=_SLICE, stop_after=1))
