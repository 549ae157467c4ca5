"""The best candidates of many queries at once, under a running threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_NONE = np.float32(-np.inf)


class TopK:
    """The *width* best (score, position) of each of *queries*, and some more.

    ``threshold`` (q,) is the width-th best score so far, minus infinity before there
    are as many: what does not exceed it need not be offered.
    """

    def __init__(self, queries: int, width: int) -> None:
        self.width = width
        self.capacity = 4 * width + 32
        self.scores = np.full((queries, self.capacity), _NONE)
        self.positions = np.full((queries, self.capacity), -1, np.int32)
        self.fill = np.zeros(queries, np.int64)
        self.threshold = np.full(queries, _NONE)
        self._flat_scores = self.scores.reshape(-1)
        self._flat_positions = self.positions.reshape(-1)

    @property
    def room(self) -> int:
        """How many candidates of one query may be pushed at a time."""
        return self.capacity - self.width

    @staticmethod
    def bytes_for(queries: int, width: int) -> int:
        """Memory that so many queries take."""
        return queries * ((4 * width + 32) * 8 + 12)

    def push(self, queries: Ints, positions: Ints, scores: Float32) -> None:
        """Offer candidates (m,), in the order of their *queries*."""
        size = len(queries)
        if not size:
            return
        new = np.ones(size, bool)
        np.not_equal(queries[1:], queries[:-1], out=new[1:])
        first = new.nonzero()[0]
        owners = queries[first]
        counts = np.append(first[1:], size) - first
        if counts.max() > self.room:
            turn = (np.arange(size) - first.repeat(counts)) // self.room
            for number in range(int(turn.max()) + 1):
                now = turn == number
                self.push(queries[now], positions[now], scores[now])
            return
        fill = self.fill[owners]
        full = fill + counts > self.capacity
        if full.any():
            self.compress(owners[full])
            fill = self.fill[owners]
        slots = queries * self.capacity + np.arange(size)
        slots += (fill - first).repeat(counts)
        self._flat_scores[slots] = scores
        self._flat_positions[slots] = positions
        fill += counts
        self.fill[owners] = fill
        ready = (fill >= self.width) & (self.threshold[owners] == _NONE)
        if ready.any():
            self.compress(owners[ready])

    def push_best(self, queries: Ints, positions: Ints, scores: Float32) -> None:
        """Offer scores (m, r) of *queries* (m,) with vectors *positions* (r,).

        For blocks of which too many survive to be pushed one by one.
        """
        if scores.shape[1] > self.width:
            chosen = best_columns(scores, self.width)
            values = np.take_along_axis(scores, chosen, axis=1)
        else:
            values = scores
            chosen = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        wanted = values > self.threshold[queries][:, None]
        rows, columns = np.nonzero(wanted)
        self.push(queries[rows], positions[chosen[rows, columns]], values[wanted])

    def compress(self, queries: Ints) -> None:
        """Keep the *width* best of each of *queries*, and raise their thresholds."""
        scores = self.scores[queries]
        order = best_columns(scores, self.width)
        order += np.arange(len(queries))[:, None] * self.capacity
        kept = scores.ravel()[order]
        positions = self.positions[queries].ravel()[order]
        self.positions[queries, : self.width] = positions
        scores.fill(_NONE)
        scores[:, : self.width] = kept
        self.scores[queries] = scores
        fill = np.minimum(self.fill[queries], self.width)
        self.fill[queries] = fill
        reached = np.where(fill == self.width, kept.min(axis=1), _NONE)
        self.threshold[queries] = np.maximum(self.threshold[queries], reached)


def best_of(tops: Sequence[TopK], queries: Ints) -> tuple[Float32, NDArray[np.int32]]:
    """Return scores and positions (m, width) of the best of *queries* (m,) in *tops*.

    Unordered; missing ones have score minus infinity and position -1.
    """
    scores = np.concatenate([top.scores[queries] for top in tops], axis=1)
    positions = np.concatenate([top.positions[queries] for top in tops], axis=1)
    order = best_columns(scores, tops[0].width)
    best = np.take_along_axis(scores, order, axis=1)
    found = np.take_along_axis(positions, order, axis=1)
    return best, np.where(best == _NONE, -1, found)


def best_columns(scores: Float32, width: int) -> Ints:
    """Return where the *width* highest of each row of *scores* (m, r) are, unordered.

    r is at least *width*, and no score is NaN.
    """
    cut = scores.shape[1] - width
    return np.argpartition(scores, cut, axis=1)[:, cut:]
