"""What batches may be told of recall and threads."""

from __future__ import annotations

from numbers import Integral, Real

from pgembed.batch.engine import cores
from pgembed.errors import SettingError

# Each has memory of its own, which no limit of memory counts.
_MOST_THREADS = 1000


def check_recall(recall: float) -> float:
    """Return *recall*; SettingError unless it is above 0 and at most 1."""
    number = isinstance(recall, Real) and not isinstance(recall, bool)
    if not number or not 0 < recall <= 1:
        raise SettingError(
            f"recall is {recall!r}, but must be a number above 0 and at most 1"
        )
    return float(recall)


def thread_count(threads: int | None) -> int:
    """Return *threads*, or one per core for None; SettingError unless 1 to 1000."""
    if threads is None:
        return cores()
    if not isinstance(threads, Integral) or threads < 1:
        raise SettingError(
            f"threads is {threads!r}, but must be at least 1: leave it out for one "
            "per core"
        )
    if threads > _MOST_THREADS:
        raise SettingError(
            f"threads is {threads}, but must be at most {_MOST_THREADS}: leave it out "
            "for one per core"
        )
    return int(threads)
