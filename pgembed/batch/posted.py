"""Batches that SQL functions posted, as workers see them: claim, renew, end."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, Literal
from uuid import UUID

from pgembed.postgres.connection import Connection, fetch_one

Hold = Literal["held", "lost", "cancel"]


@dataclasses.dataclass(frozen=True)
class Posted:
    """A batch that this worker has claimed, or one that a claim has ended."""

    id: int
    kind: str
    """search, join, build_layout or drop_layout."""
    caller: str | None
    """The name of the role that posted it, as which it is to run; None: it is gone."""
    embedding: str
    queries: str | None
    results: str | None
    k: int | None
    recall: float | None
    options: dict[str, Any]
    settings: dict[str, str]
    state: str
    attempts: int
    lease: int | None


@dataclasses.dataclass
class Progress:
    """How far a batch is; the share is that of the stage."""

    stage: str | None = None
    share: float | None = None
    queries: int | None = None
    queries_done: int | None = None


def claim(
    connection: Connection, worker: UUID, lease: datetime.timedelta, *, attempts: int
) -> Posted | None:
    """Claim the next batch; None when there is none.

    A batch that was cancelled, or has had *attempts*, is ended instead: its state is
    not running.
    """
    row = fetch_one(
        connection,
        """
        SELECT b.id, b.kind, r.rolname, b.embedding, b.queries, b.results, b.k,
            b.recall, b.options, b.settings, b.state, b.attempts, b.lease
        FROM pgembed._claim_batch(%s, %s, %s::int) AS b
        LEFT JOIN pg_catalog.pg_roles AS r
            ON r.oid = b.caller AND r.rolname = b.caller_name
        """,
        [worker, lease, attempts],
    )
    return row and Posted(*row)


def is_any_open(connection: Connection) -> bool:
    """Whether a batch waits or runs, under whichever worker."""
    (found,) = fetch_one(
        connection,
        "SELECT EXISTS (SELECT FROM pgembed.batch AS b "
        "WHERE b.state IN ('waiting', 'running'))",
    )
    return bool(found)


def renew(
    connection: Connection,
    posted: Posted,
    duration: datetime.timedelta,
    progress: Progress,
) -> Hold:
    """Say that the batch is worked on, and how far it is."""
    row = fetch_one(
        connection,
        "SELECT pgembed._renew_batch(%s::int8, %s::int8, %s, %s, %s::float8, "
        "%s::int8, %s::int8)",
        [
            posted.id,
            posted.lease,
            duration,
            progress.stage,
            progress.share,
            progress.queries,
            progress.queries_done,
        ],
    )
    hold: Hold = row[0]
    return hold


def end(
    connection: Connection,
    posted: Posted,
    state: Literal["failed", "waiting"],
    error: str | None,
    *,
    delay: float = 0.0,
) -> str | None:
    """End a batch that left no results; return its state, None when it was lost.

    One that waits again is due after *delay* seconds; without an error, the attempt
    does not count.
    """
    row = fetch_one(
        connection,
        "SELECT pgembed._end_batch(%s::int8, %s::int8, %s, %s, %s)",
        [
            posted.id,
            posted.lease,
            state,
            error and error.replace("\0", ""),
            datetime.timedelta(seconds=delay),
        ],
    )
    state_now: str | None = row[0]
    return state_now
