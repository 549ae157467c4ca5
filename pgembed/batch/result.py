"""What a batch found, and what it took."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

ONE_BY_ONE = "one by one"


@dataclasses.dataclass
class Report:
    """What a batch took: seconds by stage, counts, and how it was done."""

    strategy: str = "exact"
    layout: str = "not used"
    """The version of the layout that was used, or why there is none."""
    queries: int = 0
    rows: int = 0
    conditions: int = 0
    products: int = 0
    """Distances estimated by matrix products."""
    repeated: int = 0
    """Queries asked again, because a tie or rounding left doubt."""
    lists: int = 0
    """Posting lists looked into, summed over the queries."""
    changed: int = 0
    """Rows read because the layout did not have them, or not like this."""
    fetched: int = 0
    """Vectors read for their distances, because the layout has them rounded."""
    measured: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    """Queries answered from posting lists, and the recall measured on a sample."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    _inner: list[float] = dataclasses.field(default_factory=list, repr=False)

    @property
    def recall(self) -> float | None:
        """The recall measured on samples, over all queries that were approximated.

        None when they were answered one by one: pgembed.search measures nothing.
        """
        if self.strategy == ONE_BY_ONE:
            return None
        count = sum(queries for queries, _ in self.measured)
        return sum(q * r for q, r in self.measured) / count if count else 1.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to the stage *name*, less that of stages in it."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            own = spent - self._inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            if self._inner:
                self._inner[-1] += spent


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """The nearest rows of each query, nearest first; ties in the order of the key.

    Query i has ``counts[i]`` rows: ``keys[i, :counts[i]]`` and
    ``distances[i, :counts[i]]``. Beyond them distances are infinite.
    """

    keys: NDArray[Any]
    """(q, k): int64 for one integer key column, else objects; tuples for several.

    (q, 0) where they would have to be looked up, and only places were wanted."""
    distances: NDArray[np.float64]
    """(q, k): pgvector's distance, computed in float64."""
    counts: NDArray[np.int64]
    """(q,): how many rows each query has."""
    report: Report
    places: NDArray[np.uint64]
    """(q, k): where the rows are, valid in the snapshot of the batch."""
    tables: tuple[int, ...] = ()
    """The tables by oid to which *places* refer."""

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, query: int) -> list[tuple[Any, float]]:
        """Return (key, distance) of the rows of one query."""
        count = int(self.counts[query])
        return list(
            zip(
                self.keys[query, :count].tolist(),
                self.distances[query, :count].tolist(),
                strict=True,
            )
        )
