"""Whether the worker in this container has all its processes; the exit status says so.

A database that does not answer is not the worker's fault: it waits, and is healthy.
"""

from __future__ import annotations

import os
import sys
import urllib.request

_ROLES = ("embed", "calls")
_METRIC = "pgembed_process_resident_memory_bytes"


def missing(metrics: str) -> list[str]:
    """Return the kinds of processes that the metrics do not know."""
    lines = [line for line in metrics.splitlines() if line.startswith(f"{_METRIC}{{")]
    return [r for r in _ROLES if not any(f'role="{r}"' in line for line in lines)]


def main() -> int:
    """Ask the worker for that metric alone: others wait for the database."""
    port = os.environ.get("PGEMBED_METRICS_PORT", "9646")
    address = f"http://127.0.0.1:{port}/metrics?name[]={_METRIC}"
    with urllib.request.urlopen(address, timeout=8) as answer:
        absent = missing(answer.read().decode())
    if absent:
        sys.stderr.write(f"no process that does {' or '.join(absent)}\n")
    return bool(absent)


if __name__ == "__main__":
    sys.exit(main())
