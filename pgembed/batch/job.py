"""A batch from a table of queries to a table of results, in one transaction."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgembed.batch.execute import Batch, Options
from pgembed.batch.join import Join
from pgembed.batch.result import Report
from pgembed.batch.results_table import ResultsTable
from pgembed.batch.source import describe
from pgembed.batch.tables import Embed, read_queries, read_texts
from pgembed.batch.workload import Filter, Workload
from pgembed.batch.writing import Asked, write_results
from pgembed.postgres.connection import (
    Connection,
    fetch_one,
    require_idle,
    stay_idle,
)
from pgembed.settings import Settings


def _nothing(*_: object) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Frame:
    """What else is done around a batch."""

    models: Connection | None = None
    """Where models are read; default: the connection of the batch."""
    cache_dir: Path | None = None
    """Where their files are kept; default: as the settings say."""
    begin: Callable[[Connection], object] = _nothing
    """Called first in every transaction."""
    finish: Callable[[Connection, int, Report], object] = _nothing
    """Called last in the transaction of the results, with the rows written."""


def run_batch(
    connection: Connection,
    embedding: str,
    queries: str,
    results: str,
    *,
    k: int = 10,
    options: Options,
    frame: Frame | None = None,
) -> tuple[int, Report]:
    """Answer the queries of table *queries* into table *results*.

    Returns the rows written and the report. Everything happens in one REPEATABLE READ
    transaction: when it fails or is killed, nothing is left. Raises what search_batch
    raises, and SettingError for a table that cannot hold queries.
    """
    require_idle(connection, "run a batch")
    frame = frame or Frame()
    # Keys are read where they are written: in SQL.
    options = dataclasses.replace(options, keys=False)
    # No transaction is open while a model runs.
    embed = _embedder(connection, embedding, queries, frame)
    with _transaction(connection, frame):
        source = describe(connection, embedding)
        workload, table = read_queries(
            connection,
            queries,
            k=k,
            dimensions=source.dimensions,
            distance=source.distance,
            embed=embed,
        )
        place = ResultsTable.for_queries(results, table.name, source)
        place.check(connection)
        batch = Batch(connection, source, workload, options)
        answer = batch.run()
        with batch.report.stage("writing"):
            asked = Asked.by_table(table)
            rows = write_results(connection, place, asked, answer)
        frame.finish(connection, rows, batch.report)
    return rows, batch.report


def run_join(
    connection: Connection,
    embedding: str,
    results: str,
    *,
    asking: str | None = None,
    k: int = 10,
    filter: Filter | str = None,  # noqa: A002 - as in SQL
    predicate: str | None = None,
    options: Options,
    frame: Frame | None = None,
) -> tuple[int, Report]:
    """Write the rows related to every row of *asking* into table *results*.

    The arguments are those of knn_join; returns the rows written and the report. As
    with run_batch, all is written or nothing. Raises what knn_join raises.
    """
    require_idle(connection, "run a join")
    frame = frame or Frame()
    options = dataclasses.replace(options, keys=False)
    with _transaction(connection, frame):
        join = Join.of(
            connection,
            embedding,
            asking,
            options,
            k=k,
            filter=filter,
            predicate=predicate,
        )
        place = ResultsTable.for_rows(results, join.asking, join.source)
        place.check(connection)
        askers, answer = join.run()
        with answer.report.stage("writing"):
            asked = Asked.by_rows(join.asking, askers, join.tables.oids)
            rows = write_results(connection, place, asked, answer)
        frame.finish(connection, rows, answer.report)
    return rows, answer.report


@contextlib.contextmanager
def _transaction(connection: Connection, frame: Frame) -> Iterator[None]:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        stay_idle(connection)
        frame.begin(connection)
        yield


def read_workload(connection: Connection, embedding: str, queries: str) -> Workload:
    """Read the workload that a layout is to be built for.

    Texts are not embedded: their vectors are 0, which is near everything.
    """
    source = describe(connection, embedding)

    def nothing(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.zeros((len(texts), source.dimensions), np.float32)

    workload, _ = read_queries(
        connection, queries, dimensions=source.dimensions, embed=nothing
    )
    return workload


def _embedder(
    connection: Connection, embedding: str, queries: str, frame: Frame
) -> Embed | None:
    """Return what knows the vectors of the texts in *queries*."""
    with connection.transaction():
        frame.begin(connection)
        (name,) = fetch_one(
            connection, "SELECT (pgembed._find_embedding(%s)).model", [embedding]
        )
        texts = read_texts(connection, queries) if name is not None else []
    if not texts:
        return None
    from pgembed.models import registry

    model = registry.load(
        frame.models or connection,
        name,
        cache_dir=frame.cache_dir or Settings.load().cache_dir,
    )
    known = dict(zip(texts, model.embed(texts, "query"), strict=True))

    def embed(wanted: Sequence[str]) -> NDArray[np.float32]:
        late = [text for text in wanted if text not in known]
        if late:
            known.update(zip(late, model.embed(late, "query"), strict=True))
        return np.stack([known[text] for text in wanted])

    return embed
