"""A hundred backends that call at once: throughput, fairness, errors."""

from __future__ import annotations

import collections
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.benchmarks.calls.calling import TIMEOUT, Caller
from tests.benchmarks.embed_query import p95

_WARM_UP = 8  # seconds: each backend starts Python, and connects
_SCRIPT = """
\\set n random(1, {count})
SELECT pg_catalog.length(pgembed.embed_query('model',
    (SELECT body FROM texts WHERE id = :n))::pg_catalog.text);
"""


def measure(
    callers: dict[str, Caller], texts: list[str], backends: int, seconds: int
) -> None:
    """Let pgbench's clients ask for one text after the other, and print a table.

    Beside it the rate of one caller who has the same texts embedded in one call.
    """
    columns = ("texts/s", "of batch", "least", "most", "p95 ms", "max ms", "errors")
    title = f"{backends} backends"
    print(f"{title:18}" + "".join(f"{column:>9}" for column in columns))
    for name, caller in callers.items():
        batched = _batched_rate(caller, texts)
        print(f"{name + ', one batch':18}{batched:9.0f}")
        caller.connection.execute(
            "CREATE TABLE texts AS SELECT ordinality AS id, body "
            "FROM unnest(%s::text[]) WITH ORDINALITY AS t (body)",
            (texts,),
        )
        caller.connection.execute("ALTER TABLE texts ADD PRIMARY KEY (id)")
        latencies, errors = _crowd(caller, len(texts), backends, seconds)
        counts = [len(values) for values in latencies.values()]
        counts += [0] * (backends - len(counts))
        together = [value for values in latencies.values() for value in values]
        rate = len(together) / seconds
        print(
            f"{name:18}{rate:9.0f}{rate / batched:9.2f}{min(counts):9}{max(counts):9}"
            f"{p95(together):9.0f}{max(together):9.0f}{errors:9}"
        )


def _batched_rate(caller: Caller, texts: list[str]) -> float:
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        caller.embed_batch(texts)
        rates.append(len(texts) / (time.perf_counter() - started))
    return statistics.median(rates)


def _crowd(
    caller: Caller, count: int, backends: int, seconds: int
) -> tuple[dict[int, list[float]], int]:
    """Return each client's latencies in milliseconds, and how many clients failed."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.sql"
        script.write_text(_SCRIPT.format(count=count), encoding="ascii")
        done = subprocess.run(
            [
                *(str(caller.server.programs / "pgbench"), "-n", "-f", str(script)),
                *("-c", str(backends), "-j", "2", "-T", str(_WARM_UP + seconds)),
                *("-M", "extended", "-l", "--log-prefix", f"{folder}/log"),
                caller.dsn,
            ],
            env={**os.environ, "PGOPTIONS": f"-c pgembed.call_timeout={TIMEOUT}"},
            capture_output=True,
            text=True,
        )
        rows = [
            [int(column) for column in line.split()]
            for path in Path(folder).glob("log.*")
            for line in path.read_text(encoding="ascii").splitlines()
        ]
        # Client, its transaction, microseconds, script, when it ended (two columns).
        ended = {tuple(row[:2]): row[4] + row[5] / 1e6 for row in rows}
        begin = max(ended.values()) - seconds
        latencies = collections.defaultdict(list)
        for row in rows:
            if ended[row[0], row[1]] > begin:
                latencies[row[0]].append(row[2] / 1000)
    return latencies, len(re.findall(r"client \d+ aborted", done.stderr))
