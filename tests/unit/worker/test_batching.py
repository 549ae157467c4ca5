"""Every text gets a vector or the error that is its own, whatever a batch does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed.errors import InferenceError
from pgembed.models.encoding import Encoded
from pgembed.postgres.vectors import Float32
from pgembed.worker import batching

BAD = 999

lengths_of = st.lists(st.integers(1, 40), min_size=0, max_size=60)


def encode(lengths: list[int], poison: set[int]) -> Encoded:
    """Text i consists of the token i + 1, or of BAD."""
    tokens = [BAD if i in poison else i + 1 for i in range(len(lengths))]
    return Encoded(np.repeat(np.array(tokens, np.int64), lengths), np.array(lengths))


class Recorder:
    """A model: a text's vector is its token; BAD makes a batch fail."""

    def __init__(self, *, names_positions: bool = False) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.names_positions = names_positions

    def __call__(self, encoded: Encoded) -> Float32:
        ids, _ = encoded.padded(0)
        self.shapes.append((ids.shape[0], ids.shape[1]))
        bad = np.flatnonzero(ids[:, 0] == BAD).tolist()
        if bad and self.names_positions:
            raise InferenceError("bad text", bad)
        if bad:
            raise RuntimeError("bad batch")
        return ids[:, :1].astype(np.float32)


@given(
    lengths=lengths_of,
    bad=st.sets(st.integers(0, 59)),
    budget=st.integers(1, 200),
    names_positions=st.booleans(),
)
def test_poison_texts_fail_alone(
    lengths: list[int], bad: set[int], budget: int, names_positions: bool
) -> None:
    poison = {i for i in bad if i < len(lengths)}
    outcome = batching.embed(
        encode(lengths, poison),
        Recorder(names_positions=names_positions),
        batch_tokens=budget,
        dimensions=1,
    )
    assert set(outcome.errors) == poison
    expected = [0 if i in poison else i + 1 for i in range(len(lengths))]
    assert outcome.vectors[:, 0].tolist() == expected


@given(lengths=lengths_of, budget=st.integers(1, 200))
def test_batches_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    run = Recorder()
    batching.embed(encode(lengths, set()), run, batch_tokens=budget, dimensions=1)
    assert sum(rows for rows, _ in run.shapes) == len(lengths)
    assert all(rows == 1 or rows * longest <= budget for rows, longest in run.shapes)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_unusable_vectors_are_errors(value: float) -> None:
    def run(encoded: Encoded) -> Float32:
        vectors = np.ones((len(encoded), 2), np.float32)
        vectors[encoded.tokens == 2] = value
        return vectors

    outcome = batching.embed(
        encode([1, 1, 1], set()), run, batch_tokens=9, dimensions=2
    )
    assert list(outcome.errors) == [1]
    assert "NaN or infinity" in outcome.errors[1]


def test_wrong_size_is_an_error_of_every_text() -> None:
    def run(encoded: Encoded) -> Float32:
        return np.ones((len(encoded), 3), np.float32)

    outcome = batching.embed(encode([1, 1], set()), run, batch_tokens=9, dimensions=2)
    assert set(outcome.errors) == {0, 1}
    assert "not (1, 2)" in outcome.errors[0]


def test_unwanted_work_is_left() -> None:
    run = Recorder()
    with pytest.raises(batching.Cancelled):
        batching.embed(
            encode([1] * 10, set()),
            run,
            batch_tokens=2,
            dimensions=1,
            wanted=lambda: len(run.shapes) < 2,
        )
    assert len(run.shapes) == 2
