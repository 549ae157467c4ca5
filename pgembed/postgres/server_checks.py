"""What the doctor looks at beside pgembed's own: calls, roles, clock, settings."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

import psycopg

from pgembed.postgres.connection import Connection, endure, fetch_all, fetch_one
from pgembed.postgres.findings import Finding, ok, warning

_CALL_SECONDS = 3
_SLOW_CALL = 0.25
_SKEW_SECONDS = 5.0
# Of pgvector's HNSW, beside the vector: an element, and two lists of 16 neighbours
# (m = 16, the default) that are kept as pointers with distances while it is built.
_HNSW_ELEMENT_BYTES = 800
_MIB = 1 << 20


def check_call(connection: Connection, models: list[str]) -> Iterator[Finding]:
    """Ask a worker to embed a word, with the first of *models*; take the time."""
    if not models:
        return
    started = 0.0
    try:
        with connection.transaction():
            endure(connection)
            connection.execute(f"SET LOCAL pgembed.call_timeout = '{_CALL_SECONDS}s'")
            for word in ("one", "two"):  # the first one may load the model
                started = time.perf_counter()
                connection.execute(
                    "SELECT pgembed.embed(%s, %s)", (models[0], f"doctor {word}")
                )
                seconds = time.perf_counter() - started
    except psycopg.Error as error:
        message = error.diag.message_primary or str(error).strip()
        if error.diag.message_detail:
            message += f": {error.diag.message_detail.strip()}"
        hint = error.diag.message_hint or "see the log of 'pgembed worker'"
        yield warning("call", f"pgembed.embed() fails: {message}", hint)
        return
    message = f"pgembed.embed({models[0]!r}) takes {seconds * 1000:.1f} ms"
    if seconds > _SLOW_CALL:
        yield warning(
            "call",
            message,
            "is the worker busy, far away, or behind a transaction pooler, where no "
            "notification reaches it? Start another 'pgembed worker', or nearer",
        )
    else:
        yield ok("call", message)


def check_roles(connection: Connection) -> Iterator[Finding]:
    """Whether workers have more rights than they need, and who has which role."""
    powerful = fetch_all(
        connection,
        """
        SELECT DISTINCT r.rolname
        FROM pg_catalog.pg_stat_activity AS a
        JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
        WHERE a.datname = pg_catalog.current_database() AND r.rolsuper
          AND a.application_name IN ('pgembed worker', 'pgembed calls')
        ORDER BY 1
        """,
    )
    if powerful:
        names = ", ".join(row[0] for row in powerful)
        yield warning(
            "roles",
            f"workers log in as {names}, a superuser, and need not",
            "run 'pgembed install --roles', then CREATE ROLE worker LOGIN IN ROLE "
            "pgembed_worker, and start them with that role's DSN",
        )
    members = fetch_all(
        connection,
        """
        SELECT r.rolname, pg_catalog.count(m.member),
            pg_catalog.has_schema_privilege(r.oid, 'pgembed', 'USAGE')
        FROM pg_catalog.pg_roles AS r
        LEFT JOIN pg_catalog.pg_auth_members AS m ON m.roleid = r.oid
        WHERE r.rolname IN ('pgembed_user', 'pgembed_owner', 'pgembed_worker')
        GROUP BY r.oid, r.rolname ORDER BY r.rolname
        """,
    )
    granted = [row for row in members if row[2]]
    if granted:
        counts = ", ".join(f"{name} ({count} members)" for name, count, _ in granted)
        yield ok("roles", counts)
    elif not powerful:
        yield ok("roles", "none; 'pgembed install --roles' makes three")


def check_clock(connection: Connection) -> Iterator[Finding]:
    """Whether this host's clock is the server's."""
    before = time.time()
    (theirs,) = fetch_one(
        connection, "SELECT extract(epoch FROM pg_catalog.clock_timestamp())"
    )
    after = time.time()
    skew = float(theirs) - (before + after) / 2
    if abs(skew) > _SKEW_SECONDS + (after - before):
        yield warning(
            "clock",
            f"the server's clock is {abs(skew):.0f} s "
            f"{'ahead of' if skew > 0 else 'behind'} this host's",
            "synchronise them (NTP): pgembed goes by the server's alone, but logs and "
            "metrics of workers bear their hosts' times",
        )
    else:
        yield ok("clock", f"within {abs(skew):.1f} s of this host's")


def check_settings(connection: Connection) -> Iterator[Finding]:
    """Whether vector indexes can be built and kept in memory."""
    findings = [*_build_memory(connection), *_cache(connection), *_shared(connection)]
    yield from findings or [ok("settings", "memory suffices for the vector indexes")]


def _build_memory(connection: Connection) -> Iterator[Finding]:
    rows = fetch_all(
        connection,
        """
        SELECT e.name, s.setting::int8 * 1024, greatest(c.reltuples, 0)::int8,
            CASE e.storage WHEN 'vector' THEN 4 * e.dimensions
                WHEN 'halfvec' THEN 2 * e.dimensions ELSE e.dimensions / 8 END
        FROM pgembed.embedding AS e
        JOIN pg_catalog.pg_class AS c ON c.oid = e.target::oid
        CROSS JOIN pg_catalog.pg_settings AS s
        WHERE e.index_method = 'hnsw' AND s.name = 'maintenance_work_mem'
        """,
    )
    for name, available, count, bytes_each in rows:
        needed = count * (bytes_each + _HNSW_ELEMENT_BYTES)
        if needed > available:
            yield warning(
                "settings",
                f"to build the HNSW index of {name} in memory takes about "
                f"{needed // _MIB} MB, maintenance_work_mem is {available // _MIB} MB: "
                "the build goes on more slowly when that is full",
                f"ALTER SYSTEM SET maintenance_work_mem = '{needed // _MIB + 1}MB', or "
                "ALTER ROLE of the worker SET it, as far as the memory allows",
            )


def _cache(connection: Connection) -> Iterator[Finding]:
    indexes, cache = fetch_one(
        connection,
        """
        SELECT coalesce((
            -- pg_relation_size would wait for whoever has locked the index.
            SELECT sum(c.relpages::int8
                * pg_catalog.current_setting('block_size')::int8)
            FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
            JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
            WHERE m.amname IN ('hnsw', 'ivfflat')
        ), 0)::int8, (
            SELECT s.setting::int8 * pg_catalog.current_setting('block_size')::int8
            FROM pg_catalog.pg_settings AS s WHERE s.name = 'shared_buffers')
        """,
    )
    if indexes > cache:
        yield warning(
            "settings",
            f"the vector indexes have {indexes // _MIB} MB, shared_buffers "
            f"{cache // _MIB} MB: searches wait for pages",
            "raise shared_buffers (a quarter of the memory is usual), or store vectors "
            "as halfvec",
        )


def _shared(connection: Connection) -> Iterator[Finding]:
    """Look at /dev/shm with the server's eyes, where its process can be seen."""
    kind, workers, needed = fetch_one(
        connection,
        """
        SELECT pg_catalog.current_setting('dynamic_shared_memory_type'),
            pg_catalog.current_setting('max_parallel_maintenance_workers')::int4,
            (SELECT s.setting::int8 * 1024 FROM pg_catalog.pg_settings AS s
             WHERE s.name = 'maintenance_work_mem')
        """,
    )
    size = _shared_memory(connection)
    if kind == "posix" and workers > 0 and size is not None and size < needed:
        yield warning(
            "settings",
            f"the server's /dev/shm has {size // _MIB} MB, maintenance_work_mem is "
            f"{needed // _MIB} MB: a parallel build of a large HNSW index fails",
            "give the container --shm-size of at least that (compose: shm_size), or "
            "ALTER SYSTEM SET max_parallel_maintenance_workers = 0",
        )


def _shared_memory(connection: Connection) -> int | None:
    """Return the bytes of the server's /dev/shm; None when it cannot be seen."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            if line.family != socket.AF_UNIX:
                return None
            size = struct.calcsize("iII")
            raw = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        status = os.statvfs(f"/proc/{struct.unpack('iII', raw)[0]}/root/dev/shm")
    except OSError:
        return None
    return status.f_frsize * status.f_blocks
