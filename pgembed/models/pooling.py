"""From what the network gives per token to one vector per text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def pool(hidden: Floats, lengths: Integers, pooling: str) -> Floats:
    """Return one vector per text, float32 (n, d).

    hidden is float32 (n, tokens, d), or (n, d) already when pooling is none;
    lengths, int64 (n,), counts the tokens of each text, padding left out.
    """
    if pooling == "none":
        return hidden
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[np.arange(len(lengths)), lengths - 1]
    return _mean(hidden, lengths)


def _mean(hidden: Floats, lengths: Integers) -> Floats:
    inside = np.arange(hidden.shape[1]) < lengths[:, None]
    weights = (inside / lengths[:, None]).astype(np.float32)
    with np.errstate(all="ignore"):
        vectors: Floats = np.matmul(weights[:, None, :], hidden)[:, 0]
    return vectors


def lengths_of(vectors: Floats) -> npt.NDArray[np.float64]:
    """Return the Euclidean length of each row, float64 (n,); NaN stays NaN."""
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return np.asarray(np.sqrt(squares))
