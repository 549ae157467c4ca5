"""One answer from several statements that may each see other rows.

In a READ COMMITTED transaction every statement has a snapshot of its own. What they
found together is true of one moment all the same, if the rows were the same before
the first and after the last of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from pgembed.batch.predicates import Listing, read_listing
from pgembed.batch.rows import Tables
from pgembed.batch.source import Source, sees_one_snapshot
from pgembed.errors import PgembedError
from pgembed.postgres.connection import Connection

Answer = TypeVar("Answer")

_ATTEMPTS = 4


def until_steady(
    connection: Connection,
    source: Source,
    search: Callable[[], Answer],
    *,
    rows: int = 0,
    memory: int = 1 << 29,
) -> Answer:
    """Return what *search* does, made at a time when no vector of *source* changed.

    It is asked again when rows have changed meanwhile; PgembedError after some times.
    """
    if sees_one_snapshot(connection):
        return search()

    def listing() -> Listing:
        return read_listing(connection, source, Tables(), rows=rows, memory=memory)

    before = listing()
    for _ in range(_ATTEMPTS):
        try:
            with connection.transaction():
                found = search()
        except Exception:
            now = listing()
            if is_same(before, now):
                raise
        else:
            now = listing()
            if is_same(before, now):
                return found
        before = now
    raise PgembedError(
        f"rows of {source.target} changed each of the {_ATTEMPTS} times that the batch "
        "ran: run it in a REPEATABLE READ transaction, in which it sees one snapshot"
    )


def is_same(one: Listing, other: Listing) -> bool:
    """Whether both list the same versions of the same rows, in any order."""
    if len(one.ids) != len(other.ids):
        return False
    # Parallel workers list rows in any order.
    first, second = np.argsort(one.ids), np.argsort(other.ids)
    return np.array_equal(one.ids[first], other.ids[second]) and np.array_equal(
        one.xmins[first], other.xmins[second]
    )
