"""The garbage collector is left as it was found."""

from __future__ import annotations

import contextlib
import gc

import pytest

from pgembed.sqlalchemy.garbage import spared, uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_uncollected(enabled: bool) -> None:
    """Nested as well, and after an error."""
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(KeyError), uncollected(), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_spared() -> None:
    """What is there is out of sight; what comes is collected."""
    assert gc.get_freeze_count() == 0
    with contextlib.suppress(KeyError), spared(), spared():
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < gc.get_freeze_count()
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_what_the_application_froze_stays_frozen() -> None:
    """A server that forks, say."""
    gc.freeze()
    try:
        with spared():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
