"""A qd-tree: rows cut by the workload's own conditions, so that queries skip leaves.

A node asks whether rows meet one condition; a node above it may ask whether the coarse
centroid to which a row is nearest is one of a few. Cuts are chosen greedily, the one
that saves the workload most first; what that means is in :mod:`cuts`. A leaf keeps what
holds in all of its rows, and what in none. Its posting lists cut every leaf again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.cuts import Cells, Cut, Demand, Objective

Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]

_LEAST_GAIN = 0.01
"""A cut has to save this share of what the whole workload touches without any."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Rows of the same answers: conditions that all of them meet, or none."""

    cells: Ints
    rows: int
    centroids: tuple[int, ...]
    """Those to which its rows may be nearest: all, unless the tree was cut by them."""
    holds: tuple[int, ...] = ()
    """Conditions by which the tree was cut on the way here, and which hold."""
    fails: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tree:
    """The leaves, the leaf (n,) of each row, and rows touched before and after."""

    leaves: tuple[Leaf, ...]
    leaf: Ints
    touched_before: float
    touched: float


def grow(
    words: NDArray[np.uint64],
    weights: Float64,
    *,
    least_rows: int,
    probed_rows: float,
    most_leaves: int = 64,
    centroids: Ints | None = None,
    near: Float64 | None = None,
) -> Tree:
    """Build the tree over rows whose conditions are bits of *words* (n,).

    *weights* (f,) are how many queries that may look anywhere have each condition, f
    at most 64. No leaf has fewer than *least_rows*, unless there are fewer in all.
    *probed_rows*: how many rows the posting lists hold that a query looks into, where
    all rows count for it. *centroids* (n,): the coarse centroid to which each row is
    nearest. *near* (c, f): how many queries that look around their vectors, or parts
    of them, are near each centroid with each condition.
    """
    if centroids is None or near is None:
        centroids, near = np.zeros(len(words), np.int64), np.zeros((1, len(weights)))
    cells, inverse = _cells(words, centroids, len(weights))
    objective = Objective(cells, Demand(weights, near), least_rows, probed_rows)
    root = Leaf(np.arange(len(cells.counts)), len(words), tuple(range(len(near))))
    before = objective.cost(root.cells)
    grower = _Grower(objective, before * _LEAST_GAIN)
    leaves = grower.leaves(root, most_leaves)
    of_cell = np.zeros(len(cells.counts), np.int64)
    for number, leaf in enumerate(leaves):
        of_cell[leaf.cells] = number
    after = sum(objective.cost(leaf.cells) for leaf in leaves)
    return Tree(tuple(leaves), of_cell[inverse], before, after)


def _cells(
    words: NDArray[np.uint64], centroids: Ints, conditions: int
) -> tuple[Cells, Ints]:
    """Return the distinct cells, and the cell (n,) of each row."""
    values, signatures = np.unique(words, return_inverse=True)
    keys, inverse, counts = np.unique(
        centroids * len(values) + signatures, return_inverse=True, return_counts=True
    )
    where, signature = np.divmod(keys, max(1, len(values)))
    shifts = np.arange(conditions, dtype=np.uint64)
    answers = np.asarray(values[signature][:, None] >> shifts & np.uint64(1), bool)
    return Cells(answers, where, counts.astype(np.float64)), inverse


class _Grower:
    def __init__(self, objective: Objective, least_gain: float) -> None:
        self._objective, self._least_gain = objective, least_gain

    def leaves(self, root: Leaf, most: int) -> list[Leaf]:
        """Cut the leaf with the best cut, until none is good enough."""
        open_cuts = [(root, self._best_cut(root))]
        while True:
            index = max(range(len(open_cuts)), key=lambda i: open_cuts[i][1].gain)
            leaf, cut = open_cuts[index]
            if cut.gain <= self._least_gain:
                break
            children = list(self._children(leaf, cut))
            if len(open_cuts) - 1 + len(children) > most:
                break
            open_cuts[index : index + 1] = [
                (child, self._best_cut(child)) for child in children
            ]
        return [leaf for leaf, _ in open_cuts]

    def _best_cut(self, leaf: Leaf) -> Cut:
        return self._objective.best_cut(leaf.cells, leaf.centroids, self._least_gain)

    def _children(self, leaf: Leaf, cut: Cut) -> Iterator[Leaf]:
        cells = self._objective.cells
        met = cells.answers[leaf.cells, cut.condition]
        inside = np.isin(cells.centroids[leaf.cells], cut.centroids)
        elsewhere = tuple(c for c in leaf.centroids if c not in cut.centroids)
        for chosen, centroids, holds, fails in (
            (inside & met, cut.centroids, (cut.condition,), ()),
            (inside & ~met, cut.centroids, (), (cut.condition,)),
            (~inside, elsewhere, (), ()),
        ):
            found = leaf.cells[chosen]
            if len(found):
                yield Leaf(
                    found,
                    int(cells.counts[found].sum()),
                    centroids,
                    leaf.holds + holds,
                    leaf.fails + fails,
                )
