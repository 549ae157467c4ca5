"""What a call costs beside the model: ``python -m tests.benchmarks.embed_query``.

``SELECT pgembed.embed_query(...)`` from a client through dblink, against session.run of
the same texts in this process with the same number of threads; then once more while
a worker embeds a table on all cores. Milliseconds; every text is asked once.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence

from pgembed.models.registry import store_model
from pgembed.models.session import Model
from pgembed.postgres.connection import Connection, connect, fetch_one
from pgembed.settings import Settings
from pgembed.worker.callprocess import THREADS
from pgembed.worker.supervisor import run_worker
from tests.benchmarks.insert_to_vector import installed_server
from tests.harness.minilm import minilm_candidate
from tests.harness.retrieval import cranfield
from tests.integration.worker.running import wait_until

_TURN = 20


def main() -> None:
    """Measure idle, then during a backfill, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    arguments = parser.parse_args()
    texts = cranfield()
    queries = list(texts.queries.values())[: arguments.calls]
    with installed_server() as dsn, connect(dsn, purpose="benchmark") as connection:
        store_model(connection, "minilm", minilm_candidate())
        stop = threading.Event()
        worker = threading.Thread(
            target=lambda: run_worker(Settings(dsn=dsn), stop=stop)
        )
        worker.start()
        try:
            measure(connection, queries, list(texts.documents.values()))
        finally:
            stop.set()
            worker.join()


def measure(
    connection: Connection, queries: Sequence[str], documents: Sequence[str]
) -> None:
    """Print the rows of the table."""
    model = bare_model()
    connection.execute("SET pgembed.call_timeout = '60s'")

    def call(text: str) -> None:
        # Binary: reading a vector's text takes the client 0.2 ms.
        query = "SELECT pgembed.embed_query('minilm', %s)"
        row = connection.execute(query, (text,), binary=True).fetchone()
        assert row is not None

    call("so that the worker has loaded the model")
    print(f"{'':36}{'p10':>8}{'median':>8}{'p95':>8}   ms")
    bare, idle = in_turns(queries, lambda text: model.embed([text], "query"), call)
    show(f"session.run, {THREADS} thread(s)", bare)
    show("embed_query", idle)
    begin_backfill(connection, documents)
    busy = [timed(call, text) for text in queries]
    assert not is_drained(connection), "the backfill ended too soon: use fewer calls"
    show("embed_query during a backfill", busy)
    over = statistics.median(b - a for a, b in zip(bare, idle, strict=True))
    print(f"idle, over session.run: {over:.2f} ms (median)")
    print(f"backfill over idle: {p95(busy) / p95(idle):.2f} (p95)")


def bare_model() -> Model:
    """Return MiniLM with as many threads as the process that answers calls has."""
    files = minilm_candidate()
    return Model.load(
        files.files["model.onnx"],
        files.files["tokenizer.json"],
        files.options,
        threads=THREADS,
    )


def in_turns(
    texts: Sequence[str],
    first: Callable[[str], object],
    second: Callable[[str], object],
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of both on each text, taken in turns of some texts.

    Not of one: each would find the caches full of the other's copy of the model.
    """
    a: list[float] = []
    b: list[float] = []
    for start in range(0, len(texts), _TURN):
        turn = texts[start : start + _TURN]
        for action, times in ((first, a), (second, b)):
            action("the first of a turn finds cold caches")
            times += [timed(action, text) for text in turn]
    return a, b


def timed(action: Callable[[str], object], text: str) -> float:
    """Return how many milliseconds an action takes."""
    started = time.perf_counter()
    action(text)
    return (time.perf_counter() - started) * 1000


def begin_backfill(connection: Connection, documents: Sequence[str]) -> None:
    """Have a table embedded, and wait until that goes on."""
    connection.execute("CREATE TABLE docs (id serial PRIMARY KEY, body text)")
    for _ in range(4):
        connection.execute(
            "INSERT INTO docs (body) SELECT unnest(%s::text[])", [list(documents)]
        )
    connection.execute("SELECT pgembed.create_embedding('docs', 'body', 'minilm')")
    query = "SELECT count(body_embedding) > 0 FROM docs"
    wait_until(lambda: fetch_one(connection, query)[0])


def is_drained(connection: Connection) -> bool:
    """Whether all rows have their vectors."""
    query = "SELECT count(*) = count(body_embedding) FROM docs"
    return bool(fetch_one(connection, query)[0])


def p95(values: Sequence[float]) -> float:
    """Return what 95 of 100 do not exceed."""
    return statistics.quantiles(values, n=20)[-1]


def show(name: str, values: Sequence[float]) -> None:
    """Print a row."""
    median = statistics.median(values)
    p10 = statistics.quantiles(values, n=10)[0]
    print(f"{name:36}{p10:8.2f}{median:8.2f}{p95(values):8.2f}")


if __name__ == "__main__":
    main()
