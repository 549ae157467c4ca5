"""Threads of a worker process: when one fails, the process ends and is started anew."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pgembed.errors import PgembedError, WorkerError
from pgembed.worker.lifetime import Lifetime, Stopped

_log = logging.getLogger(__name__)


class Threads:
    """Starts threads and remembers the first error that ended one."""

    def __init__(self, lifetime: Lifetime) -> None:
        self._lifetime = lifetime
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None

    def start(self, name: str, action: Callable[[], None]) -> threading.Thread:
        """Run *action* in a thread; when it raises, the worker stops at once."""
        thread = threading.Thread(
            target=self._guarded, args=(action,), name=name, daemon=True
        )
        self._threads.append(thread)
        thread.start()
        return thread

    def check(self) -> None:
        """Raise WorkerError if a thread has failed."""
        if self._error is None:
            return
        if isinstance(self._error, PgembedError):
            raise self._error
        raise WorkerError(
            f"a worker's thread ended with {type(self._error).__name__}: {self._error}"
        ) from self._error

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Stopped:
            pass
        except BaseException as error:
            _log.exception("thread %s failed", threading.current_thread().name)
            self._error = self._error or error
            self._lifetime.stop(at_once=True)
