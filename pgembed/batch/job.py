"""A batch from a table of queries to a table of results, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.execute import Batch, Options
from pgembed.batch.result import Report
from pgembed.batch.source import describe
from pgembed.batch.tables import Embed, read_queries, read_texts, write_results
from pgembed.batch.workload import Workload
from pgembed.postgres.connection import Connection, fetch_one, require_idle
from pgembed.settings import Settings


def run_batch(
    connection: Connection,
    embedding: str,
    queries: str,
    results: str,
    *,
    k: int = 10,
    options: Options,
) -> tuple[int, Report]:
    """Answer the queries of table *queries* into table *results*.

    Returns the rows written and the report. Everything happens in one REPEATABLE READ
    transaction: when it fails or is killed, nothing is left. Raises what search_batch
    raises, and SettingError for a table that cannot hold queries.
    """
    require_idle(connection, "run a batch")
    # No transaction is open while a model runs.
    embed = _embedder(connection, embedding, queries)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        source = describe(connection, embedding)
        workload, table = read_queries(
            connection,
            queries,
            k=k,
            dimensions=source.dimensions,
            embed=embed,
        )
        batch = Batch(connection, source, workload, options)
        answer = batch.run()
        with batch.report.stage("writing"):
            rows = write_results(connection, source, table, results, answer)
    return rows, batch.report


def read_workload(connection: Connection, embedding: str, queries: str) -> Workload:
    """Read the workload that a layout is to be built for; only conditions matter."""
    source = describe(connection, embedding)

    def nothing(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.zeros((len(texts), source.dimensions), np.float32)

    workload, _ = read_queries(
        connection, queries, dimensions=source.dimensions, embed=nothing
    )
    return workload


def _embedder(connection: Connection, embedding: str, queries: str) -> Embed | None:
    """Return what knows the vectors of the texts in *queries*."""
    (name,) = fetch_one(
        connection, "SELECT (pgembed._find_embedding(%s)).model", [embedding]
    )
    if name is None:
        return None
    texts = read_texts(connection, queries)
    if not texts:
        return None
    from pgembed.models import registry

    model = registry.load(connection, name, cache_dir=Settings.load().cache_dir)
    known = dict(zip(texts, model.embed(texts, "query"), strict=True))

    def embed(wanted: Sequence[str]) -> NDArray[np.float32]:
        late = [text for text in wanted if text not in known]
        if late:
            known.update(zip(late, model.embed(late, "query"), strict=True))
        return np.stack([known[text] for text in wanted])

    return embed
