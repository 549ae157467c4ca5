"""What a call costs, by transport: ``python -m tests.benchmarks.calls``.

``SELECT pgembed.embed_query(...)`` from a client on Debian's PostgreSQL, over a socket
in PL/Python and over dblink, against session.run of the same texts in this process,
with as many threads as the worker has. Milliseconds; every text is asked once, in
turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator

from pgembed.models.registry import store_model
from pgembed.postgres.connection import connect, fetch_one
from pgembed.postgres.transports import Wish
from tests.benchmarks.embed_query import bare_model, p95, timed
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
    model = bare_model()
    actions: dict[str, Callable[[str], object]] = {
        "session.run": lambda text: model.embed([text], "query")
    }
    with running_debian_server() as server, contextlib.ExitStack() as stack:
        for transport in _TRANSPORTS:
            actions[transport] = stack.enter_context(calling(server, transport))
        show(in_turns(texts, actions))


@contextlib.contextmanager
def calling(server: Databases, transport: Wish) -> Iterator[Callable[[str], object]]:
    """Yield a call of embed_query over a transport, with a worker that answers."""
    template = server.installed_template(transport)
    with server.database(template) as name, connect(server.dsn(name)) as connection:
        store_model(connection, "minilm", minilm_candidate())
        connection.execute("SET pgembed.call_timeout = '60s'")

        def call(text: str) -> object:
            query = "SELECT pgembed.embed_query('minilm', %s)"
            return fetch_one(connection, query, (text,))[0]

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


def show(taken: dict[str, list[float]]) -> None:
    """Print a row for each way, and what it adds to the model, text by text."""
    print(f"{'ms':14}{'p10':>8}{'median':>8}{'p95':>8}{'over session.run':>19}")
    bare = taken["session.run"]
    for name, values in taken.items():
        p10, median = statistics.quantiles(values, n=10)[0], statistics.median(values)
        row = f"{name:14}{p10:8.2f}{median:8.2f}{p95(values):8.2f}"
        over = statistics.median(a - b for a, b in zip(values, bare, strict=True))
        print(row + (f"{over:19.2f}" if values is not bare else ""))


if __name__ == "__main__":
    main()
