"""What a leaf costs a workload, and the cut that saves most.

The cost is the number of rows that the workload touches: in every leaf in which some
row meets a query's condition all rows, or those that its nearest posting lists hold, or
those that meet the condition, whatever is least. So a cut has to save those who ask for
one side more than it costs those who ask for both and have to look into the nearest
lists of either. With *rows* the leaf's rows and *meeting* those of them that count, a
query touches the least of:

- rows
- probed * rows / meeting
- 2 * meeting

A query whose vector is known looks around it only. It counts in parts that add up to 1,
one at each coarse centroid that it is near, and there *rows* and *meeting* are those
nearest to the centroid. Those of all leaves are *whole* and *all meeting*, because rows
that are fetched by themselves are fetched wherever they are. It touches nothing, if
none of its rows meets its condition, and else the least of:

- rows
- probed * (rows / whole) ** (1 / 2) * (rows / meeting) ** (1 / 4)
- 2 * all meeting

So a cut by centroids alone neither costs nor saves such queries anything. It pays
together with a condition: where that saves those who look there, it is cut by, and
elsewhere it costs nobody. Both cuts are chosen as one.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float64 = NDArray[np.float64]

_GATHER = 2.0
"""What a row costs that is fetched by itself, in rows of a list."""
_LEAST_SHARE = 0.2
"""A cut has to save this share of what is touched around its centroids: by less, what
is expected may differ from what happens (measured)."""
_DOUBT = 2.0
"""Standard errors by which a cut has to save around each of its centroids."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """Rows that meet the same conditions, at the same centroid, in its order."""

    answers: Bools
    """(m, f): which conditions they meet."""
    centroids: Ints
    """(m,): below c."""
    counts: Float64
    """(m,): how many rows."""


@dataclasses.dataclass(frozen=True)
class Demand:
    """How many queries have which condition, and look where."""

    anywhere: Float64
    """(f,): those that may look anywhere."""
    near: Float64
    """(c, f): the parts of the others around each centroid."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Among rows of *centroids*, ask for *condition*; the others are a leaf."""

    gain: float
    condition: int = -1
    centroids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Split:
    """Rows that are to be cut by each condition g, of one centroid or several."""

    total: Float64
    """(c, 1 or g)"""
    inside: Float64
    """(c, g): rows that meet g."""
    meeting: Float64
    """(c, 1 or g, f): rows that meet f."""
    both: Float64
    """(c, g, f): rows that meet both."""

    @property
    def outside(self) -> Float64:
        """(c, g): rows that do not meet g."""
        return self.total - self.inside

    @property
    def without(self) -> Float64:
        """(c, g, f): rows that meet f, but not g."""
        return self.meeting - self.both


@dataclasses.dataclass(frozen=True)
class Objective:
    """Counts the rows that *demand* touches; no leaf is to have fewer than *least*."""

    cells: Cells
    demand: Demand
    least: int
    probed: float
    """Rows of the lists that a query looks into, where all rows count for it."""

    def cost(self, cells: Ints) -> float:
        """Return the rows that the workload touches, if this is a leaf."""
        total, meeting = [], []
        for part in self._parts(cells):
            counts = self.cells.counts[part]
            total.append(counts.sum())
            meeting.append(counts @ self.cells.answers[part])
        around = self._around(
            np.array(total)[:, None], np.array(meeting), self._whole[:, None]
        )
        anywhere = self._anywhere(np.sum(total), np.sum(meeting, axis=0))
        demand = self.demand
        return float((around * demand.near).sum() + anywhere @ demand.anywhere)

    @functools.cached_property
    def _whole(self) -> Float64:
        """The rows of each centroid (c,), in all leaves."""
        cells = self.cells
        count = len(self.demand.near)
        return np.maximum(np.bincount(cells.centroids, cells.counts, count), 1)

    @functools.cached_property
    def _meeting(self) -> Float64:
        """The rows that meet each condition (f,), in all leaves."""
        return np.asarray(self.cells.counts @ self.cells.answers)

    def _anywhere(self, rows: Float64, meeting: Float64) -> Float64:
        """Return what a query that may look anywhere touches of leaves of *rows*.

        Among rows of which few count, the nearest of them lie in as many more lists.
        """
        few = rows / np.maximum(meeting, 1) * self.probed
        return np.minimum(np.minimum(rows, few), _GATHER * meeting)

    def _around(self, rows: Float64, meeting: Float64, whole: Float64) -> Float64:
        """Return what a query touches of those *rows* of leaves that are around it.

        Where they are few among the *whole*, lists are wide, and fewer of them near;
        where few of them count, the nearest that do are farther (both measured).
        """
        near = self.probed * np.sqrt(rows / whole)
        near = near * np.sqrt(np.sqrt(rows / np.maximum(meeting, 1)))
        found = np.minimum(np.minimum(rows, near), _GATHER * self._meeting)
        return np.where(meeting > 0, found, 0)

    def _parts(self, cells: Ints) -> list[Ints]:
        """Return the cells of each centroid."""
        firsts = np.arange(1, len(self.demand.near))
        return np.split(cells, np.searchsorted(self.cells.centroids[cells], firsts))

    def best_cut(
        self, cells: Ints, centroids: tuple[int, ...], least_gain: float
    ) -> Cut:
        """Return the cut of a leaf with rows of *centroids* that saves most.

        One around some of them only has to save *least_gain* more: it is two cuts.
        """
        here, parts = np.array(centroids), self._parts(cells)
        split = self._split([parts[c] for c in centroids])
        if not split.inside.size:
            return Cut(-np.inf)
        saved, doubt = self._saved_around(
            split, self._whole[here], self.demand.near[here]
        )
        order = np.argsort(doubt - saved, axis=0, kind="stable")
        gains = np.cumsum(np.take_along_axis(saved - doubt, order, axis=0), axis=0)
        gains -= least_gain
        gains[-1] = saved.sum(axis=0)
        if self.demand.anywhere.any():
            gains += self._saved_anywhere(split, order)
        gains[~self._large_enough(split, order)] = -np.inf
        most, condition = np.unravel_index(int(gains.argmax()), gains.shape)
        chosen = np.sort(here[order[: most + 1, condition]])
        gain = float(gains[most, condition])
        return Cut(gain, int(condition), tuple(chosen.tolist()))

    def _split(self, parts: list[Ints]) -> _Split:
        total, both = [], []
        for part in parts:
            answers = self.cells.answers[part].astype(np.float64)
            counts = self.cells.counts[part]
            total.append([counts.sum()])
            # Rows that meet both of two conditions, and by that all that cuts do.
            both.append((answers * counts[:, None]).T @ answers)
        pairs = np.array(both)
        inside = np.diagonal(pairs, axis1=1, axis2=2)
        return _Split(np.array(total), inside, inside[:, None], pairs)

    def _saved_around(
        self, split: _Split, whole: Float64, near: Float64
    ) -> tuple[Float64, Float64]:
        """Return (c, g) what cuts save around each centroid, beyond the least share.

        And how much less other queries like them may well save.
        """
        wide = whole[:, None, None]
        before = self._around(split.total[..., None], split.meeting, wide)
        saved = (
            before
            - self._around(split.inside[..., None], split.both, wide)
            - self._around(split.outside[..., None], split.without, wide)
        )
        doubt = np.sqrt((saved**2 @ near[..., None])[..., 0])
        least = _LEAST_SHARE * before
        return ((saved - least) @ near[..., None])[..., 0], _DOUBT * doubt

    def _saved_anywhere(self, split: _Split, order: Ints) -> Float64:
        """Return (c, g) what cuts at the first of *order* save those everywhere."""
        first = _Split(
            _first(split.total, order),
            _first(split.inside, order),
            _first(split.meeting, order),
            _first(split.both, order),
        )
        total, meeting = first.total[-1, 0], first.meeting[-1, 0]
        saved = (
            self._anywhere(total, meeting)
            - self._anywhere((total - first.total)[..., None], meeting - first.meeting)
            - self._anywhere(first.inside[..., None], first.both)
            - self._anywhere(first.outside[..., None], first.without)
        )
        return np.asarray(saved @ self.demand.anywhere)

    def _large_enough(self, split: _Split, order: Ints) -> Bools:
        total, inside = _first(split.total, order), _first(split.inside, order)
        rest = total[-1] - total
        alone = (rest >= self.least) | (rest == 0)
        smaller = np.minimum(inside, total - inside)
        return np.asarray((smaller >= self.least) & alone)


def _first(values: Float64, order: Ints) -> Float64:
    """Return the sums of *values* over the first centroids of *order* (c, g)."""
    index = order.reshape(*order.shape, *(1 for _ in values.shape[2:]))
    whole = np.broadcast_to(values, (*order.shape, *values.shape[2:]))
    return np.cumsum(np.take_along_axis(whole, index, axis=0), axis=0)
