"""What a layout keeps of each number: all of a float32, or what fits a float16."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.errors import SettingError, VectorError

Float32 = NDArray[np.float32]

DTYPES: dict[str, type[np.float32 | np.float16]] = {
    "float32": np.float32,
    "float16": np.float16,
}
_MOST_MOVED = 2.0**-8
"""Ordinary numbers are moved by 2**-11; much more, and estimates tell too little."""
_REBIASED = np.float32(2.0**112)


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How far rounding moved any of some vectors, at most; 0 when it lost nothing."""

    length: float = 0.0
    share: float = 0.0
    """The same as a share of the vector's own length."""

    @property
    def lossless(self) -> bool:
        """Whether all vectors are what they were."""
        return self.length == 0

    def __or__(self, other: Rounding) -> Rounding:
        return Rounding(max(self.length, other.length), max(self.share, other.share))


LOSSLESS = Rounding()


def check_precision(precision: Any) -> str:
    """Return *precision*; SettingError unless it is 'float32' or 'float16'."""
    if precision not in list(DTYPES):
        raise SettingError(
            f"precision is {precision!r}, but must be 'float32' or 'float16'"
        )
    return str(precision)


def measure(values: Float32, precision: str) -> Rounding:
    """Return how far rounding to *precision* moves vectors *values* (n, d).

    Raises VectorError for a value that is too large for *precision*.
    """
    if precision == "float32":
        return LOSSLESS
    with np.errstate(over="ignore"):
        kept = values.astype(np.float16)
    infinite = np.isinf(kept)
    if infinite.any():
        raise VectorError(
            f"a vector has the value {values[infinite][0]}, which does not fit float16 "
            "(at most 65504): build the layout with precision float32"
        )
    moved, own = _lengths(values - widened(kept)), _lengths(values)
    shares = moved / np.where(own > 0, own, 1)
    return Rounding(float(moved.max(initial=0)), float(shares.max(initial=0)))


def _lengths(values: Float32) -> NDArray[np.float64]:
    squares = np.einsum("nd,nd->n", values, values, dtype=np.float64)
    return np.asarray(np.sqrt(squares))


def check_rounding(rounding: Rounding, distance: str, norms: Float32) -> None:
    """Raise VectorError when rounded vectors tell too little of the *distance*.

    *norms* (n,) are the squared lengths of the vectors.
    """
    if distance == "cosine":
        moved, whose = rounding.share, "its own"
    else:
        usual = np.sqrt(np.median(norms[norms > 0])) if norms.any() else 1.0
        moved, whose = rounding.length / float(usual), "the usual"
    if moved > _MOST_MOVED:
        raise VectorError(
            f"float16 would move a vector by {moved:.1%} of {whose} length, because "
            "its values are too small for float16, or larger than those of others by "
            "far: build the layout with precision float32"
        )


def widened(values: NDArray[np.float32] | NDArray[np.float16]) -> Float32:
    """Return *values* as float32; those that are so already as they are.

    No value is infinite.
    """
    if values.dtype == np.float32:
        return np.asarray(values, np.float32)
    # Four times as fast as astype: the bits are put where float32 has them, and the
    # exponent, which counts from elsewhere, is set right by the product.
    bits = values.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= ~0x70000000
    found = bits.view(np.float32)
    found *= _REBIASED
    return found
