"""Which comparisons answer a workload exactly, and the cheaper way to make them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.engine import Task, Tests
from pgembed.batch.passing import Passing

Ints = NDArray[np.int64]

_TASK_ROWS = 1 << 16
_STRETCH = 512
_GATHER_BYTES_PER_S = 8e9
"""What copying scattered rows achieves on one core (measured)."""
_RATES = ((1, 11e9), (16, 165e9), (128, 185e9), (256, 200e9))
"""Floating-point operations per second of a product with so many queries."""


def product_seconds(queries: int, dimensions: int) -> float:
    """Return what comparing one row with so many queries costs on one core."""
    sizes, rates = zip(*_RATES, strict=True)
    return 2 * queries * dimensions / float(np.interp(queries, sizes, rates))


def gather_seconds(dimensions: int) -> float:
    """Return what fetching one scattered row costs."""
    return 4 * dimensions / _GATHER_BYTES_PER_S


def tests_of(passing: Passing, members: Ints) -> Tests:
    """Return the tests by which the queries with conditions *members* know rows."""
    return Tests(passing.words, passing.masks[members], passing.values[members])


def exact_tasks(
    passing: Passing, members: Ints, queries: Ints, dimensions: int
) -> Iterator[Task]:
    """Yield the tasks that compare *queries* with all rows of their conditions.

    *members* (q,) are the conditions of all queries.
    """
    together: list[Ints] = []
    for condition in np.unique(members[queries]):
        group = queries[members[queries] == condition]
        count = passing.counts[condition]
        if count == 0:
            continue
        if count == passing.total:
            yield from _whole(group, passing.total, tested=False)
        elif condition in passing.alone or _gathers(
            count / passing.total, len(group), dimensions
        ):
            yield from _pieces(group, passing.positions(int(condition)))
        else:
            together.append(group)
    if together:
        group = np.sort(np.concatenate(together))
        yield from _whole(group, passing.total, tested=True)


def _pieces(queries: Ints, positions: Ints) -> Iterator[Task]:
    """Yield tasks for *positions*: whole stretches where leaves make them long."""
    ends = np.flatnonzero(np.diff(positions) != 1) + 1
    if len(positions) < _STRETCH * (len(ends) + 1):
        for start in range(0, len(positions), _TASK_ROWS):
            yield Task(queries, positions[start : start + _TASK_ROWS])
        return
    for part in np.split(positions, ends):
        first, last = int(part[0]), int(part[-1]) + 1
        for start in range(first, last, _TASK_ROWS):
            yield Task(queries, slice(start, min(last, start + _TASK_ROWS)))


def exact_seconds(
    passing: Passing, members: Ints, queries: Ints, dimensions: int
) -> float:
    """Estimate what :func:`exact_tasks` cost on one core."""
    conditions, counts = np.unique(members[queries], return_counts=True)
    return float(
        sum(
            passing.counts[condition]
            * min(
                gather_seconds(dimensions) + product_seconds(int(count), dimensions),
                _shared(int(count), dimensions)
                / max(passing.counts[condition] / passing.total, 1e-9),
            )
            for condition, count in zip(
                conditions.tolist(), counts.tolist(), strict=True
            )
        )
    )


def _gathers(share: float, queries: int, dimensions: int) -> bool:
    gathered = gather_seconds(dimensions) + product_seconds(queries, dimensions)
    return share * gathered < _shared(queries, dimensions)


def _shared(queries: int, dimensions: int) -> float:
    return queries * product_seconds(256, dimensions) / 256


def _whole(queries: Ints, total: int, *, tested: bool) -> Iterator[Task]:
    for start in range(0, total, _TASK_ROWS):
        yield Task(queries, slice(start, min(total, start + _TASK_ROWS)), tested)
