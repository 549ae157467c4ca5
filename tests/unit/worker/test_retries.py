"""Failures are tried again ever later."""

from __future__ import annotations

from pgembed.worker.retries import Retries


def test_waits_grow_up_to_a_limit() -> None:
    now = [100.0]
    retries = Retries(base=1, cap=60, clock=lambda: now[0])
    assert retries.due("a")
    waits = []
    for _ in range(10):
        waits.append(retries.failed("a"))
        assert not retries.due("a")
        now[0] += waits[-1]
        assert retries.due("a")
    assert 0.7 <= waits[0] <= 1.3
    assert waits[3] > waits[0]
    assert max(waits) <= 60 * 1.25


def test_success_is_a_fresh_start() -> None:
    now = [0.0]
    retries = Retries(base=1, cap=60, clock=lambda: now[0])
    for _ in range(5):
        retries.failed("a")
    retries.succeeded("a")
    assert retries.due("a")
    assert retries.failed("a") <= 1.25
    assert retries.due("b")
