"""What calls cost, by transport: ``python -m tests.benchmarks.calls``.

On Debian's PostgreSQL, over a socket in PL/Python and over dblink, with as many threads
in this process as the worker has. One text: ``SELECT pgembed.embed_query(...)`` from a
client against session.run; a tiny model of 8 dimensions costs next to nothing itself:
what is left is the call. A thousand short texts: embed_batch against the bare loop of
the same batches. Memory: what a backend grows by. A crowd: a hundred backends at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from pgembed.models import sources
from pgembed.models.candidate import Candidate
from pgembed.models.session import Model
from pgembed.worker.callprocess import THREADS
from tests.benchmarks.calls import batches, crowd, latency, memory
from tests.benchmarks.calls.calling import TRANSPORTS, calling
from tests.harness import tiny_models
from tests.harness.debian import HOW_TO_INSTALL, installed_major
from tests.harness.minilm import minilm_candidate
from tests.harness.retrieval import cranfield
from tests.harness.server import Databases, running_debian_server

_PARTS = ("latency", "batches", "memory", "crowd")
_MODELS = ("tiny", "minilm")
_BATCH = 1000
_WORDS = 12  # of a short text


def main() -> None:
    """Measure the parts asked for, and print a table each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(_PARTS))
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15, help="of batches")
    parser.add_argument("--backends", type=int, default=100, help="of the crowd")
    parser.add_argument("--seconds", type=int, default=15, help="of the crowd")
    parser.add_argument("--transport", choices=TRANSPORTS, action="append")
    parser.add_argument("--model", choices=_MODELS, action="append")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(_PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    if installed_major() is None:
        sys.exit(f"no PostgreSQL with PL/Python here: {HOW_TO_INSTALL}")
    with (
        tempfile.TemporaryDirectory() as folder,
        # Over dblink every caller has two sessions.
        running_debian_server({"max_connections": "300"}) as server,
    ):
        for name in arguments.model or _MODELS:
            print(name)
            measure(server, _candidate(name, Path(folder)), arguments)


def _candidate(name: str, folder: Path) -> Candidate:
    if name == "minilm":
        return minilm_candidate()
    return sources.resolve(str(tiny_models.good_model(folder / "tiny")))


def measure(
    server: Databases, candidate: Candidate, arguments: argparse.Namespace
) -> None:
    """Measure one model."""
    parts = arguments.parts or _PARTS
    corpus = cranfield()
    queries = list(corpus.queries.values())[: arguments.calls]
    shorts = [
        " ".join(text.split()[:_WORDS]) for text in list(corpus.documents.values())
    ][:_BATCH]
    model = Model.load(
        candidate.files["model.onnx"],
        candidate.files["tokenizer.json"],
        candidate.options,
        threads=THREADS,
    )
    with contextlib.ExitStack() as stack:
        callers = {
            transport: stack.enter_context(calling(server, transport, candidate))
            for transport in arguments.transport or TRANSPORTS
        }
        if "latency" in parts:
            latency.measure(model, callers, queries)
        if "batches" in parts:
            batches.measure(model, callers, shorts, arguments.rounds)
        if "memory" in parts:
            memory.measure(callers, queries)
        if "crowd" in parts:
            crowd.measure(callers, shorts, arguments.backends, arguments.seconds)


if __name__ == "__main__":
    main()
