"""Writers on hot rows beside workers: ``python -m tests.benchmarks.write_load``.

Sixteen connections of pgbench change the content of random rows among a few hundred, as
fast as they can, while nobody embeds and beside four worker processes, in turns on one
server, now the one first and now the other; each round goes on with the rows the one
before has left. Medians of the rounds. The exit status is 1 when a deadlock was seen,
the queue held more jobs than there are rows, or the drained table is not what the model
says.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pgembed.models.session import Model
from pgembed.postgres import system
from pgembed.postgres.connection import Connection, connect, fetch_all, fetch_one
from tests.benchmarks.insert_to_vector import installed_server
from tests.harness import tiny_models
from tests.harness.oracle import assert_converged
from tests.integration.worker.running import (
    add_tiny,
    child_process,
    declare,
    embed_all,
    is_drained,
    wait_until,
)

_SCRIPT = r"""
\set id random(1, {rows})
\set word random(1, 1000000)
UPDATE docs SET body = 'the red dog eats ' || :word WHERE id = :id;
"""
_SAMPLE_SECONDS = 0.1
_WARM_UP_SECONDS = 5
_DEPTH = """
    SELECT count(*) FILTER (WHERE pgembed_available_at IS NOT NULL), count(*)
    FROM pgembed.job_1
"""
_WAITS = """
    SELECT application_name, coalesce(wait_event_type || ':' || wait_event, 'running')
    FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()
"""


@dataclasses.dataclass(frozen=True)
class Load:
    """What the writers do."""

    program: Path
    """pgbench, of the version of the server or later."""
    writers: int
    rows: int
    limit: str
    """pgbench's option for when it ends, --time or --transactions (of each writer)."""


@dataclasses.dataclass
class Round:
    """What one round of writing gave."""

    rate: float
    """Transactions per second of all writers together."""
    failed: int
    """Transactions that ended with an error, deadlocks among them."""
    waiting: int
    """The most jobs that waited or were held."""
    jobs: int
    """The most jobs that there were."""
    embedded: int
    """Rows that workers wrote."""
    waits: collections.Counter[tuple[str, str]]
    """How often which client was seen waiting for what, or running."""


def main() -> int:
    """Run the rounds, print what they gave and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--no-fsync", action="store_true", help="take the disk out")
    parser.add_argument("--waits", action="store_true", help="print wait events too")
    arguments = parser.parse_args()
    settings = {"fsync": "off"} if arguments.no_fsync else {}
    load = Load(
        program=system.binaries(system.Account.current()) / "pgbench",
        writers=arguments.writers,
        rows=arguments.rows,
        limit=f"--time={arguments.seconds}",
    )
    with (
        tempfile.TemporaryDirectory(prefix="pgembed-model-") as folder,
        installed_server(settings) as dsn,
        connect(dsn, purpose="benchmark") as connection,
    ):
        model = add_tiny(connection, tiny_models.good_model(Path(folder)))
        prepare(connection, dsn, arguments.rows)
        alone: list[Round] = []
        beside: list[Round] = []

        def write_alone() -> None:
            alone.append(write_anew(connection, dsn, load))

        def write_beside() -> None:
            with working(dsn, arguments.workers, Path(folder, "cache")):
                beside.append(write_anew(connection, dsn, load))
                wait_until(lambda: is_drained(connection))
            assert_converged(connection, model)

        warm_up = dataclasses.replace(load, limit=f"--time={_WARM_UP_SECONDS}")
        write_anew(connection, dsn, warm_up)
        turns = [write_alone, write_beside]
        for _ in range(arguments.rounds):
            for turn in turns:
                turn()
            turns.reverse()
        return report(connection, alone, beside, arguments, model)


def prepare(connection: Connection, dsn: str, rows: int) -> None:
    """Create the table with its embedding, and embed it once."""
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute(
        "INSERT INTO docs SELECT i, 'the dog ' || i FROM generate_series(1, %s) AS i",
        (rows,),
    )
    declare(connection, "docs")
    embed_all(dsn)


@contextlib.contextmanager
def working(dsn: str, count: int, cache: Path) -> Iterator[None]:
    """Run so many embedding processes during the block, ready when it begins."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(
                child_process("embed", dsn, poll_seconds=2.0, cache_dir=cache)
            )
        with connect(dsn, purpose="benchmark") as connection:
            query = "SELECT count(*) FILTER (WHERE idle) FROM pgembed.workers"
            wait_until(lambda: fetch_one(connection, query)[0] == count)
        yield
        with connect(dsn, purpose="benchmark") as connection:
            connection.execute("DELETE FROM pgembed.worker")


def write_anew(connection: Connection, dsn: str, load: Load) -> Round:
    """Write after what earlier rounds have left was cleaned up."""
    connection.execute("VACUUM")
    connection.execute("CHECKPOINT")
    return write(connection, dsn, load)


def write(connection: Connection, dsn: str, load: Load) -> Round:
    """Let the writers write, and look at the queue meanwhile."""
    before = embedded(connection)
    found = Round(0, 0, 0, 0, 0, collections.Counter())
    with pgbench(dsn, load) as process:
        while process.poll() is None:
            waiting, jobs = fetch_one(connection, _DEPTH)
            found.waiting = max(found.waiting, waiting)
            found.jobs = max(found.jobs, jobs)
            found.waits.update(fetch_all(connection, _WAITS))
            time.sleep(_SAMPLE_SECONDS)
        output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"pgbench ended with {process.returncode}:\n{output}")
    found.rate = float(_number(r"tps = ([\d.]+)", output))
    found.failed = int(_number(r"number of failed transactions: (\d+)", output))
    found.embedded = embedded(connection) - before
    return found


def embedded(connection: Connection) -> int:
    """Return how many rows workers have written in the last ten minutes."""
    query = "SELECT coalesce(sum(rows), 0) FROM pgembed.progress"
    return int(fetch_one(connection, query)[0])


@contextlib.contextmanager
def pgbench(dsn: str, load: Load) -> Iterator[subprocess.Popen[str]]:
    """Run pgbench; it is one process and thread, so that it takes little of the CPU."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_SCRIPT.format(rows=load.rows))
        script.flush()
        options = [f"--client={load.writers}", load.limit, f"--file={script.name}"]
        process = subprocess.Popen(
            [str(load.program), *options, "--no-vacuum", "--protocol=prepared", dsn],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _number(pattern: str, output: str) -> str:
    match = re.search(pattern, output)
    if match is None:
        raise RuntimeError(f"pgbench did not print {pattern}:\n{output}")
    return match[1]


def report(
    connection: Connection,
    alone: list[Round],
    beside: list[Round],
    arguments: argparse.Namespace,
    model: Model,
) -> int:
    """Print rates, deadlocks and the queue's depth; return the exit status."""
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    deadlocks = int(fetch_one(connection, query)[0])
    rounds = [*alone, *beside]
    failed = sum(each.failed for each in rounds)
    jobs = max(each.jobs for each in rounds)
    rates = [statistics.median(r.rate for r in some) for some in (alone, beside)]
    done = statistics.median(each.embedded for each in beside) / arguments.seconds
    print(
        f"{arguments.writers} writers on {arguments.rows} rows, {arguments.rounds} "
        f"rounds of {arguments.seconds} s, {model.dimensions} dimensions"
    )
    print(f"without workers    {rates[0]:9.0f} transactions/s  {_each(alone)}")
    print(
        f"beside {arguments.workers} workers   {rates[1]:9.0f} transactions/s  "
        f"{_each(beside)}; {done:.0f} rows/s embedded"
    )
    print(f"ratio              {rates[1] / rates[0]:9.3f}")
    print(f"deadlocks {deadlocks}, transactions that failed {failed}")
    print(
        f"jobs at most {jobs}, of {arguments.rows} rows; waiting or held at most "
        f"{max(each.waiting for each in rounds)}"
    )
    if arguments.waits:
        _print_waits(alone, "without workers")
        _print_waits(beside, "beside workers")
    return int(bool(deadlocks or failed or jobs > arguments.rows))


def _each(rounds: list[Round]) -> str:
    return "(" + ", ".join(f"{each.rate:.0f}" for each in rounds) + ")"


def _print_waits(rounds: list[Round], title: str) -> None:
    waits = sum((each.waits for each in rounds), collections.Counter[tuple[str, str]]())
    print(title)
    for (client, event), count in waits.most_common(12):
        print(f"  {count / waits.total():6.1%}  {client:20} {event}")


if __name__ == "__main__":
    sys.exit(main())
