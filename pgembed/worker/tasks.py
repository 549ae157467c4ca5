"""A claim on its way: prepared for the model, and what came out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pgembed.embeddings.chunking import Chunker
from pgembed.embeddings.queue import Queue, Work
from pgembed.models.encoding import Encoded
from pgembed.models.session import Model
from pgembed.postgres.vectors import Float32, VectorArray
from pgembed.worker.batching import Outcome
from pgembed.worker.leases import Lease

Positions = NDArray[np.int64]

_MOST_CHARACTERS = 1_000_000
"""Of a text that a claim reads, as sql/30_content.sql has it."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Texts, or chunks of texts, ready for the model.

    owners is int64 (n,): the position in the claim that each encoded text belongs to.
    errors are those of rows whose text could not be tokenized. truncated is how many
    rows have more text than is read of it.
    """

    work: Work
    lease: Lease
    model: Model
    encoded: Encoded
    owners: Positions
    texts: list[str]
    errors: dict[int, str]
    truncated: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """What is to be written: vectors float32 (n, d), and errors by position."""

    task: Task
    vectors: Float32
    errors: dict[int, str]

    @property
    def good(self) -> list[int]:
        """The positions in the claim that have no error."""
        n = len(self.task.lease.claim)
        return [i for i in range(n) if i not in self.errors]

    def write(self, queue: Queue, worker: UUID, positions: Sequence[int]) -> set[int]:
        """Write back the rows at these positions; return the slots settled."""
        if self.task.work.chunk_tokens is None:
            return self._write_rows(queue, worker, positions)
        return self._write_chunks(queue, worker, positions)

    def _write_rows(
        self, queue: Queue, worker: UUID, positions: Sequence[int]
    ) -> set[int]:
        claim = self.task.lease.claim
        source = np.full(len(claim), -1)
        source[self.task.owners] = np.arange(len(self.task.owners))
        picked = source[list(positions)]
        mask = picked < 0
        values = np.zeros((len(picked), self.vectors.shape[1]), np.float32)
        values[~mask] = self.vectors[picked[~mask]]
        array = VectorArray(values, mask)
        return queue.complete(claim, worker, positions, array)

    def _write_chunks(
        self, queue: Queue, worker: UUID, positions: Sequence[int]
    ) -> set[int]:
        claim = self.task.lease.claim
        picked = np.flatnonzero(np.isin(self.task.owners, list(positions)))
        return queue.complete_chunks(
            claim,
            worker,
            positions,
            [claim.slots[i] for i in self.task.owners[picked]],
            [self.task.texts[i] for i in picked],
            VectorArray(self.vectors[picked]),
        )


def prepare(work: Work, lease: Lease, model: Model) -> Task:
    """Tokenize the texts of a claim, cut into chunks if that was declared."""
    texts: list[str] = []
    owners: list[int] = []
    errors: dict[int, str] = {}
    for position, text in enumerate(lease.claim.texts):
        if text is None:
            continue
        try:
            parts = _parts(work, model, text)
        except Exception as error:  # one text must not stop the others
            errors[position] = f"the text cannot be cut into chunks: {error}"
            continue
        texts += parts
        owners += [position] * len(parts)
    try:
        encoded = model.tokenize(texts)
    except Exception:  # whose it is, each text tells alone
        errors |= _refused(model, texts, owners)
        kept = [i for i, owner in enumerate(owners) if owner not in errors]
        texts, owners = [texts[i] for i in kept], [owners[i] for i in kept]
        encoded = model.tokenize(texts)
    truncated = encoded.truncated
    if work.chunk_tokens is not None:
        whole = [text for text in lease.claim.texts if text is not None]
        truncated = sum(len(text) >= _MOST_CHARACTERS for text in whole)
    return Task(
        work, lease, model, encoded, _positions(owners), texts, errors, truncated
    )


def _parts(work: Work, model: Model, text: str) -> list[str]:
    if work.chunk_tokens is None:
        return [text]
    return Chunker.fitting(model, work.chunk_tokens, work.chunk_overlap).split(text)


def _refused(
    model: Model, texts: Sequence[str], owners: Sequence[int]
) -> dict[int, str]:
    """Return the errors of the rows with a text that the tokenizer refuses."""
    errors = {}
    for text, owner in zip(texts, owners, strict=True):
        try:
            model.tokenize([text])
        except Exception as error:
            errors[owner] = f"the model's tokenizer refuses the text: {error}"
    return errors


def _positions(values: Sequence[int]) -> Positions:
    return np.array(values, dtype=np.int64)


def finish(task: Task, outcome: Outcome) -> Result:
    """Return what is to be written; a row whose chunk failed fails whole."""
    errors = dict(task.errors)
    for index, message in outcome.errors.items():
        errors.setdefault(int(task.owners[index]), message)
    return Result(task, outcome.vectors, errors)
