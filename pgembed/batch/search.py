"""search_batch: a workload of hybrid queries in, the nearest rows of each out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from pgembed.batch.execute import Batch, Options, Progress
from pgembed.batch.join import Join, JoinResult
from pgembed.batch.limits import check_recall, thread_count
from pgembed.batch.result import BatchResult
from pgembed.batch.source import describe, one_snapshot
from pgembed.batch.workload import Filter, Workload
from pgembed.postgres.borrowed import borrowed
from pgembed.postgres.connection import Connection
from pgembed.settings import memory_bytes


def search_batch(
    connection: Connection,
    embedding: str,
    queries: ArrayLike,
    *,
    filters: Sequence[Filter | str] | Filter | str = None,
    predicates: Sequence[str | None] | str | None = None,
    k: ArrayLike = 10,
    recall: float = 0.99,
    memory: str | int = "512MB",
    threads: int | None = None,
    layout: bool = True,
    layouts: Path | None = None,
    progress: Progress | None = None,
    few_by_sql: bool = True,
) -> BatchResult:
    """Search *embedding* for the nearest rows of many queries at once.

    *queries*: array (q, d). *filters*: JSON filters (mappings, or text), one per query
    or one for all, None for none. *predicates*: the same as SQL, what follows WHERE,
    which runs with the rights of *connection*. *k*: an integer, or one per query.
    *recall*: the share of the true nearest rows to find; 1 is exact. *memory*: bytes,
    or '512MB', beyond mapped files. *threads*: default: one per core. *layout*: whether
    to use the layout that build_layout made; *layouts* is its folder, when it is not
    the usual one. *progress* is called with a stage and the share of it that is done;
    meanwhile *connection* is in use.
    *few_by_sql*: a few queries on a big table are answered by pgembed.search, one by
    one, when that is expected to be faster.

    Reads in one snapshot: a transaction of its own, or the open one, when that is
    REPEATABLE READ. Raises VectorError, FilterError or SettingError for arguments
    that make no sense, EmbeddingError for an embedding that cannot be searched, and
    PgembedError for an open transaction with another isolation level.
    """
    workload = Workload.of(queries, filters, predicates, k)
    options = Options(
        check_recall(recall),
        memory_bytes(memory),
        thread_count(threads),
        layout,
        layouts,
        progress,
        few_by_sql,
    )
    with borrowed(connection) as own, one_snapshot(own):
        return Batch(own, describe(own, embedding), workload, options).run()


def knn_join(
    connection: Connection,
    embedding: str,
    *,
    asking: str | None = None,
    k: int = 10,
    filter: Filter | str = None,  # noqa: A002 - as in SQL
    predicate: str | None = None,
    recall: float = 0.99,
    memory: str | int = "512MB",
    threads: int | None = None,
    layout: bool = True,
    layouts: Path | None = None,
    progress: Progress | None = None,
) -> JoinResult:
    """Search *embedding* for the *k* nearest rows of every row of *asking*.

    *asking*: another embedding with vectors of as many dimensions; by default the rows
    of *embedding* itself ask. A row is never related to itself. Rows without a vector,
    and those of length zero under cosine distance, do not ask. *predicate*: SQL on the
    rows to be found, in which {column} stands for a value of the row that asks:
    'category = {category} AND year > {year}'; braces that mean no column are doubled.
    *filter*: a JSON filter, in which "asking" holds columns of the row that asks where
    values would be: {"category": {"asking": "category"}, "year": {"asking": {"gt":
    "year"}}}. What is compared with NULL is not found. Every distinct condition is
    evaluated once. The other arguments are those of search_batch.

    With chunks, two rows are as far from each other as the nearest two of their chunks.
    Raises what search_batch raises; FilterError also for a column that is not there.
    """
    options = Options(
        check_recall(recall),
        memory_bytes(memory),
        thread_count(threads),
        layout,
        layouts,
        progress,
    )
    with borrowed(connection) as own, one_snapshot(own):
        join = Join.of(
            own,
            embedding,
            asking,
            options,
            k=k,
            filter=filter,
            predicate=predicate,
        )
        askers, related = join.run()
        return JoinResult(join.keys(askers), related)
