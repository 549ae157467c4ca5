"""When rows are the same before and after a batch."""

from __future__ import annotations

import numpy as np
import pytest

from pgembed.batch.predicates import Listing
from pgembed.batch.steady import is_same

_IDS = np.arange(1, 101, dtype=np.uint64)
_XMINS = np.arange(700, 800, dtype=np.uint32)


def listing(order: slice = slice(None), *, xmin: int = 0) -> Listing:
    words = np.empty((0, len(_IDS[order])), np.uint64)
    return Listing(_IDS[order], _XMINS[order] + np.uint32(xmin), words)


def test_parallel_workers_list_rows_in_any_order() -> None:
    assert is_same(listing(), listing(slice(None, None, -1)))


@pytest.mark.parametrize(
    "other",
    [listing(slice(1, None)), listing(xmin=1)],
    ids=["a row is gone", "rows were updated"],
)
def test_changes_are_seen(other: Listing) -> None:
    assert not is_same(listing(), other)
