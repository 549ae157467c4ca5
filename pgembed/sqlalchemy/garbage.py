"""The garbage collector, kept from what it would go through in vain.

A statement consists of a hundred objects. With 5,000 of them a full collection takes
0.3 s, and making many new objects starts one collection after the other.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Make many objects that last, without looking for cycles among them.

    They count as old at once: the next collection would go through all of them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            with spared():
                pass
            gc.enable()


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Collect only among the objects that are made in the block; others become old.

    Unless the application has frozen objects of its own, which thawing would undo.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
