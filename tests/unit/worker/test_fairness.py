"""Turns between embeddings, and claims that fit a turn."""

from __future__ import annotations

import datetime

from pgembed.embeddings.queue import Work
from pgembed.worker.fairness import Pace, Turns


def work(embedding: int, ready: int = 1000) -> Work:
    now = datetime.datetime.now(datetime.UTC)
    return Work(embedding, f"e{embedding}", "m", b"", None, 0, ready, now)


def test_a_giant_backfill_does_not_starve_a_small_table() -> None:
    turns = Turns()
    turns.update([work(1)])
    assert [turns.next(), turns.next()] == [work(1)] * 2 or len(turns) == 1
    turns.update([work(1), work(2, ready=1)])
    following = turns.next()
    assert following is not None
    assert following.embedding == 2


def test_turns_go_round() -> None:
    turns = Turns()
    turns.update([work(1), work(2), work(3)])
    served = [w.embedding for _ in range(7) if (w := turns.next())]
    assert served == [1, 2, 3, 1, 2, 3, 1]


def test_exhausted_embeddings_are_left_out() -> None:
    turns = Turns()
    turns.update([work(1), work(2), work(3, ready=0)])
    turns.exhausted(1)
    assert [w.embedding for _ in range(2) if (w := turns.next())] == [2, 2]
    turns.exhausted(2)
    assert turns.next() is None


def test_claims_follow_the_pace() -> None:
    pace = Pace(most=512)
    first = pace.rows(1)
    pace.observe(1, rows=first, seconds=first / 10)
    assert 8 <= pace.rows(1) <= 60
    for _ in range(10):
        pace.observe(1, rows=512, seconds=0.01)
    assert pace.rows(1) == 512
    for _ in range(40):
        pace.observe(1, rows=1, seconds=10)
    assert pace.rows(1) == 8
    assert pace.rows(2) == first
