"""The best candidates of many queries at once, under a running threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_NONE = np.float32(-np.inf)


class TopK:
    """The *width* best (score, position) of each of *queries*, as heaps.

    The first of each is the lowest: what does not exceed it need not be offered.
    """

    def __init__(self, queries: int, width: int, asked: Ints) -> None:
        """Prepare the heaps of the queries that are *asked* (m,)."""
        self.width = width
        # Memory that is not written to is not taken.
        self.scores = np.empty((queries, width), np.float32)
        self.positions = np.empty((queries, width), np.int32)
        self.scores[asked], self.positions[asked] = _NONE, -1

    @staticmethod
    def bytes_for(queries: int, width: int) -> int:
        """Memory that so many queries take."""
        return queries * width * 8


def best_of(tops: Sequence[TopK], queries: Ints) -> tuple[Float32, NDArray[np.int32]]:
    """Return scores and positions (m, width) of the best of *queries* (m,) in *tops*.

    Unordered; missing ones have score minus infinity and position -1.
    """
    scores = np.concatenate([top.scores[queries] for top in tops], axis=1)
    positions = np.concatenate([top.positions[queries] for top in tops], axis=1)
    cut = scores.shape[1] - tops[0].width
    order = np.argpartition(scores, cut, axis=1)[:, cut:]
    best = np.take_along_axis(scores, order, axis=1)
    return best, np.take_along_axis(positions, order, axis=1)
