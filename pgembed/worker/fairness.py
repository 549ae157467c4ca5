"""Whose turn it is, and how much of it: no embedding starves another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from pgembed.embeddings.queue import Work

# A claim takes about so long to embed: the longest wait behind another embedding.
_TURN_SECONDS = 4.0
_FIRST_CLAIM = 128
_SMALLEST_CLAIM = 8


class Turns:
    """Embeddings with claimable rows, the one served longest ago first."""

    def __init__(self) -> None:
        self._ready: dict[int, Work] = {}
        self._served: dict[int, int] = {}
        self._clock = itertools.count(1)

    def update(self, work: Iterable[Work]) -> None:
        """Take over what the database says there is."""
        self._ready = {w.embedding: w for w in work if w.ready}
        self._served = {e: t for e, t in self._served.items() if e in self._ready}

    def next(self) -> Work | None:
        """Return the embedding whose turn it is, or None; counts as its turn."""
        if not self._ready:
            return None
        embedding = min(self._ready, key=lambda e: (self._served.get(e, 0), e))
        self._served[embedding] = next(self._clock)
        return self._ready[embedding]

    def exhausted(self, embedding: int) -> None:
        """Leave an embedding out until the next update."""
        self._ready.pop(embedding, None)

    def __len__(self) -> int:
        return len(self._ready)


class Pace:
    """How many rows to claim, by how fast the last ones went."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rates: dict[int, float] = {}

    def rows(self, embedding: int) -> int:
        """Return the rows that make a turn of this embedding."""
        rate = self._rates.get(embedding)
        wanted = _FIRST_CLAIM if rate is None else int(rate * _TURN_SECONDS)
        return min(max(wanted, _SMALLEST_CLAIM), self._most)

    def observe(self, embedding: int, rows: int, seconds: float) -> None:
        """Remember how long rows of an embedding took."""
        rate = rows / max(seconds, 1e-3)
        old = self._rates.get(embedding, rate)
        self._rates[embedding] = (old + rate) / 2
