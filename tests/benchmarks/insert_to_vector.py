"""Rows a second from INSERT to committed vector: ``python -m tests.benchmarks.insert_to_vector``.

One worker with MiniLM on all cores of this machine, against a bare ONNX Runtime loop
on the same texts: tokenized, sorted by length and run in the best of several batch
shapes, at the same low priority. Worker and loop take turns; the best round of each
counts. The server keeps its promises: fsync is on.
"""  # noqa: E501 - a command

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pgembed.models.encoding import TextEncoder
from pgembed.models.registry import store_model
from pgembed.models.session import Model
from pgembed.postgres.connection import Connection, connect, fetch_one
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.postgres.schema import install
from pgembed.worker import child
from tests.harness.minilm import minilm_candidate
from tests.harness.retrieval import cranfield, product_titles
from tests.integration.worker.running import child_process

SHAPES = (512, 1024, 2048, 4096, 8192)
_SAMPLE = 128
_PAUSE = 0.05
_TITLES = 5  # for each abstract: they are short


def main() -> None:
    """Print rows per second for each kind of text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="of abstracts")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=None)
    arguments = parser.parse_args()
    texts = {
        "cranfield abstracts": filled(cranfield().documents.values(), arguments.rows),
        "product titles": filled(product_titles(), _TITLES * arguments.rows),
    }
    os.nice(child.NICENESS["embed"])
    model = bare_model()
    given = {"threads": 0, "batch_tokens": arguments.batch_tokens}
    values = {name: value for name, value in given.items() if value is not None}
    with installed_server() as dsn, connect(dsn, purpose="benchmark") as connection:
        store_model(connection, "minilm", minilm_candidate())
        with child_process("embed", dsn, **values):
            for name, rows in texts.items():
                compare(connection, model, name, rows, arguments.rounds)


def filled(texts: Iterable[str], count: int) -> list[str]:
    """Return so many texts: the same ones again where there are fewer."""
    return list(itertools.islice(itertools.cycle(texts), count))


def bare_model() -> Model:
    """Return MiniLM in a session as ONNX Runtime makes it: on all cores."""
    import onnxruntime  # after pgembed, which keeps it from reporting

    found = minilm_candidate()
    session = onnxruntime.InferenceSession(
        found.files["model.onnx"], providers=["CPUExecutionProvider"]
    )
    encoder = TextEncoder(found.files["tokenizer.json"], found.options)
    return Model(session, encoder, found.options)


@contextlib.contextmanager
def installed_server(settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the DSN of a server of its own, with these settings and pgembed on it."""
    folder = Path(tempfile.mkdtemp(prefix="pgembed-benchmark-"))
    try:
        with EmbeddedServer(folder, settings=settings) as server:
            dsn = server.dsn("postgres")
            with connect(dsn, purpose="benchmark") as connection:
                install(connection)
            yield dsn
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(
    connection: Connection, model: Model, name: str, texts: Sequence[str], rounds: int
) -> None:
    """Print both rates for some texts, and what one is of the other."""
    seconds = {shape: bare(model, texts[:_SAMPLE], shape) for shape in SHAPES}
    best = min(seconds, key=lambda shape: seconds[shape])
    embed(connection, ["so that the worker has loaded the model"])
    loop, worker = [], []
    for _ in range(rounds):
        loop.append(bare(model, texts, best))
        worker.append(embed(connection, texts))
    rates = len(texts) / min(loop), len(texts) / min(worker)
    print(f"{name}: {len(texts)} rows", flush=True)
    print(f"  bare loop, {best} tokens a batch  {rates[0]:8.1f} rows/s")
    print(f"  INSERT to committed vector  {rates[1]:8.1f} rows/s")
    print(f"  ratio  {rates[1] / rates[0]:.3f}")


def bare(model: Model, texts: Sequence[str], batch_tokens: int) -> float:
    """Return the seconds that a loop without a database takes."""
    started = time.perf_counter()
    model.embed(texts, batch_tokens=batch_tokens)
    return time.perf_counter() - started


def embed(connection: Connection, texts: Sequence[str]) -> float:
    """Return the seconds from the beginning of an INSERT to the last vector."""
    connection.execute(
        "SELECT pgembed.drop_embedding(name) FROM pgembed.embedding_status"
    )
    connection.execute("DROP TABLE IF EXISTS docs")
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'minilm', index => 'none')"
    )
    started = time.perf_counter()
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY docs (id, body) FROM STDIN") as copy,
    ):
        for row in enumerate(texts):
            copy.write_row(row)
    query = r"""
        SELECT EXISTS (SELECT FROM docs WHERE body_embedding IS NULL AND body ~ '\S')
    """
    while fetch_one(connection, query)[0]:
        time.sleep(_PAUSE)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
