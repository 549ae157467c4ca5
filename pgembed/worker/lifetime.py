"""When a worker process stops taking work, and when it gives up what it holds."""

from __future__ import annotations

import queue
import threading
import time
from typing import TypeVar

T = TypeVar("T")

_GRACE_SECONDS = 3.0
_SLICE = 0.5


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The worker was told to stop."""


class Lifetime:
    """Shared by the threads of a worker process.

    After *stop* nothing new is begun, and what was begun may be ended within
    *drain_seconds*; then it is given up.
    """

    def __init__(self, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._stopping = threading.Event()
        self._deadline = float("inf")

    def stop(self, *, at_once: bool = False) -> None:
        """Take no new work; *at_once*: give up what is held, too."""
        deadline = time.monotonic() + (0 if at_once else self._drain_seconds)
        self._deadline = min(self._deadline, deadline)
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether no new work is to be taken."""
        return self._stopping.is_set()

    @property
    def over(self) -> bool:
        """Whether the time to end what was begun is over, too."""
        return time.monotonic() >= self._deadline

    @property
    def dead(self) -> bool:
        """Whether even handing back what is held took too long."""
        return time.monotonic() >= self._deadline + _GRACE_SECONDS

    def remaining(self) -> float:
        """Return the seconds left to end what was begun; infinity unless stopping."""
        return max(self._deadline - time.monotonic(), 0.0)

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until the worker is told to stop."""
        self._stopping.wait(seconds)


def put_patiently(inbox: queue.Queue[T], item: T, lifetime: Lifetime) -> None:
    """Wait for room in a queue, but not for a thread that will not make any."""
    while not lifetime.dead:
        try:
            inbox.put(item, timeout=_SLICE)
        except queue.Full:
            continue
        return
