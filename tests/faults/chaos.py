"""Chaos: writers, workers that are killed and stalled, a server that is restarted.

``make chaos DURATION=600 SEED=7`` runs it and prints what happened in one line. The
exit status is 1 unless nothing was stale, lost, orphaned or deadlocked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import psycopg

from pgembed.embeddings.chunking import Chunker
from pgembed.models.session import Model
from pgembed.postgres.connection import connect, fetch_all, fetch_one, snapshot
from tests.harness import tiny_models
from tests.harness.oracle import TOLERANCE, unsettled
from tests.harness.own_server import OwnServer, own_server
from tests.harness.processes import WorkerProcess, worker_process
from tests.integration.worker.running import Connection, add_tiny

WORKERS = 4
WRITERS = 3
HOT_ROWS = 5
OWN_ROWS = 40
CHUNK_TOKENS = 12
LEASE_SECONDS = 1.0
DRAIN_SECONDS = 120.0
MAX_ATTEMPTS = 100
WORDS = ("cat", "dog", "man", "eats", "food", "red", "blue", "sleeps", "12", "x7")


@dataclasses.dataclass
class Report:
    """What was done, and what came of it; the last four must be 0."""

    operations: int = 0
    rollbacks: int = 0
    kills: int = 0
    stalls: int = 0
    restarts: int = 0
    checks: int = 0
    stale: int = 0
    lost: int = 0
    orphans: int = 0
    deadlocks: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.stale or self.lost or self.orphans or self.deadlocks)

    def __str__(self) -> str:
        return ", ".join(f"{n} {name}" for name, n in dataclasses.asdict(self).items())


def text(dice: random.Random) -> str | None:
    """Return some words; sometimes none, sometimes so many that they are cut."""
    size = dice.choice((0, 1, 3, 5, 8, 40))
    words = " ".join(dice.choice(WORDS) for _ in range(size))
    return words if size or dice.random() < 0.5 else None


class Writer(threading.Thread):
    """A user: transactions of many rows of its own, and single ones of the hot rows.

    No two writers lock the same rows in one transaction, so that every deadlock is one
    with a worker.
    """

    def __init__(self, dsn: str, number: int, seed: int, stop: threading.Event) -> None:
        super().__init__(name=f"writer {number}")
        self._dsn = dsn
        self._dice = random.Random(f"{seed} writer {number}")
        self._stop_it = stop
        self._ids = range(1000 * (number + 1), 1000 * (number + 1) + OWN_ROWS)
        self.operations = 0
        self.rollbacks = 0
        self.errors: list[str] = []

    def run(self) -> None:
        """Write until told to stop; a lost connection is opened anew."""
        while not self._stop_it.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as connection:
                    while not self._stop_it.is_set():
                        self._act(connection)
                        self._stop_it.wait(self._dice.uniform(0, 0.01))
            except psycopg.OperationalError as error:
                if error.sqlstate == "40P01":
                    self.errors.append(str(error))
                self._stop_it.wait(0.05)

    def _act(self, connection: Connection) -> None:
        action = self._dice.choice((self._hot, self._hot, self._rows, self._rekey))
        action(connection)
        self.operations += 1

    def _hot(self, connection: Connection) -> None:
        connection.execute(
            "INSERT INTO docs (id, body) VALUES (%s, %s) "
            "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (self._dice.randrange(HOT_ROWS), text(self._dice)),
        )

    def _rows(self, connection: Connection) -> None:
        ids = self._dice.sample(self._ids, self._dice.randint(1, 12))
        undo = self._dice.random() < 0.25
        with connection.transaction(force_rollback=undo):
            for key in ids:
                # A savepoint, and sometimes a rollback to it.
                with connection.transaction(force_rollback=self._dice.random() < 0.1):
                    self._change(connection, key)
        self.rollbacks += undo

    def _change(self, connection: Connection, key: int) -> None:
        if self._dice.random() < 0.2:
            connection.execute("DELETE FROM docs WHERE id = %s", (key,))
            return
        connection.execute(
            "INSERT INTO docs (id, body) VALUES (%s, %s) "
            "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (key, text(self._dice)),
        )

    def _rekey(self, connection: Connection) -> None:
        old, new = self._dice.sample(self._ids, 2)
        with connection.transaction():
            connection.execute("DELETE FROM docs WHERE id = %s", (new,))
            connection.execute("UPDATE docs SET id = %s WHERE id = %s", (new, old))


class Crew:
    """Worker processes, one of which is killed or stalled now and then."""

    def __init__(self, dsn: str, folder: Path, dice: random.Random) -> None:
        self._dsn = dsn
        self._folder = folder
        self._dice = dice
        self._stack = contextlib.ExitStack()
        self._workers: list[WorkerProcess] = []
        self._stalled: dict[int, float] = {}

    def __enter__(self) -> Crew:
        self.fill_up()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def fill_up(self) -> None:
        """Start a process for each that is gone."""
        self._workers = [w for w in self._workers if w.process.poll() is None]
        while len(self._workers) < WORKERS:
            start = worker_process(
                self._dsn,
                self._folder,
                lease_seconds=LEASE_SECONDS,
                claim_rows=16,
                max_attempts=MAX_ATTEMPTS,
            )
            self._workers.append(self._stack.enter_context(start))

    def kill(self) -> None:
        """Send SIGKILL to one of them."""
        self._dice.choice(self._workers).kill()
        self.fill_up()

    def stall(self) -> None:
        """Stop one for longer than its lease."""
        worker = self._dice.choice(self._workers)
        if worker.pid not in self._stalled:
            seconds = LEASE_SECONDS * self._dice.uniform(1.2, 2.5)
            worker.halt()
            self._stalled[worker.pid] = time.monotonic() + seconds

    def wake(self, *, all_of_them: bool = False) -> None:
        """Let those go on whose time has come."""
        for worker in self._workers:
            due = self._stalled.get(worker.pid)
            if due is not None and (all_of_them or time.monotonic() >= due):
                del self._stalled[worker.pid]
                worker.go_on()


class Deadlocks:
    """Counts what the server logs, also when it starts a new log."""

    def __init__(self, server: OwnServer) -> None:
        self._server = server
        self._seen = 0
        self.count = 0

    def look(self) -> None:
        """Read what was logged since the last look."""
        log = self._server.log()
        start = self._seen if len(log) >= self._seen else 0
        self.count += log.count("deadlock detected", start)
        self._seen = len(log)


def soak(duration: float, seed: int) -> Report:
    """Run for so many seconds, let the workers drain, and count."""
    with (
        own_server() as server,
        tempfile.TemporaryDirectory(prefix="pgembed-chaos-") as folder,
        server.database(server.installed_template()) as name,
    ):
        return _soak(server, server.dsn(name), Path(folder), duration, seed)


def _soak(
    server: OwnServer, dsn: str, folder: Path, duration: float, seed: int
) -> Report:
    report = Report()
    deadlocks = Deadlocks(server)
    stop = threading.Event()
    writers = [Writer(dsn, number, seed, stop) for number in range(WRITERS)]
    with connect(dsn) as connection:
        model = _prepare(connection, folder)
    with Crew(dsn, folder, random.Random(f"{seed} crew")) as crew:
        try:
            for writer in writers:
                writer.start()
            _disturb(report, server, crew, deadlocks, duration, seed, dsn, model)
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        crew.wake(all_of_them=True)
        with connect(dsn) as connection:
            report.lost = _drain(connection)
    with connect(dsn) as connection:
        _judge(report, connection, model)
    deadlocks.look()
    report.deadlocks = max(deadlocks.count, sum(len(w.errors) for w in writers))
    report.operations = sum(writer.operations for writer in writers)
    report.rollbacks = sum(writer.rollbacks for writer in writers)
    return report


def _prepare(connection: Connection, folder: Path) -> Model:
    model = add_tiny(connection, tiny_models.good_model(folder / "tiny"))
    connection.execute(
        f"""
        CREATE TABLE docs (id int PRIMARY KEY, body text);
        SELECT pgembed.create_embedding('docs', 'body', 'tiny', index => 'none');
        SELECT pgembed.create_embedding('docs', 'body', 'tiny', name => 'cut',
            chunk_tokens => {CHUNK_TOKENS}, index => 'none');
        """.encode()
    )
    return model


def _disturb(
    report: Report,
    server: OwnServer,
    crew: Crew,
    deadlocks: Deadlocks,
    duration: float,
    seed: int,
    dsn: str,
    model: Model,
) -> None:
    """Kill, stall, restart and look, at random, until the time is over."""
    dice = random.Random(f"{seed} disturbances")
    end = time.monotonic() + duration
    restarts = _moments(duration, dice)
    while time.monotonic() < end:
        time.sleep(dice.uniform(0.2, 0.8))
        crew.wake()
        if restarts and time.monotonic() >= restarts[0]:
            restarts.pop(0)
            server.stop_immediately()
            deadlocks.look()
            server.start()
            report.restarts += 1
        elif dice.random() < 0.5:
            crew.kill()
            report.kills += 1
        elif dice.random() < 0.5:
            crew.stall()
            report.stalls += 1
        else:
            with connect(dsn) as connection:
                report.stale += len(stale(connection, model))
            report.checks += 1


def _moments(duration: float, dice: random.Random) -> list[float]:
    """Return when to restart: about every eight seconds, at least once."""
    count = max(1, int(duration / 8))
    now = time.monotonic()
    return sorted(now + dice.uniform(0.1, 0.9) * duration for _ in range(count))


def _drain(connection: Connection) -> int:
    """Wait until nothing is pending; return how many jobs never were done."""
    deadline = time.monotonic() + DRAIN_SECONDS
    query = "SELECT coalesce(sum(pending), 0) FROM pgembed.embedding_status"
    while time.monotonic() < deadline:
        if fetch_one(connection, query)[0] == 0:
            return 0
        time.sleep(0.1)
    return int(fetch_one(connection, query)[0])


def _judge(report: Report, connection: Connection, model: Model) -> None:
    """Count what the drained database holds that it should not."""
    report.stale += len(stale(connection, model))
    report.lost += _without_job(connection)
    for name in ("docs_body", "cut"):
        report.orphans += unsettled(connection, name)["orphans"]
    orphans = "SELECT count(*) FROM cut_chunk AS c LEFT JOIN docs AS d USING (id)"
    report.orphans += fetch_one(connection, f"{orphans} WHERE d.id IS NULL")[0]


def _without_job(connection: Connection) -> int:
    """Count rows that no worker would ever look at again if they changed."""
    query = """
        SELECT count(*) FILTER (WHERE a.id IS NULL)
            + count(*) FILTER (WHERE b.id IS NULL)
        FROM docs AS d LEFT JOIN pgembed.job_1 AS a USING (id)
        LEFT JOIN pgembed.job_2 AS b USING (id)
    """
    return int(fetch_one(connection, query)[0])


def stale(connection: Connection, model: Model) -> list[str]:
    """Return rows that no job is pending for and whose vectors are not current."""
    with snapshot(connection):
        return [*_stale_rows(connection, model), *_stale_chunks(connection, model)]


def _done(job: int) -> str:
    return f"""
        EXISTS (SELECT FROM pgembed.job_{job} AS j WHERE j.id = d.id
            AND j.pgembed_available_at IS NULL AND j.pgembed_error IS NULL)
        AND NOT EXISTS (SELECT FROM pgembed.job_{job} AS j WHERE j.id = d.id
            AND j.pgembed_available_at IS NOT NULL)
    """


def _stale_rows(connection: Connection, model: Model) -> Iterator[str]:
    query = f"SELECT d.id, d.body, d.body_embedding FROM docs AS d WHERE {_done(1)}"
    for key, body, vector in fetch_all(connection, query):
        if not _same(model, _contents(body), [] if vector is None else [vector]):
            yield f"row {key}"


def _stale_chunks(connection: Connection, model: Model) -> Iterator[str]:
    query = f"""
        SELECT d.id, d.body, c.texts, c.vectors
        FROM docs AS d LEFT JOIN (
            SELECT id, array_agg(content ORDER BY chunk) AS texts,
                array_agg(embedding ORDER BY chunk) AS vectors
            FROM cut_chunk GROUP BY id
        ) AS c USING (id)
        WHERE {_done(2)}
    """
    chunker = Chunker.fitting(model, CHUNK_TOKENS, 0)
    for key, body, texts, vectors in fetch_all(connection, query):
        wanted = [c for content in _contents(body) for c in chunker.split(content)]
        found = [] if vectors is None else list(vectors)
        if (texts or []) != wanted or not _same(model, wanted, found):
            yield f"chunks of row {key}"


def _contents(body: str | None) -> list[str]:
    return [body] if body is not None and body.strip() else []


def _same(model: Model, texts: list[str], vectors: list[object]) -> bool:
    if len(texts) != len(vectors):
        return False
    wanted = model.embed(texts)
    return not texts or bool(np.abs(np.array(vectors) - wanted).max() < TOLERANCE)


@click.command()
@click.option("--duration", default=600.0, show_default=True, help="Seconds.")
@click.option("--seed", default=None, type=int, help="Default: a new one, printed.")
def main(duration: float, seed: int | None) -> None:
    """Run the soak and print what happened."""
    seed = random.randrange(10_000) if seed is None else seed
    click.echo(f"chaos for {duration:.0f} s with seed {seed}")
    report = soak(duration, seed)
    click.echo(str(report))
    sys.exit(0 if report.is_clean else 1)


if __name__ == "__main__":
    main()
