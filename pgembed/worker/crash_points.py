"""Named points in a worker's work at which a test stops the process.

``PGEMBED_STOP_AT`` names one of POINTS; the process stops itself, as Ctrl-Z does, the
first time it gets there, and whoever watches it kills it or lets it go on. The variable
is read once; without it a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Literal, get_args

Point = Literal[
    "claimed", "read", "embedded", "before_commit", "after_commit", "renewing"
]
POINTS = get_args(Point)

_armed = os.environ.get("PGEMBED_STOP_AT", "")


def reached(point: Point) -> None:
    """Stop the process here, once, if the environment asked for it."""
    global _armed
    if point == _armed:
        _armed = ""
        # Sent to this thread, not to the process: it goes no step further.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
