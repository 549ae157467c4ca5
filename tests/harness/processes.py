"""Worker processes that stop where a test wants them to, and go on or die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pgembed.worker import child
from pgembed.worker.crash_points import Point
from tests.integration.worker.running import settings_for

_DEADLINE = 60.0


class WorkerProcess:
    """A process as the supervisor starts it; the test is the supervisor."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def wait_stopped(self) -> None:
        """Wait until it has got to the point it was told to stop at."""
        status = self._wait(os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"ended early: {status}\n{self.log()}"

    def halt(self) -> None:
        """Stop it wherever it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def finish(self) -> int:
        """Wait until it ends by itself; return the exit status."""
        return self.process.wait(_DEADLINE)

    def terminate(self) -> int:
        """Send SIGTERM and wait; return the exit status."""
        self.process.terminate()
        return self.finish()

    def log(self) -> str:
        """Return what it logged so far."""
        return self._log.read_text(encoding="utf-8")

    def _wait(self, options: int) -> int:
        deadline = time.monotonic() + _DEADLINE
        while time.monotonic() < deadline:
            # Popen would take a stop for an end; it sees the end by itself later.
            pid, status = os.waitpid(self.pid, os.WNOHANG | options)
            if pid:
                return status
            time.sleep(0.01)
        raise AssertionError(f"it did not stop within {_DEADLINE} s:\n{self.log()}")


@contextlib.contextmanager
def worker_process(
    dsn: str,
    folder: Path,
    *,
    role: str = "embed",
    stop_at: Point | None = None,
    environ: Mapping[str, str] | None = None,
    **values: object,
) -> Iterator[WorkerProcess]:
    """Run an embedding process during the block; it is killed at the end.

    *values* are settings, *environ* is added to the environment, and its log goes to a
    file in *folder*.
    """
    log = folder / f"worker-{time.monotonic_ns()}.log"
    added = {"PGEMBED_STOP_AT": stop_at or "", **(environ or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pgembed.worker.child", role, "INFO"],
            stdin=subprocess.PIPE,
            stderr=output,
            env={**os.environ, **added},
        )
    assert process.stdin is not None
    try:
        process.stdin.write(child.dump(settings_for(dsn, **values)))
        process.stdin.flush()
        yield WorkerProcess(process, log)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
