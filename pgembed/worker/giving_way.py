"""Index builds give way to whoever waits for a lock that they hold."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg
from psycopg import errors

from pgembed.embeddings.indexing import IndexJob
from pgembed.errors import PgembedError
from pgembed.postgres.connection import Connection, fetch_all, fetch_one
from pgembed.worker.lifetime import Lifetime, Stopped
from pgembed.worker.link import Link

PURPOSE = "index"
"""What connections of builds are opened for: by that the server's views show them."""

_CANCEL_SECONDS = 5.0

# Not asked again: a look at partitions waits for who would alter one.
_RELATIONS = """
    SELECT p.relation::oid
    FROM pgembed.embedding AS e CROSS JOIN LATERAL pgembed._index_parts(e) AS p
    WHERE e.id = %s
"""

# Builds by the name of their session, because a pooler hides its number. They wait for
# each other, on two embeddings of one table: if they gave way, none would end. A VACUUM
# that waits holds up nobody else: only a build that waits itself gives way to it. Its
# locks say that: pg_stat_activity hides what the session of another role waits for. A
# database that is a copy of another has tables of the same numbers. Locks that
# CONCURRENTLY does not take are asked for with a timeout: that lets others through.
_WAITING = """
    SELECT other.pid, coalesce(other.usename::text, 'autovacuum')
    FROM pg_catalog.pg_locks AS waiting
    INNER JOIN pg_catalog.pg_locks AS held
        ON held.locktype = 'relation' AND held.database = waiting.database
        AND held.relation = waiting.relation
        AND (held.granted OR held.mode = 'ShareUpdateExclusiveLock')
    INNER JOIN pg_catalog.pg_stat_activity AS builder ON builder.pid = held.pid
    INNER JOIN pg_catalog.pg_stat_activity AS other ON other.pid = waiting.pid
    WHERE NOT waiting.granted AND waiting.locktype = 'relation'
        AND waiting.database = (
            SELECT d.oid FROM pg_catalog.pg_database AS d
            WHERE d.datname = pg_catalog.current_database()
        )
        AND waiting.relation = ANY (%(relations)s::oid[])
        AND builder.application_name = %(builds)s
        AND other.application_name <> %(builds)s
        AND builder.pid = ANY (pg_catalog.pg_blocking_pids(other.pid))
        AND (waiting.mode <> 'ShareUpdateExclusiveLock'
            OR EXISTS (
                SELECT FROM pg_catalog.pg_locks AS own
                WHERE own.pid = builder.pid AND NOT own.granted
            ))
    LIMIT 1
"""


class GaveWay(PgembedError):  # noqa: N818 - nothing went wrong
    """A build was cancelled, because somebody waited for it."""


@contextlib.contextmanager
def giving_way(
    dsn: str, lifetime: Lifetime, build: Connection, job: IndexJob
) -> Iterator[None]:
    """Cancel what *build* executes in the block when others wait for its locks.

    Raises GaveWay then, and when the server ended it for being part of a deadlock.
    """
    with contextlib.closing(Link(dsn, "index watch", lifetime)) as link:
        watch = _Watch(link, build, job)
        thread = threading.Thread(target=watch.run, name="index watch", daemon=True)
        thread.start()
        try:
            try:
                yield
            finally:
                watch.over.set()
                link.hurry()  # it may be waiting for a connection
                thread.join()
        except errors.DeadlockDetected as error:
            raise GaveWay(f"what it was deadlocked with: {error}") from None
        except errors.QueryCanceled as error:
            raise watch.reason or error from None


class _Watch:
    def __init__(self, link: Link, build: Connection, job: IndexJob) -> None:
        self.over = threading.Event()
        self.reason: Exception | None = None
        """Why the build was cancelled, if it was."""
        self._link = link
        self._build = build
        self._relations = link.run(lambda c: relations_of(c, job))
        self._pause = link.run(_pause)

    def run(self) -> None:
        """Look who waits, and cancel for them, until it is over."""
        while not self.over.wait(self._pause):
            try:
                found = self._link.run(lambda c: waiting(c, self._relations))
            except Stopped:
                return
            except Exception as error:  # what nobody watches is not to go on
                self.reason = error
            else:
                if found is None:
                    continue
                self.reason = GaveWay(found)
            with contextlib.suppress(psycopg.Error):
                self._build.cancel_safe(timeout=_CANCEL_SECONDS)


def relations_of(connection: Connection, job: IndexJob) -> list[int]:
    """Return the table and the partitions that a build locks."""
    rows = fetch_all(connection, _RELATIONS, (job.embedding,))
    return [relation for (relation,) in rows]


def waiting(connection: Connection, relations: list[int]) -> str | None:
    """Return who waits for a build on one of *relations*, other builds left out."""
    values = {"relations": relations, "builds": f"pgembed {PURPOSE}"}
    found = fetch_one(connection, _WAITING, values)
    return found and "session {} ({})".format(*found)


def _pause(connection: Connection) -> float:
    """Return the seconds between looks: who waits is not to be taken for deadlocked."""
    query = """
        SELECT s.setting::float8 / 1000 FROM pg_catalog.pg_settings AS s
        WHERE s.name = 'deadlock_timeout'
    """
    return min(max(float(fetch_one(connection, query)[0]) / 3, 0.02), 0.4)
