"""Indexes on advice, partial and covering ones: proposed, created, dropped."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import psycopg
from psycopg import errors
from psycopg.rows import class_row

from pgembed.errors import EmbeddingError
from pgembed.postgres.connection import Connection, fetch_all, fetch_one, require_idle

LEAST_RECALL = 0.95
"""A new partial index is dropped again when searches through it find less."""

# Searches aim at 0.99. Where each finds all or nothing, three of these have to fail:
# chance does that once in 130 times at 0.99, and fails to do it as rarely at 0.8.
_SEARCHES = 40


@dataclasses.dataclass(frozen=True)
class Advice:
    """An index that would pay, as pgembed.advise tells it."""

    index_name: str
    filter: dict[str, Any] | None
    """What a partial vector index is limited to; None for a covering index."""
    columns: list[str] | None
    """What a covering index, which includes the vectors, is on; None for a partial."""
    searches: float
    """The share of the searches that it serves, 0 to 1."""
    rows: int
    bytes: int
    saved_ms: float
    """What it saves, on average over all searches."""
    speedup: float
    """Of the workload, with this index and those before it, by the cost model."""
    present: bool
    statement: str
    comment: str
    """SQL that notes at the index what it serves."""


@dataclasses.dataclass(frozen=True)
class AdvisedIndex:
    """An index that was created on advice."""

    index_name: str
    """Qualified and quoted, as SQL needs it."""
    filter: dict[str, Any] | None
    """That of a partial vector index."""
    columns: list[str] | None
    """Those of a covering index."""
    bytes: int
    scans: int
    searches: int | None
    """Of the workload, those that it serves; None when its filter is not noted."""
    valid: bool


def advise(
    connection: Connection,
    embedding: str,
    *,
    budget_mb: float | None = None,
    workload: str | None = None,
) -> list[Advice]:
    """Return the indexes that pay most for their size, best first.

    They serve the filters in the table *workload* (a column ``filter``), or those
    that searches recorded under the setting pgembed.record_filters. *budget_mb* is
    what all of them may take; None: as much as an index over all rows.
    """
    with connection.cursor(row_factory=class_row(Advice)) as cursor:
        return cursor.execute(
            "SELECT * FROM pgembed.advise(%s, %s, %s::text::regclass)",
            (embedding, budget_mb, workload),
        ).fetchall()


def apply(
    connection: Connection, advice: Advice, *, workload: str | None = None
) -> float | None:
    """Create the index while others read and write; what is there stays.

    The connection must be in autocommit mode and outside a transaction. An index that
    an interrupted build left behind is built anew.

    Where vectors repeat, searches through a partial vector index may miss rows. So some
    searches of the workload that it serves are measured, unless it has its comment
    already: when their recall is under LEAST_RECALL, the index is dropped again and
    that recall returned. None means that the index is there.

    Raises EmbeddingError when another session builds an index on the table, or uses
    the one that is to be dropped.
    """
    require_idle(connection, "create an index concurrently")
    embedding, name = _find(connection, advice)
    if not _is_valid(connection, name):
        _require_no_build(connection, advice)
        _drop(connection, name)
        connection.execute(advice.statement.encode())
    if _is_noted(connection, name):
        return None
    recall = 1.0
    # What is not noted, for lack of a drop or of time, is measured again.
    with connection.transaction() as noting:
        connection.execute(advice.comment.encode())
        if advice.filter is not None:
            recall = _recall_through(connection, embedding, name, workload)
        if recall < LEAST_RECALL:
            raise psycopg.Rollback(noting)
    if recall >= LEAST_RECALL:
        return None
    _drop(connection, name)
    return recall


def advised_indexes(
    connection: Connection, embedding: str, *, workload: str | None = None
) -> list[AdvisedIndex]:
    """Return the indexes created on advice, and how much use they are."""
    with connection.cursor(row_factory=class_row(AdvisedIndex)) as cursor:
        return cursor.execute(
            "SELECT * FROM pgembed.advised_indexes(%s, %s::text::regclass)",
            (embedding, workload),
        ).fetchall()


def drop_unused(
    connection: Connection, embedding: str, *, workload: str | None = None
) -> list[AdvisedIndex]:
    """Drop the advised indexes that serve no search of the workload; return them.

    Raises EmbeddingError, and drops nothing, when the workload is empty: then nobody
    knows what is used. Raises it, too, for an index that another session uses.
    """
    require_idle(connection, "drop an index concurrently")
    known = advised_indexes(connection, embedding, workload=workload)
    unused = [index for index in known if index.searches == 0 or not index.valid]
    if known and not any(index.searches for index in known):
        _require_workload(connection, embedding, workload)
    for index in unused:
        _drop(connection, index.index_name)
    return unused


def measure(
    connection: Connection,
    embedding: str,
    filters: str,
    *,
    sample: int = 5,
    workload: str | None = None,
) -> tuple[float, float]:
    """Return the mean recall and milliseconds of searches under some filters.

    *filters* is JSON: a filter, or a list of them. Each of *sample* vectors of the
    table is searched for under each filter. When the table *workload* has a column
    ``embedding``, as many of its own searches under these filters are made instead.
    """
    if workload is not None and _has_vectors(connection, workload):
        rows = _measure_workload(connection, embedding, filters, sample, workload)
    else:
        rows = fetch_all(
            connection,
            "SELECT queries, recall, ms FROM pgembed.recall(%s, sample => %s, "
            "filter => %s::jsonb)",
            (embedding, sample, filters),
        )
    queries = sum(row[0] for row in rows)
    if not queries:
        return 1.0, 0.0
    return (
        sum(row[0] * row[1] for row in rows) / queries,
        sum(row[0] * row[2] for row in rows) / queries,
    )


def sample_filters(
    connection: Connection,
    embedding: str,
    *,
    workload: str | None = None,
    count: int = 20,
) -> str:
    """Return filters that stand for the workload, as JSON; the empty one without any.

    JSON, in which numbers keep their digits: a list, or one filter. Filters that the
    table no longer understands are left out.
    """
    rows = fetch_all(
        connection,
        "SELECT coalesce(jsonb_agg(w.filter), '{}')::text "
        "FROM pgembed._find_embedding(%s) AS e "
        "CROSS JOIN LATERAL pgembed._workload_filters("
        "e, %s::text::regclass, %s) AS w "
        "CROSS JOIN LATERAL pgembed._filter_estimate(e, w.filter) AS p "
        "WHERE p.rows IS NOT NULL",
        (embedding, workload, count),
    )
    return str(rows[0][0])


def _require_workload(
    connection: Connection, embedding: str, workload: str | None
) -> None:
    rows = fetch_all(
        connection,
        "SELECT FROM pgembed._workload_filters("
        "pgembed._find_embedding(%s), %s::text::regclass, 1)",
        (embedding, workload),
    )
    if not rows:
        raise EmbeddingError(
            f"no filters are recorded for embedding {embedding!r}, so nothing can be "
            "called unused: SET pgembed.record_filters = 0.01 for a while, or name a "
            "workload table"
        )


def _find(connection: Connection, advice: Advice) -> tuple[str, str]:
    """Return the name of the embedding and the index's, qualified and quoted."""
    rows = fetch_all(
        connection,
        "SELECT e.name, pgembed._in_schema_of(e.target, %(name)s) "
        "FROM pgembed.embedding AS e WHERE e.id = split_part(%(name)s, '_', 2)::int",
        {"name": advice.index_name},
    )
    if not rows:
        raise EmbeddingError(
            f"the embedding that index {advice.index_name} is for was dropped"
        )
    return rows[0][0], rows[0][1]


def _is_valid(connection: Connection, name: str) -> bool:
    rows = fetch_all(
        connection,
        "SELECT i.indisvalid FROM pg_catalog.pg_index AS i "
        "WHERE i.indexrelid = pg_catalog.to_regclass(%s)::oid",
        (name,),
    )
    return bool(rows and rows[0][0])


def _is_noted(connection: Connection, name: str) -> bool:
    (is_noted,) = fetch_one(
        connection,
        "SELECT pg_catalog.obj_description(%s::text::regclass, 'pg_class') IS NOT NULL",
        (name,),
    )
    return bool(is_noted)


def _require_no_build(connection: Connection, advice: Advice) -> None:
    rows = fetch_all(
        connection,
        "SELECT p.pid, e.target::text FROM pgembed.embedding AS e "
        "INNER JOIN pg_catalog.pg_stat_progress_create_index AS p "
        "ON p.relid = e.target::oid AND p.datname = current_database() "
        "WHERE e.id = split_part(%s, '_', 2)::int",
        (advice.index_name,),
    )
    if rows:
        raise EmbeddingError(
            f"process {rows[0][0]} is building an index on table {rows[0][1]}, and "
            "two builds at once end in a deadlock: try again when it is done"
        )


def _drop(connection: Connection, name: str) -> None:
    before, deadlock_ms = fetch_one(
        connection,
        "SELECT current_setting('lock_timeout'), s.setting::int "
        "FROM pg_catalog.pg_settings AS s WHERE s.name = 'deadlock_timeout'",
    )
    # A build waits for us while we wait for it: whoever notices that deadlock ends.
    _set_lock_timeout(connection, f"{max(1, min(1000, deadlock_ms) // 2)}ms")
    try:
        connection.execute(b"DROP INDEX CONCURRENTLY IF EXISTS " + name.encode())
    except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
        raise EmbeddingError(
            f"index {name} cannot be dropped now, because another session uses it or "
            "builds an index on its table: try again when that is done"
        ) from error
    finally:
        if not connection.broken:
            _set_lock_timeout(connection, before)


def _set_lock_timeout(connection: Connection, value: str) -> None:
    connection.execute("SELECT set_config('lock_timeout', %s, false)", (value,))


def _recall_through(
    connection: Connection, embedding: str, name: str, workload: str | None
) -> float:
    """Return the recall of searches of the workload that a partial index serves.

    Without any, searches under the filter of the index are measured.
    """
    filters, count = fetch_one(
        connection,
        "SELECT f.filters::text, jsonb_array_length(f.filters) "
        "FROM pgembed._find_embedding(%s) AS e "
        "INNER JOIN LATERAL pgembed._advised(e) AS a ON a.index = %s::text::regclass "
        "CROSS JOIN LATERAL (SELECT coalesce(jsonb_agg(s.filter), "
        "jsonb_build_array(a.filter)) AS filters FROM ("
        "SELECT w.filter FROM pgembed._workload_filters("
        "e, %s::text::regclass, 200) AS w "
        "CROSS JOIN LATERAL pgembed._filter_estimate(e, w.filter) AS p "
        "WHERE pgembed._filter_implies("
        "w.filter, a.filter, pgembed._numberless_columns(e.source)) "
        "AND p.rows IS NOT NULL LIMIT %s) AS s) AS f",
        (embedding, name, workload, _SEARCHES),
    )
    sample = math.ceil(_SEARCHES / count)
    return measure(connection, embedding, filters, sample=sample, workload=workload)[0]


def _has_vectors(connection: Connection, workload: str) -> bool:
    (has_vectors,) = fetch_one(
        connection,
        "SELECT 'embedding' = ANY (pgembed._columns(%s::text::regclass))",
        (workload,),
    )
    return bool(has_vectors)


def _measure_workload(
    connection: Connection, embedding: str, filters: str, sample: int, workload: str
) -> list[tuple[Any, ...]]:
    (table,) = fetch_one(connection, "SELECT %s::text::regclass::text", (workload,))
    table = table.replace("%", "%%")
    given = json.loads(filters)
    count = sample * len(given) if isinstance(given, list) else sample
    with connection.transaction():
        connection.execute(
            b"CREATE TEMPORARY TABLE pgembed_sample AS SELECT w.embedding, w.filter "
            b"FROM " + table.encode() + b" AS w WHERE w.embedding IS NOT NULL "
            b"AND w.filter::jsonb IN (SELECT jsonb_path_query(%s::jsonb, '$[*]')) "
            b"ORDER BY random() LIMIT %s",
            (filters, count),
        )
        rows = fetch_all(
            connection,
            "SELECT queries, recall, ms FROM pgembed.recall(%s, sample => 100000, "
            "workload => 'pg_temp.pgembed_sample')",
            (embedding,),
        )
        connection.execute("DROP TABLE pg_temp.pgembed_sample")
    return rows
