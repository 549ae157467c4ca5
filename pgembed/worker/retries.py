"""When to try again what failed: ever later, and not all at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable

from pgembed.postgres.connection import backoff


@dataclasses.dataclass
class _Entry:
    attempt: int
    due: float


class Retries:
    """Failures by key; one that was never seen is due at once.

    *base* and *cap* are the seconds of the first and the longest wait.
    """

    def __init__(
        self,
        *,
        base: float,
        cap: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = base
        self._cap = cap
        self._clock = clock
        self._entries: dict[Hashable, _Entry] = {}

    def due(self, key: Hashable) -> bool:
        """Whether it is time to try."""
        entry = self._entries.get(key)
        return entry is None or self._clock() >= entry.due

    def failed(self, key: Hashable) -> float:
        """Count a failure; return the seconds until the next try."""
        attempt = self._entries[key].attempt + 1 if key in self._entries else 1
        wait = backoff(attempt, base=self._base, cap=self._cap)
        self._entries[key] = _Entry(attempt, self._clock() + wait)
        return wait

    def succeeded(self, key: Hashable) -> None:
        """Forget the failures."""
        self._entries.pop(key, None)
