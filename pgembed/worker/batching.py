"""Batches by token budget, and the bisection of those that fail.

Texts of like length run together, padded to the longest of them. A batch that fails is
halved until the texts that make it fail are alone: they get an error, all others a
vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pgembed.errors import InferenceError
from pgembed.models.encoding import Encoded
from pgembed.postgres.vectors import Float32

Rows = NDArray[np.int64]
Run = Callable[[Encoded], Float32]
Result = tuple[Rows, Float32 | str]
_SHOWN = 500  # characters of an error that are kept


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of n texts.

    vectors is float32 (n, d); the rows of texts that have an error are zero.
    """

    vectors: Float32
    errors: dict[int, str]


class Mapper(Protocol):
    """Calls a function with each of several rows, like the built-in map."""

    def __call__(
        self, function: Callable[[Rows], list[Result]], rows: Iterable[Rows], /
    ) -> Iterable[list[Result]]:
        """Return the results in the order of the rows."""


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """Nobody wants the vectors any more."""


def embed(
    encoded: Encoded,
    run: Run,
    *,
    batch_tokens: int,
    dimensions: int,
    wanted: Callable[[], bool] = lambda: True,
    mapper: Mapper = map,
) -> Outcome:
    """Run the texts in batches of at most *batch_tokens* padded tokens.

    *wanted* is asked before every batch; Cancelled is raised when it says no.
    *mapper* may run batches side by side, when *run* and *wanted* allow it.
    """

    def run_batch(rows: Rows) -> list[Result]:
        return list(_bisect(encoded, rows, run, dimensions, wanted))

    vectors = np.zeros((len(encoded), dimensions), np.float32)
    errors: dict[int, str] = {}
    for results in mapper(run_batch, encoded.batches(batch_tokens)):
        for rows, result in results:
            if isinstance(result, str):
                errors.update(dict.fromkeys(rows.tolist(), result))
            else:
                vectors[rows] = result
    return Outcome(vectors, errors)


def _bisect(
    encoded: Encoded,
    rows: Rows,
    run: Run,
    dimensions: int,
    wanted: Callable[[], bool],
) -> Iterator[Result]:
    if not wanted():
        raise Cancelled
    try:
        vectors = run(encoded.take(rows))
        _check(vectors, len(rows), dimensions)
    except Exception as error:  # a model may raise anything, and stops nothing
        for part in _split(rows, error):
            if len(rows) == 1 or part.blamed:
                yield part.rows, _describe(error)
            else:
                yield from _bisect(encoded, part.rows, run, dimensions, wanted)
    else:
        yield rows, vectors


@dataclasses.dataclass(frozen=True)
class _Part:
    rows: Rows
    blamed: bool = False


def _split(rows: Rows, error: Exception) -> list[_Part]:
    """Split at what the error names, else in halves."""
    named = np.zeros(len(rows), bool)
    if isinstance(error, InferenceError):
        named[[i for i in error.positions if 0 <= i < len(rows)]] = True
    if named.any():
        parts = [_Part(rows[named], blamed=True), _Part(rows[~named])]
    else:
        middle = len(rows) // 2
        parts = [_Part(rows[:middle]), _Part(rows[middle:])]
    return [part for part in parts if len(part.rows)]


def _describe(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if not isinstance(error, InferenceError):
        text = f"{type(error).__name__}: {text}"
    return text[:_SHOWN]


def _check(vectors: Float32, n: int, dimensions: int) -> None:
    """Raise InferenceError unless every vector can be stored and compared."""
    if vectors.shape != (n, dimensions):
        raise InferenceError(
            f"the model gave an array of shape {vectors.shape} for {n} texts, "
            f"not {(n, dimensions)}: add it anew with the right dimensions"
        )
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise InferenceError(
            "the model gave a vector with NaN or infinity, or of length 0: "
            "leave the text out, or use another model",
            bad.tolist(),
        )
