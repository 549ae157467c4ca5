"""A short run of the soak: see chaos.py."""

from __future__ import annotations

import dataclasses

import pytest

from tests.faults.chaos import soak


@pytest.mark.slow
def test_twenty_seconds_of_chaos() -> None:
    report = soak(20, seed=1)
    assert report.is_clean, report
    done = dataclasses.asdict(report)
    for name in ("operations", "rollbacks", "kills", "stalls", "restarts", "checks"):
        assert done[name] > 0, report
