"""Synchronous requests in table pgembed.call, as workers see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from uuid import UUID

import numpy as np

from pgembed.postgres.connection import Connection, fetch_all, fetch_one
from pgembed.postgres.vectors import Float32, VectorArray

_MOST = 256  # calls taken at a time


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A call that this worker has claimed."""

    id: int
    kind: str
    """document, query or add_model."""
    model: str
    model_hash: bytes | None
    """None when the model does not exist (any more)."""
    contents: list[str]
    remaining: float
    """How many seconds the caller will wait."""


def take(
    connection: Connection, worker: UUID, ids: Sequence[int] | None
) -> list[Request]:
    """Claim the calls of these ids, or with none all that wait.

    Their callers sleep on locks of this session, but with None, of a connection that
    notifications do not reach.
    """
    rows = fetch_all(
        connection,
        """
        SELECT id, kind, model, model_hash, contents,
            extract(epoch FROM remaining)::pg_catalog.float8
        FROM pgembed._take_calls(%s, %s::bigint[], %s::int)
        """,
        (worker, ids if ids is None else list(ids), _MOST),
    )
    return [Request(*row) for row in rows]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with: vectors float32 (n, d), an error, or nothing."""

    call_id: int
    vectors: Float32 | None = None
    error: str | None = None


def answer(
    connection: Connection,
    worker: UUID,
    answers: Sequence[Answer],
    *,
    locked: Sequence[int] = (),
) -> None:
    """Answer calls together, with vectors of one model; let go of those *locked*."""
    parts = [each.vectors for each in answers if each.vectors is not None]
    connection.execute(
        "CALL pgembed._answer(%s::bigint[], %s, %s::int[], %s, %s::text[], "
        "%s::bigint[])",
        (
            [each.call_id for each in answers],
            worker,
            [0 if each.vectors is None else len(each.vectors) for each in answers],
            VectorArray(np.concatenate(parts)) if parts else None,
            [each.error and each.error.replace("\0", "") for each in answers],
            list(locked),
        ),
    )


def present(connection: Connection, call_ids: Sequence[int]) -> set[int]:
    """Return those of the calls that nobody withdrew."""
    query = "SELECT c.id FROM pgembed.call AS c WHERE c.id = ANY (%s)"
    return {call_id for (call_id,) in fetch_all(connection, query, (list(call_ids),))}


def leave(connection: Connection, worker: UUID, model: str, vectors: Float32) -> int:
    """Leave vectors, float32 (n, d), for a caller to read, and return where."""
    query = "SELECT pgembed._leave_vectors(%s, %s, %s)"
    (place,) = fetch_one(connection, query, (worker, model, VectorArray(vectors)))
    return int(place)


def let_go(connection: Connection) -> None:
    """Let go of the locks of all calls."""
    connection.execute("SELECT pg_catalog.pg_advisory_unlock_all()")


def expire(connection: Connection) -> None:
    """Remove the calls whose callers went away."""
    connection.execute("SELECT pgembed._expire_calls()")
