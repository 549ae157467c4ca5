"""How much a backend grows that has used pgembed."""

from __future__ import annotations

import re
from pathlib import Path

from tests.benchmarks.calls.calling import Caller

_CALLS = 1000


def measure(callers: dict[str, Caller], texts: list[str]) -> None:
    """Print the memory of new backends before and after a thousand calls."""
    print(f"{'backend, MB':18}{'before':>8}{'1 call':>8}{_CALLS:8}{'growth':>12}")
    for name, caller in callers.items():
        with caller.another_session() as session:
            pid = session.connection.info.backend_pid
            session.connection.execute("SELECT 1")
            sizes = [_own_memory(pid)]
            session.embed_query(texts[0])
            sizes.append(_own_memory(pid))
            for i in range(1, _CALLS):
                session.embed_query(f"{i} {texts[i % len(texts)]}")
            sizes.append(_own_memory(pid))
        columns = "".join(f"{size / 1e6:8.1f}" for size in sizes)
        print(f"{name:18}{columns}{(sizes[-1] - sizes[0]) / 1e6:12.1f}")


def _own_memory(pid: int) -> int:
    """Return a process's share of memory in bytes, without the server's shared memory.

    What it maps alone counts whole, libpython's pages among them.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    sizes = dict(re.findall(r"^(Pss_Anon|Pss_File): +(\d+) kB$", text, re.MULTILINE))
    return sum(int(size) << 10 for size in sizes.values())
