"""What a worker's process runs: ``python -m pgembed.worker.child ROLE LOG_LEVEL``.

Its settings come as one line of JSON on standard input, which stays open: its end means
that the supervisor has died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, get_type_hints

import psycopg

from pgembed import logs
from pgembed.errors import PgembedError
from pgembed.settings import Settings
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.spawn import read_line

_log = logging.getLogger(__name__)

# Calls come before bulk work: on few cores, embedding yields to them.
NICENESS = {"embed": 5, "once": 5, "batches": 0, "calls": 0}
_ORPHAN_SECONDS = 5.0
_STDIN = 0


def dump(settings: Settings) -> bytes:
    """Return the line that tells a child its settings."""
    values = dataclasses.asdict(settings)
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
    return json.dumps(plain).encode() + b"\n"


def parse(line: bytes) -> Settings:
    """Return the settings of a line written by dump."""
    hints = get_type_hints(Settings)
    values: dict[str, Any] = json.loads(line)
    return Settings(**{name: hints[name](value) for name, value in values.items()})


def main(role: str, level: str) -> int:
    """Run as a child of the supervisor; return the exit status."""
    settings = parse(read_line())
    logs.configure(level, settings.log_format)
    lifetime = Lifetime(settings.drain_seconds)
    signal.signal(signal.SIGTERM, lambda *_: lifetime.stop())
    # A terminal sends Ctrl-C to the children, too: the supervisor passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifetime,), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(NICENESS[role])
    try:
        with contextlib.suppress(Stopped):
            _work(role, settings, lifetime)
    except (PgembedError, psycopg.Error) as error:
        _log.error("%s", error)
        return 1
    except Exception:
        _log.exception("the %s process failed", role)
        return 1
    return 0


def _work(role: str, settings: Settings, lifetime: Lifetime) -> None:
    # Loaded here, and by one kind of process each.
    if role == "calls":
        from pgembed.worker.callprocess import serve_calls

        serve_calls(settings, lifetime)
    elif role == "batches":
        from pgembed.worker.batchprocess import carry_out_batches

        carry_out_batches(settings, lifetime)
    else:
        from pgembed.worker.loop import EmbeddingLoop

        EmbeddingLoop(settings, lifetime, once=role == "once").run()


def _watch(lifetime: Lifetime) -> None:
    """Stop when the supervisor is gone, and see to it that this succeeds."""
    while os.read(_STDIN, 1024):
        pass
    _log.warning("the supervisor is gone: stopping")
    lifetime.stop(at_once=True)
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    logging.shutdown()
    # A model may still run in a thread that cannot be interrupted.
    os._exit(status)
