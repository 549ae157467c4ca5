"""The queue as workers see it: one method per SQL function, one statement each."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from uuid import UUID

from psycopg import errors
from psycopg.adapt import Buffer, Loader

from pgembed.embeddings.workers import PROTOCOL
from pgembed.postgres.connection import Connection, fetch_all, fetch_one
from pgembed.postgres.vectors import VectorArray

# Attempt n that failed is followed by a wait of n^4 times this.
_FAILURE_BASE = datetime.timedelta(seconds=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """An embedding that has jobs, now or later."""

    embedding: int
    name: str
    model: str
    model_hash: bytes
    chunk_tokens: int | None
    chunk_overlap: int
    ready: int
    """Rows that can be claimed now; at most 1,000 are counted."""
    next_at: datetime.datetime
    """When the next row can be claimed, or the lease it is under expires."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """Rows held under one lease; slots, versions and texts are parallel."""

    embedding: int
    lease: int
    slots: list[int]
    versions: list[int]
    texts: list[str | None]
    """None asks for a NULL vector."""

    def __len__(self) -> int:
        return len(self.slots)


@dataclasses.dataclass(frozen=True, slots=True)
class Blocked:
    """An embedding set aside, and the model without which it cannot go on."""

    embedding: int
    name: str
    model: str
    model_hash: bytes


def read_leniently(connection: Connection) -> None:
    """Let bytes that are no UTF-8 become U+FFFD in texts that *connection* reads.

    A SQL_ASCII database may hold some, and one such row must not make those read
    together with it unreadable.
    """
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        # Otherwise the server refuses to send them, and all rows beside them.
        connection.execute("SET client_encoding = SQL_ASCII")
    connection.adapters.register_loader("text", _LenientText)


class _LenientText(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "replace")


class Queue:
    """The queue through one connection, in autocommit mode."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def work(self) -> list[Work]:
        """Return the embeddings that have jobs; enqueues the rows of new ones first."""
        query = """
            SELECT embedding, name, model, model_hash, chunk_tokens, chunk_overlap,
                ready, next_at
            FROM pgembed._work()
        """
        try:
            rows = fetch_all(self.connection, query)
        except errors.QueryCanceled:
            # A large table takes longer to enqueue than a statement may here.
            with self.connection.transaction():
                self.connection.execute("SET LOCAL statement_timeout = 0")
                rows = fetch_all(self.connection, query)
        return [Work(*row) for row in rows]

    def claim(
        self,
        embedding: int,
        *,
        max_rows: int,
        max_characters: int,
        lease: datetime.timedelta,
        max_attempts: int,
    ) -> Claim | None:
        """Take rows under a new lease, or return None when there are none.

        A schema that does not accept this worker's protocol gives an error and no rows.
        """
        rows = fetch_all(
            self.connection,
            """
            SELECT c.lease, c.slot, c.version, c.content
            FROM pgembed._accept_protocol(%s::int),
                pgembed._claim(%s::int, %s::int, %s::bigint, %s, %s::int) AS c
            """,
            (PROTOCOL, embedding, max_rows, max_characters, lease, max_attempts),
        )
        if not rows:
            return None
        leases, slots, versions, texts = map(list, zip(*rows, strict=True))
        return Claim(embedding, leases[0], slots, versions, texts)

    def renew(self, embedding: int, lease: int, duration: datetime.timedelta) -> int:
        """Prolong a lease; return how many rows are still held under it."""
        return self._number(
            "SELECT pgembed._renew(%s::int, %s::bigint, %s)",
            (embedding, lease, duration),
        )

    def complete(
        self,
        claim: Claim,
        worker: UUID,
        positions: Sequence[int],
        vectors: VectorArray,
    ) -> set[int]:
        """Write vectors of the rows at *positions*; return the slots settled.

        The others' source rows are locked by users: try again.
        """
        row = fetch_one(
            self.connection,
            """
            SELECT pgembed._complete(
                %s::int, %s::bigint, %s, %s::int[], %s::int[], %s)
            """,
            (
                claim.embedding,
                claim.lease,
                worker,
                [claim.slots[i] for i in positions],
                [claim.versions[i] for i in positions],
                vectors,
            ),
        )
        return set(row[0])

    def complete_chunks(
        self,
        claim: Claim,
        worker: UUID,
        positions: Sequence[int],
        chunk_slots: Sequence[int],
        chunk_texts: Sequence[str],
        vectors: VectorArray,
    ) -> set[int]:
        """Write the chunks of the rows at *positions*, in order; as complete does."""
        row = fetch_one(
            self.connection,
            """
            SELECT pgembed._complete_chunks(
                %s::int, %s::bigint, %s, %s::int[], %s::int[],
                %s::int[], %s::text[], %s)
            """,
            (
                claim.embedding,
                claim.lease,
                worker,
                [claim.slots[i] for i in positions],
                [claim.versions[i] for i in positions],
                list(chunk_slots),
                list(chunk_texts),
                vectors,
            ),
        )
        return set(row[0])

    def fail(self, claim: Claim, errors: dict[int, str], *, max_attempts: int) -> int:
        """Record why the rows at these positions failed; return how many were held."""
        return self._number(
            """
            SELECT pgembed._fail(
                %s::int, %s::bigint, %s::int[], %s::int[], %s::text[], %s, %s::int)
            """,
            (
                claim.embedding,
                claim.lease,
                [claim.slots[i] for i in errors],
                [claim.versions[i] for i in errors],
                [message.replace("\0", "") for message in errors.values()],
                _FAILURE_BASE,
                max_attempts,
            ),
        )

    def release(self, embedding: int, lease: int, *, delay: float = 0.0) -> int:
        """Hand back what is still held, to be claimable after *delay* seconds."""
        return self._number(
            "SELECT pgembed._release(%s::int, %s::bigint, %s)",
            (embedding, lease, datetime.timedelta(seconds=delay)),
        )

    def block(self, embedding: int, reason: str) -> None:
        """Set an embedding aside; its jobs wait, others run."""
        self.connection.execute(
            "SELECT pgembed._block(%s::int, %s)", (embedding, reason.replace("\0", ""))
        )

    def unblock(self, embedding: int) -> None:
        """Let workers go on with an embedding."""
        self.connection.execute("SELECT pgembed._unblock(%s::int)", (embedding,))

    def is_open(self, embedding: int) -> bool:
        """Whether workers may work on it: neither paused nor blocked nor dropped."""
        query = "SELECT (pgembed._open_embedding(%s::int)).id IS NOT NULL"
        return bool(fetch_one(self.connection, query, (embedding,))[0])

    def blocked(self) -> list[Blocked]:
        """Return the embeddings that were set aside."""
        query = """
            SELECT e.id, e.name, m.name, m.hash
            FROM pgembed.embedding AS e
            INNER JOIN pgembed.model AS m ON m.name = e.model
            WHERE e.blocked IS NOT NULL AND e.kind = 'kept' AND NOT e.paused
            ORDER BY e.id
        """
        return [Blocked(*row) for row in fetch_all(self.connection, query)]

    def models_in_use(self) -> set[bytes]:
        """Return the hashes of the models that kept embeddings need."""
        query = """
            SELECT DISTINCT m.hash
            FROM pgembed.embedding AS e
            INNER JOIN pgembed.model AS m ON m.name = e.model
            WHERE e.kind = 'kept' AND NOT e.paused
        """
        return {row[0] for row in fetch_all(self.connection, query)}

    def _number(self, query: str, parameters: Sequence[object]) -> int:
        return int(fetch_one(self.connection, query, parameters)[0])
