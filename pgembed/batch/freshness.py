"""Whether a row at a known place, made by a known transaction, is still the same.

Place (ctid) and xmin together name a version of a row, unless the table was rewritten
(VACUUM FULL, CLUSTER, TRUNCATE: another filenode), the server went back in time (a
restored backup: another timeline), or two billion transactions passed. A dump takes
what is known of a layout to another database, where all these numbers may come again.
Whether any of this happened, pgembed._layout_fault says. A crash may hand out again
the numbers of transactions that had not reached the disk; so a layout counts only
once all it has seen is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pgembed.errors import PgembedError
from pgembed.postgres.connection import Connection, fetch_all, fetch_one

_FLUSH_SECONDS = 10.0


def database_name(connection: Connection) -> str:
    """Return what tells this database from all others."""
    (name,) = fetch_one(connection, "SELECT pgembed._database_name()")
    return str(name)


def origin(connection: Connection, oids: Sequence[int]) -> dict[str, Any]:
    """Describe the server and the tables *oids*, as far as row versions go."""
    row = fetch_one(
        connection,
        """
        SELECT pgembed._timeline(),
            pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8,
            ARRAY(SELECT coalesce(pg_catalog.pg_relation_filenode(t.oid), 0)::int8
                  FROM pg_catalog.unnest(%s::int8[]) WITH ORDINALITY AS u (oid, place)
                  INNER JOIN pg_catalog.pg_class AS t ON t.oid = u.oid::oid
                  ORDER BY u.place)
        """,
        [list(oids)],
    )
    return {
        "database": database_name(connection),
        "timeline": row[0],
        "transaction": row[1],
        "tables": list(oids),
        "filenodes": row[2],
    }


def columns(
    connection: Connection, oids: Sequence[int], names: Sequence[str]
) -> list[list[int]]:
    """Return number, type and collation of the columns *names* of the tables *oids*.

    Those of the first table come first.
    Rows stay what they are when a column takes the name of another. *names* are quoted.
    """
    rows = fetch_all(
        connection,
        """
        SELECT a.attnum::int, a.atttypid::int8, a.attcollation::int8
        FROM pg_catalog.unnest(%s::int8[]) WITH ORDINALITY AS t (oid, place)
        CROSS JOIN pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS u (name, place)
        LEFT JOIN pg_catalog.pg_attribute AS a
            ON a.attrelid = t.oid::oid AND pg_catalog.quote_ident(a.attname) = u.name
        ORDER BY t.place, u.place
        """,
        [list(oids), list(names)],
    )
    return [list(row) for row in rows]


def written_position(connection: Connection) -> str | None:
    """Return up to where the log must reach the disk; None on a standby."""
    (standby,) = fetch_one(connection, "SELECT pg_catalog.pg_is_in_recovery()")
    if standby:
        return None
    # After a full page, that is where the next record will be: behind the header of a
    # page, or of a segment, that is not written before that record is.
    (position,) = fetch_one(
        connection,
        """
        SELECT (i.lsn - CASE
            WHEN (i.lsn - '0/0') % pg_catalog.pg_size_bytes(
                pg_catalog.current_setting('wal_segment_size'))::numeric = 40.0
            THEN 40.0
            WHEN (i.lsn - '0/0')
                % pg_catalog.current_setting('wal_block_size')::numeric = 24.0
            THEN 24.0
            ELSE 0.0 END)::text
        FROM pg_catalog.pg_current_wal_insert_lsn() AS i (lsn)
        """,
    )
    return str(position)


def await_flush(connection: Connection, position: str | None) -> None:
    """Wait until the log is on disk up to *position*: at most some seconds."""
    end = time.monotonic() + _FLUSH_SECONDS
    while position is not None:
        (done,) = fetch_one(
            connection,
            "SELECT pg_catalog.pg_current_wal_flush_lsn() >= %s::pg_catalog.pg_lsn",
            [position],
        )
        if done:
            return
        if time.monotonic() > end:
            raise PgembedError(
                f"the server's log did not reach the disk up to {position} within "
                f"{_FLUSH_SECONDS:.0f} s: see what keeps it from writing, then build "
                "the layout again"
            )
        time.sleep(0.05)
