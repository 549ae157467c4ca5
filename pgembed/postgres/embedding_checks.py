"""What can be wrong with an embedding: its table, capture, queue and index."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import Error, errors, sql

from pgembed.postgres.capture_checks import (
    Embedding,
    check_capture,
    check_registry,
)
from pgembed.postgres.connection import Connection, endure, fetch_all, fetch_one
from pgembed.postgres.findings import Finding, error, ok, warning

_STALE = "5 minutes"
_LOCK_TIMEOUT = "500ms"


def check_all(connection: Connection) -> Iterator[Finding]:
    """Yield what is wrong with each embedding, or that it is well."""
    yield from check_registry(connection)
    rows = fetch_all(
        connection,
        """
        SELECT e.id, e.name, e.kind, s.oid::pg_catalog.regclass::pg_catalog.text,
            EXISTS (
                SELECT FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = e.target::oid AND a.attname = e.target_column
                  AND NOT a.attisdropped),
            e.paused, e.blocked, e.index_state, e.index_error,
            pg_catalog.to_regclass(pg_catalog.concat('pgembed.job_', e.id)) IS NOT NULL
        FROM pgembed.embedding AS e
        LEFT JOIN pg_catalog.pg_class AS s ON s.oid = e.source::oid
        ORDER BY e.name
        """,
    )
    for row in rows:
        embedding = Embedding(*row)
        yield from _findings(connection, embedding) or [ok(embedding.subject, "well")]


def _findings(connection: Connection, embedding: Embedding) -> list[Finding]:
    holder = _lock_holder(connection, embedding)
    if holder is not None:
        return [_locked(embedding, f"process {holder}")]
    try:
        with connection.transaction():
            endure(connection)
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            return list(_check(connection, embedding))
    except errors.LockNotAvailable:
        return [_locked(embedding, "a process")]
    except (errors.UndefinedFunction, errors.UndefinedColumn) as failure:
        return [_unseen(embedding, failure)]


def _lock_holder(connection: Connection, embedding: Embedding) -> int | None:
    """Return the process that lets nobody read the embedding's tables, if one does."""
    query = """
        SELECT l.pid
        FROM pgembed.embedding AS e
        JOIN pg_catalog.pg_locks AS l ON l.relation IN
            (e.source::oid, e.target::oid, pg_catalog.to_regclass(
                pg_catalog.concat('pgembed.job_', e.id))::oid)
        JOIN pg_catalog.pg_database AS d ON d.oid = l.database
        WHERE e.id = %s AND d.datname = pg_catalog.current_database() AND l.granted
            AND l.mode = 'AccessExclusiveLock' AND l.pid <> pg_catalog.pg_backend_pid()
        LIMIT 1
    """
    row = fetch_one(connection, query, (embedding.id,))
    return row and int(row[0])


def _locked(embedding: Embedding, holder: str) -> Finding:
    return warning(
        embedding.subject,
        f"{holder} of the server has locked its tables: searches and workers wait for "
        "it, and the rest was not looked at",
        "see in pg_stat_activity what it does, and ask again when it has ended",
    )


def _unseen(embedding: Embedding, failure: Error) -> Finding:
    """Say what an older or damaged schema lacks to look at the embedding."""
    return warning(
        embedding.subject,
        f"it cannot be looked at in this schema: {failure.diag.message_primary}",
        "mend what is said of the schema above, and ask again",
    )


def _check(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    if embedding.source is None or not embedding.has_target:
        what = "source table" if embedding.source is None else "vector column"
        yield error(
            embedding.subject,
            f"its {what} was dropped",
            embedding.call("drop_embedding"),
        )
        return
    has_source, rival, fault = fetch_one(
        connection,
        "SELECT pgembed._has_source(e), pgembed._rival(e), pgembed._fault(e) "
        "FROM pgembed.embedding AS e WHERE e.id = %s",
        (embedding.id,),
    )
    if not has_source:
        whose = "another relation" if rival is None else f"that of embedding {rival}"
        yield error(
            embedding.subject,
            f"its source table was dropped: what has its number here is {whose}",
            embedding.call("drop_embedding"),
        )
        return
    if fault is not None:
        yield error(
            embedding.subject,
            f"it no longer fits its table: {fault}",
            f"undo that, then {embedding.call('resume_embedding')}; or drop the "
            "embedding and declare it again",
        )
        return
    if embedding.kind == "kept":
        yield from check_capture(connection, embedding)
        yield from _queue(connection, embedding)
        yield from _row_security(connection, embedding)
    yield from _index(connection, embedding)


def _row_security(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Look for chunks whose policy is not that of their source."""
    query = """
        SELECT e.source::pg_catalog.text, e.target::pg_catalog.text,
            pgembed._open_to_hidden(e)
        FROM pgembed.embedding AS e
        WHERE e.id = %s AND (pgembed._open_to_hidden(e) OR pgembed._closed_to_all(e))
    """
    for source, target, is_open in fetch_all(connection, query, (embedding.id,)):
        found = (
            f"table {source} has row-level security, table {target} has not: who may "
            "read this reads there the text of rows that are hidden from him"
            if is_open
            else f"the row-level security of table {target} has no policy any more: "
            "nobody but its owner reads, or finds, any of it"
        )
        remedy = f"as the table's owner: {embedding.call('reconcile')}"
        yield warning(embedding.subject, found, remedy)


def _queue(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    if not embedding.has_jobs:
        yield error(
            embedding.subject,
            f"its queue, pgembed.job_{embedding.id}, was dropped",
            f"{embedding.call('drop_embedding')}, and create it again",
        )
        return
    if embedding.blocked is not None:
        yield error(
            embedding.subject,
            f"no worker can go on with it: {embedding.blocked}",
            "mend the model; a worker that can load it goes on by itself"
            if embedding.blocked.startswith("model ")
            else "mend that; a worker tries again by itself, or at once after "
            + embedding.call("resume_embedding"),
        )
    if embedding.paused:
        yield warning(
            embedding.subject, "it is paused", embedding.call("resume_embedding")
        )
    if not embedding.paused and embedding.blocked is None:
        yield from _stale(connection, embedding)
        yield from _lost(connection, embedding)
    failed = _failed_rows(connection, embedding)
    if failed:
        yield warning(
            embedding.subject,
            f"{failed} rows failed, see pgembed.failures",
            embedding.call("retry_failed"),
        )


def _stale(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Look for rows that nobody works on; a large backfill that goes on is well."""
    query = sql.SQL(
        "SELECT pg_catalog.count(*), "
        "extract(epoch FROM pg_catalog.now() - min(since))::int4 / 60 "
        "FROM (SELECT pgembed_available_at FROM {jobs} UNION ALL SELECT created_at "
        "FROM pgembed.embedding WHERE id = {id} AND NOT enqueued) AS j (since) "
        "WHERE since < pg_catalog.now() - interval '{age}' "
        "AND NOT EXISTS (SELECT FROM pgembed.progress AS p WHERE p.embedding = {id} "
        "AND p.bucket > pg_catalog.now() - interval '{age}')"
    ).format(
        jobs=sql.Identifier("pgembed", f"job_{embedding.id}"),
        id=sql.Literal(embedding.id),
        age=sql.SQL(_STALE),
    )
    waiting, minutes = fetch_one(connection, query)
    if waiting:
        yield warning(
            embedding.subject,
            f"rows wait, for up to {minutes} minutes, and none was embedded in the "
            f"last {_STALE}",
            "see that a worker runs ('pgembed worker'), what its log says, and whether "
            "a transaction holds the table locked (pg_locks)",
        )


def _lost(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Look at a thousand rows that are done for some whose vectors were taken away."""
    query = """
        SELECT pg_catalog.format(
            'SELECT pg_catalog.count(*) FROM (SELECT d.* FROM %%s AS d '
            'WHERE d.pgembed_available_at IS NULL AND d.pgembed_error IS NULL '
            'AND d.pgembed_fingerprint IS NOT NULL LIMIT 1000) AS j '
            'INNER JOIN %%s AS s ON %%s WHERE NOT (%%s)',
            pgembed._job_table(e.id), e.source, pgembed._key_match(e.source, 'j', 's'),
            pgembed._has_vector(e, 's'))
        FROM pgembed.embedding AS e
        WHERE e.id = %s AND pg_catalog.has_table_privilege(e.source, 'SELECT')
            AND pg_catalog.has_table_privilege(e.target, 'SELECT')
            AND NOT pg_catalog.row_security_active(e.source)
    """
    row = fetch_one(connection, query, (embedding.id,))
    lost = fetch_one(connection, row[0].encode())[0] if row else 0
    if lost:
        yield error(
            embedding.subject,
            f"{lost} of the first rows looked at were embedded and have no vector: "
            "somebody took it away",
            f"as the table's owner: {embedding.call('reconcile')}",
        )


def _failed_rows(connection: Connection, embedding: Embedding) -> int:
    query = sql.SQL(
        "SELECT pg_catalog.count(*) FROM {} "
        "WHERE pgembed_available_at IS NULL AND pgembed_error IS NOT NULL"
    ).format(sql.Identifier("pgembed", f"job_{embedding.id}"))
    return int(fetch_one(connection, query)[0])


def _index(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    if embedding.index_state == "failed":
        yield error(
            embedding.subject,
            f"its index could not be built: {embedding.index_error}",
            f"mend that, then {embedding.call('reconcile')}",
        )
    rows = fetch_all(
        connection,
        """
        SELECT i.indexrelid::pg_catalog.regclass::pg_catalog.text,
            e.kind = 'kept' AND c.relname = e.index_name
        FROM pgembed.embedding AS e
        JOIN pg_catalog.pg_attribute AS a
          ON a.attrelid = e.target::oid AND a.attname = e.target_column
        JOIN pg_catalog.pg_index AS i
          ON i.indrelid = e.target::oid AND a.attnum = ANY (i.indkey)
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        WHERE e.id = %s AND NOT i.indisvalid AND e.index_state <> 'building'
        """,
        (embedding.id,),
    )
    for name, is_its_own in rows:
        yield error(
            embedding.subject,
            f"index {name} is invalid: a build was interrupted",
            f"as the table's owner: {embedding.call('reconcile')}; a worker builds it "
            "again"
            if is_its_own
            else f"DROP INDEX CONCURRENTLY {name}, and create it again",
        )
    if rows or embedding.kind != "kept" or embedding.index_state != "ready":
        return
    query = "SELECT EXISTS (SELECT FROM pgembed._index_statements(%s))"
    if fetch_one(connection, query, (embedding.id,))[0]:
        yield warning(
            embedding.subject,
            "its index is not there any more, or not as it was declared",
            f"as the table's owner: {embedding.call('reconcile')}; a worker builds it",
        )
