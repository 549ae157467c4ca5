"""What a call costs, by transport: ``python -m tests.benchmarks.calls``.

``SELECT pgembed.embed_query(...)`` from a client on Debian's PostgreSQL, over a socket
in PL/Python and over dblink, against session.run of the same texts in this process,
with as many threads as the worker has. Milliseconds; every text is asked once, in
turns. A tiny model of 8 dimensions costs next to nothing itself: what is left is the
call.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pgembed.models import sources
from pgembed.models.candidate import Candidate
from pgembed.models.registry import store_model
from pgembed.models.session import Model
from pgembed.postgres.connection import connect
from pgembed.postgres.transports import Wish
from pgembed.worker.callprocess import THREADS
from tests.benchmarks.embed_query import p95, timed
from tests.harness import tiny_models
from tests.harness.debian import HOW_TO_INSTALL, installed_major
from tests.harness.minilm import minilm_candidate
from tests.harness.retrieval import cranfield
from tests.harness.server import Databases, running_debian_server
from tests.integration.worker.running import child_process

_TURN = 20
_TRANSPORTS: tuple[Wish, ...] = ("plpython", "dblink")


def main() -> None:
    """Measure the transports in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    arguments = parser.parse_args()
    if installed_major() is None:
        sys.exit(f"no PostgreSQL with PL/Python here: {HOW_TO_INSTALL}")
    texts = list(cranfield().queries.values())[: arguments.calls]
    with tempfile.TemporaryDirectory() as folder, running_debian_server() as server:
        tiny = sources.resolve(str(tiny_models.good_model(Path(folder) / "tiny")))
        for name, candidate in (("tiny", tiny), ("minilm", minilm_candidate())):
            measure(server, name, candidate, texts)


def measure(
    server: Databases, name: str, candidate: Candidate, texts: list[str]
) -> None:
    """Measure one model, and print its table."""
    model = Model.load(
        candidate.files["model.onnx"],
        candidate.files["tokenizer.json"],
        candidate.options,
        threads=THREADS,
    )
    actions: dict[str, Callable[[str], object]] = {
        "session.run": lambda text: model.embed([text], "query")
    }
    with contextlib.ExitStack() as stack:
        for transport in _TRANSPORTS:
            call = calling(server, transport, candidate)
            actions[transport] = stack.enter_context(call)
        show(name, in_turns(texts, actions))


@contextlib.contextmanager
def calling(
    server: Databases, transport: Wish, candidate: Candidate
) -> Iterator[Callable[[str], object]]:
    """Yield a call of embed_query over a transport, with a worker that answers."""
    template = server.installed_template(transport)
    with server.database(template) as name, connect(server.dsn(name)) as connection:
        store_model(connection, "model", candidate)
        connection.execute("SET pgembed.call_timeout = '60s'")

        def call(text: str) -> object:
            # Binary: reading a vector's text takes the client 0.2 ms.
            query = "SELECT pgembed.embed_query('model', %s)"
            return connection.execute(query, (text,), binary=True).fetchone()

        with child_process("calls", server.dsn(name)):
            call("so that the worker has loaded the model")
            yield call


def in_turns(
    texts: list[str], actions: dict[str, Callable[[str], object]]
) -> dict[str, list[float]]:
    """Return each action's milliseconds on each text, taken in turns of some texts.

    Not of one: each would find the caches full of the others' copies of the model.
    """
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for start in range(0, len(texts), _TURN):
        for name, action in actions.items():
            action("the first of a turn finds cold caches")
            taken[name] += [timed(action, t) for t in texts[start : start + _TURN]]
    return taken


def show(name: str, taken: dict[str, list[float]]) -> None:
    """Print a row for each way, and what it adds to the model, text by text."""
    print(
        f"{name + ', ms':14}{'p10':>8}{'median':>8}{'p95':>8}{'over session.run':>19}"
    )
    bare = taken["session.run"]
    for name, values in taken.items():
        p10, median = statistics.quantiles(values, n=10)[0], statistics.median(values)
        row = f"{name:14}{p10:8.2f}{median:8.2f}{p95(values):8.2f}"
        over = statistics.median(a - b for a, b in zip(values, bare, strict=True))
        print(row + (f"{over:19.2f}" if values is not bare else ""))


if __name__ == "__main__":
    main()
