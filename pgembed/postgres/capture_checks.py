"""What can be wrong with how the changes of an embedding's source are captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pgembed.postgres.connection import Connection, fetch_all, fetch_one
from pgembed.postgres.findings import Finding, error, warning

# pg_trigger.tgtype: 4 insert, 8 delete, 16 update, 32 truncate.
_EVENTS = {4: "INSERT", 8: "DELETE", 16: "UPDATE", 32: "TRUNCATE"}
_UNREGISTERED = """
    WITH routine AS (
        SELECT p.oid, pg_catalog.format('pgembed.%I()', p.proname) AS name,
            pg_catalog.substring(p.proname::pg_catalog.text, '^_capture_([0-9]+)')
                AS number
        FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND p.proname ~ '^_capture_[0-9]+(_|$)'
    ), queue AS (
        SELECT pg_catalog.substring(c.relname::pg_catalog.text, '[0-9]+') AS number
        FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND c.relkind = 'r' AND c.relname ~ '^job_[0-9]+$'
    ), captured AS (
        SELECT DISTINCT r.number, t.tgrelid
        FROM routine AS r JOIN pg_catalog.pg_trigger AS t ON t.tgfoid = r.oid
        WHERE t.tgparentid = 0::oid AND t.tgtype & 32 = 0
    ), part (number, place, statement) AS (
        -- Of a partitioned table: it calls a function that is everybody's.
        SELECT c.number, 1, pg_catalog.format('DROP TRIGGER %I ON %s',
            t.tgname, t.tgrelid::pg_catalog.regclass)
        FROM captured AS c JOIN pg_catalog.pg_trigger AS t
          ON t.tgrelid = c.tgrelid AND t.tgparentid = 0::oid
          AND t.tgname::pg_catalog.text
              = pg_catalog.concat('pgembed_', c.number, '_wake')
        UNION ALL
        SELECT r.number, 2, pg_catalog.format('DROP FUNCTION %s CASCADE',
            pg_catalog.string_agg(r.name, ', ' ORDER BY r.name))
        FROM routine AS r GROUP BY r.number
        UNION ALL
        SELECT q.number, 3, pg_catalog.concat('DROP TABLE pgembed.job_', q.number)
        FROM queue AS q
    )
    SELECT p.number, (
            SELECT pg_catalog.string_agg(
                c.tgrelid::pg_catalog.regclass::pg_catalog.text, ', ')
            FROM captured AS c WHERE c.number = p.number),
        pg_catalog.string_agg(p.statement, '; ' ORDER BY p.place, p.statement)
    FROM part AS p
    WHERE p.number NOT IN (SELECT e.id::pg_catalog.text FROM pgembed.embedding AS e)
    GROUP BY p.number ORDER BY pg_catalog.length(p.number), p.number
"""


class Embedding(NamedTuple):
    """What the checks need to know of an embedding."""

    id: int
    name: str
    kind: str
    source: str | None
    has_target: bool
    paused: bool
    blocked: str | None
    index_state: str
    index_error: str | None
    has_jobs: bool

    @property
    def subject(self) -> str:
        return f"embedding {self.name}"

    def call(self, function: str) -> str:
        name = self.name.replace("'", "''")
        return f"SELECT pgembed.{function}('{name}')"


def check_capture(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Yield what is wrong with the triggers of an embedding."""
    yield from _triggers(connection, embedding)
    yield from _strays(connection, embedding)


def check_registry(connection: Connection) -> Iterator[Finding]:
    """Look for queues and triggers of embeddings that the registry does not know."""
    for number, tables, drops in fetch_all(connection, _UNREGISTERED):
        captured = f", to which triggers of {tables} add without end" if tables else ""
        yield error(
            "registry",
            f"it has no embedding {number}, whose queue is here{captured}: a restore "
            "lost it, as pg_restore -j does with the extension, and pg_dump -T where "
            "it leaves out another embedding's table",
            "restore the whole database anew, the extension without -j, and leave out "
            "data by --exclude-table-data; or remove what is left, and declare the "
            f"embedding again: {drops}",
        )


def _triggers(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    rows = fetch_all(
        connection,
        """
        SELECT r::pg_catalog.text, t.tgrelid = e.source::oid, t.tgtype,
            t.tgenabled::pg_catalog.text
                = pgembed._firing(e, t.tgname::pg_catalog.text)
        FROM pgembed.embedding AS e
        CROSS JOIN pgembed._with_partitions(e.source) AS r
        JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = r::oid
        JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
        WHERE e.id = %(id)s
          AND p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND p.proname ~ pg_catalog.concat('^_capture_', %(id)s::int4, '(_|$)')
        ORDER BY 2 DESC, 1
        """,
        {"id": embedding.id},
    )
    lost = [
        name
        for bit, name in _EVENTS.items()
        if not any(own and kind & bit for _, own, kind, _ in rows)
        or any(kind & bit and not fires for _, _, kind, fires in rows)
    ]
    parts = dict.fromkeys(part for part, own, _, fires in rows if not own and not fires)
    if lost:
        where = f" in {', '.join([*parts][:3])}" if parts else ""
        yield error(
            embedding.subject,
            f"its triggers for {', '.join(lost)} are missing or disabled{where}",
            f"as the table's owner: {embedding.call('reconcile')}",
        )
    else:
        yield from _columns(connection, embedding)
        yield from _owner(connection, embedding)
        yield from _partitions(connection, embedding)


def _columns(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Look for triggers that columns, or the table, have been taken from."""
    (is_wrong,) = fetch_one(
        connection,
        "SELECT pgembed._captures_wrongly(e) FROM pgembed.embedding AS e "
        "WHERE e.id = %s",
        (embedding.id,),
    )
    if is_wrong:
        yield error(
            embedding.subject,
            "its triggers watch columns that were replaced, or are from before an "
            "upgrade, or from before the table was made a partition or taken out: "
            "workers that own the table would make them anew",
            f"as the table's owner: {embedding.call('reconcile')}",
        )


def _strays(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Look for tables that came with the triggers of this embedding's source."""
    rows = fetch_all(
        connection,
        """
        SELECT t.tgrelid::pg_catalog.regclass::pg_catalog.text,
            pg_catalog.string_agg(pg_catalog.format('DROP TRIGGER %%I ON %%s',
                t.tgname, t.tgrelid::pg_catalog.regclass), '; ' ORDER BY t.tgname)
        FROM pgembed.embedding AS e, pg_catalog.pg_trigger AS t
        JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
        WHERE e.id = %(id)s AND t.tgparentid = 0::oid
          AND p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND p.proname ~ pg_catalog.concat('^_capture_', %(id)s::int4, '(_|$)')
          AND t.tgrelid NOT IN (
            SELECT r::oid FROM pgembed._with_partitions(e.source) AS r)
        GROUP BY t.tgrelid
        -- Partitions that were detached keep one, for TRUNCATE, until that is noticed.
        HAVING pg_catalog.bool_or(t.tgtype & 32 = 0)
        ORDER BY 1
        """,
        {"id": embedding.id},
    )
    for table, drops in rows:
        yield error(
            embedding.subject,
            f"table {table}, restored beside its own, has the triggers of that: what "
            "is written there changes which rows are embedded here",
            f"as the table's owner: {drops}",
        )


def _owner(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Look for changes that are captured as another role than the table's owner."""
    query = """
        SELECT f::pg_catalog.text, e.source::pg_catalog.text, e.target::pg_catalog.text,
            pgembed._owner(e.source)::pg_catalog.text,
            pgembed._owner(e.source) = pgembed._owner(e.target),
            pg_catalog.has_function_privilege(
                pgembed._owner(e.source), 'pgembed.reconcile(text)', 'EXECUTE')
        FROM pgembed.embedding AS e, pgembed._former_owner(e) AS f
        WHERE e.id = %s AND f IS NOT NULL
    """
    for former, source, target, owner, is_one, may in fetch_all(
        connection, query, (embedding.id,)
    ):
        give = "" if is_one else f"ALTER TABLE {target} OWNER TO {owner}; then, "
        mender = owner if may else "a superuser"
        yield error(
            embedding.subject,
            f"its triggers run as role {former}, and table {source} belongs to "
            f"{owner}: writes to it may fail, and what they set off of {owner}'s code "
            f"has the rights of {former}",
            f"{give}as {mender}: {embedding.call('reconcile')}",
        )


def _partitions(connection: Connection, embedding: Embedding) -> Iterator[Finding]:
    """Look for partitions that came or went, which only the owner can follow."""
    rows = fetch_all(
        connection,
        """
        SELECT r::pg_catalog.text
        FROM pgembed.embedding AS e, pgembed._with_partitions(e.source) AS r
        WHERE e.id = %(id)s
        EXCEPT
        SELECT g::pg_catalog.text
        FROM pgembed.embedding AS e, pgembed._guarded_relations(e) AS g
        WHERE e.id = %(id)s
        ORDER BY 1
        """,
        {"id": embedding.id},
    )
    if rows:
        yield warning(
            embedding.subject,
            f"its rows in {', '.join(row[0] for row in rows[:3])} may not be known: "
            "workers that own the table would notice that it was attached",
            f"as the table's owner: {embedding.call('reconcile')}",
        )
    elif _came_or_went(connection, embedding):
        yield warning(
            embedding.subject,
            "partitions were attached or dropped since a worker looked: rows may be "
            "left over, or not known, until one that may read them does",
            f"start a worker, or as the table's owner: {embedding.call('reconcile')}",
        )


def _came_or_went(connection: Connection, embedding: Embedding) -> bool:
    function = "pgembed._partition_triggers"  # absent from a schema of before
    row = fetch_one(connection, "SELECT pg_catalog.to_regproc(%s)", (function,))
    if row[0] is None:
        return False
    query = """
        SELECT e.partition_triggers <> pgembed._partition_triggers(e)
        FROM pgembed.embedding AS e WHERE e.id = %s
    """
    return bool(fetch_one(connection, query, (embedding.id,))[0])
