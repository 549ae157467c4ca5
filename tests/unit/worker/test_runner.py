"""Batches of a task run side by side, also those of a small one."""

from __future__ import annotations

import datetime
import threading
from typing import Any, cast

import numpy as np
import pytest

from pgembed.embeddings.queue import Claim, Work
from pgembed.models.encoding import Encoded
from pgembed.models.session import Model
from pgembed.postgres.vectors import Float32
from pgembed.worker.fairness import Pace
from pgembed.worker.leases import Lease
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.runner import Runner
from pgembed.worker.tasks import Result, Task
from pgembed.worker.writeback import Writer

THREADS = 3
DEADLINE = 10.0


class Meeting:
    """A model whose batches wait until so many of them run."""

    dimensions = 1

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties)

    def run(self, encoded: Encoded) -> Float32:
        self._barrier.wait(DEADLINE)
        return np.ones((len(encoded), 1), np.float32)


class Results(list[Result]):
    """Takes the place of the writer."""

    submit = list.append


def task_of(model: Meeting, texts: int) -> Task:
    """A claim of texts of four tokens each."""
    claim = Claim(1, 1, list(range(texts)), [1] * texts, ["text"] * texts)
    work = Work(1, "docs_body", "m", b"", None, 0, texts, datetime.datetime.now())
    encoded = Encoded(np.ones(4 * texts, np.int64), np.full(texts, 4))
    return Task(
        work,
        Lease(claim),
        cast("Model", model),
        encoded,
        np.arange(texts),
        ["text"] * texts,
        {},
    )


def run_all(*tasks: Task) -> list[Result]:
    """Run tasks as a worker does; return what it would write."""
    results = Results()
    runner = Runner(
        cast("Writer", results),
        Pace(100),
        Lifetime(DEADLINE),
        batch_tokens=1024,
        threads=THREADS,
    )
    threads = [threading.Thread(target=runner.run) for _ in range(Runner.TASKS)]
    for thread in threads:
        thread.start()
    for task in tasks:
        runner.submit(task)
    runner.close()
    for thread in threads:
        thread.join(DEADLINE)
    runner.shutdown()
    return results


@pytest.mark.parametrize("texts", [THREADS, 13 * THREADS])
def test_a_small_task_uses_all_threads(texts: int) -> None:
    [result] = run_all(task_of(Meeting(THREADS), texts))
    assert not result.errors
    assert result.vectors.shape == (texts, 1)


def test_the_next_task_takes_the_threads_left_over() -> None:
    model: Any = Meeting(2)
    results = run_all(task_of(model, 1), task_of(model, 1))
    assert [result.errors for result in results] == [{}, {}]
