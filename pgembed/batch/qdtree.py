"""A qd-tree: rows cut by the workload's own conditions, so that queries skip leaves.

A node asks whether rows meet one condition. Its cost is the number of rows that the
workload touches below it: each query touches every leaf in which some row meets its
condition. Cuts are chosen greedily, the one that saves most first; a leaf keeps what
holds in all of its rows, and what in none. Centroids cut every leaf again, into
posting lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LEAST_GAIN = 0.01
"""A cut has to save this share of what the whole workload touches without any."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Rows of the same answers: conditions that all of them meet, or none."""

    signatures: Ints
    rows: int
    holds: tuple[int, ...]
    """Conditions by which the tree was cut on the way here, and which hold."""
    fails: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tree:
    """The leaves, the leaf (n,) of each row, and rows touched before and after."""

    leaves: tuple[Leaf, ...]
    leaf: Ints
    touched_before: float
    touched: float


def grow(
    words: NDArray[np.uint64],
    weights: NDArray[np.float64],
    *,
    least_rows: int,
    most_leaves: int = 64,
) -> Tree:
    """Build the tree over rows whose conditions are bits of *words* (n,).

    *weights* (f,) are how many queries have each condition, f at most 64. No leaf has
    fewer than *least_rows*, unless there are fewer in all.
    """
    values, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    shifts = np.arange(len(weights), dtype=np.uint64)
    answers = np.asarray(values[:, None] >> shifts & np.uint64(1), bool)
    grower = _Grower(answers, counts.astype(np.float64), weights, least_rows)
    root = Leaf(np.arange(len(values)), len(words), (), ())
    before = grower.cost(root.signatures)
    leaves = grower.leaves(root, before * _LEAST_GAIN, most_leaves)
    of_signature = np.zeros(len(values), np.int64)
    for number, leaf in enumerate(leaves):
        of_signature[leaf.signatures] = number
    after = sum(grower.cost(leaf.signatures) for leaf in leaves)
    return Tree(tuple(leaves), of_signature[inverse], before, after)


class _Grower:
    def __init__(
        self,
        answers: Bools,
        counts: NDArray[np.float64],
        weights: NDArray[np.float64],
        least_rows: int,
    ) -> None:
        self._answers, self._counts = answers, counts
        self._weights, self._least = weights, least_rows

    def cost(self, signatures: Ints) -> float:
        """Return the rows that the workload touches, if this is a leaf."""
        met = self._answers[signatures].any(axis=0)
        return float(self._counts[signatures].sum() * self._weights[met].sum())

    def leaves(self, root: Leaf, least_gain: float, most: int) -> list[Leaf]:
        """Cut the leaf with the best cut, until none is good enough."""
        open_cuts = [(root, *self._best_cut(root))]
        while len(open_cuts) < most:
            index = max(range(len(open_cuts)), key=lambda i: open_cuts[i][1])
            leaf, gain, condition = open_cuts[index]
            if gain <= least_gain:
                break
            open_cuts[index : index + 1] = [
                (child, *self._best_cut(child)) for child in self._cut(leaf, condition)
            ]
        return [leaf for leaf, _, _ in open_cuts]

    def _best_cut(self, leaf: Leaf) -> tuple[float, int]:
        """Return what the best condition to cut by saves, and that condition."""
        answers = self._answers[leaf.signatures].astype(np.float64)
        counts = self._counts[leaf.signatures]
        # Rows that meet both of two conditions, and by that all that cuts do.
        both = (answers * counts[:, None]).T @ answers
        inside, total = np.diag(both), counts.sum()
        touched_in = inside * ((both > 0) @ self._weights)
        touched_out = (total - inside) * ((inside[None, :] - both > 0) @ self._weights)
        gains = self.cost(leaf.signatures) - touched_in - touched_out
        gains[np.minimum(inside, total - inside) < self._least] = -np.inf
        if not len(gains):
            return -np.inf, -1
        best = int(gains.argmax())
        return float(gains[best]), best

    def _cut(self, leaf: Leaf, condition: int) -> Iterator[Leaf]:
        met = self._answers[leaf.signatures, condition]
        for chosen, holds, fails in (
            (met, (condition,), ()),
            (~met, (), (condition,)),
        ):
            signatures = leaf.signatures[chosen]
            rows = int(self._counts[signatures].sum())
            yield Leaf(signatures, rows, leaf.holds + holds, leaf.fails + fails)
