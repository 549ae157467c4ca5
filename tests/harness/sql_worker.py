"""A worker without a model: vectors computed from the text, and an oracle for them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgembed.postgres.vectors import VectorArray

Connection = psycopg.Connection[Any]

DIMENSIONS = 3
_ROUNDS = 1000


def rows(
    connection: Connection, query: str, *parameters: object
) -> list[tuple[Any, ...]]:
    """Run a query whose text was composed; return its rows, if it has any."""
    cursor = connection.execute(query.encode(), parameters or None)
    return cursor.fetchall() if cursor.description else []


def value(connection: Connection, query: str, *parameters: object) -> Any:
    """Return the first column of the first row."""
    return rows(connection, query, *parameters)[0][0]


def vector_of(text: str, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Return the vector (dimensions,) of a text; halfvec holds it exactly, too."""
    digest = hashlib.sha256(text.encode()).digest()
    octets = np.frombuffer(digest * (dimensions // 32 + 1), np.uint8)[:dimensions]
    return ((octets.astype(np.float32) - 127.5) / 128).astype(np.float32)


def chunks_of(text: str) -> list[str]:
    """Return a text in chunks of two words."""
    words = text.split()
    return [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]


@dataclasses.dataclass(frozen=True)
class Claim:
    """Rows under a lease; the lists are parallel."""

    embedding: int
    lease: int
    slots: list[int]
    versions: list[int]
    texts: list[str | None]
    attempts: list[int]

    def __len__(self) -> int:
        return len(self.slots)


class SqlWorker:
    """Does by hand, step by step, what a worker does."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.id: UUID = value(
            connection, "SELECT pgembed._register_worker('embed', 'here', 1, '0')"
        )

    def work(self) -> dict[str, int]:
        """Return how many rows can be claimed of each embedding that has jobs."""
        return dict(rows(self.connection, "SELECT name, ready FROM pgembed._work()"))

    def claim(
        self,
        name: str,
        max_rows: int = 100,
        *,
        max_characters: int = 1_000_000,
        lease: str = "1 minute",
        max_attempts: int = 3,
    ) -> Claim:
        """Claim rows; the claim is empty when there is nothing to do."""
        number = embedding_id(self.connection, name)
        found = rows(
            self.connection,
            "SELECT lease, slot, version, content, attempts "
            "FROM pgembed._claim(%s, %s, %s, %s, %s)",
            number,
            max_rows,
            max_characters,
            lease,
            max_attempts,
        )
        columns = [list(c) for c in zip(*found, strict=True)] or [[] for _ in range(5)]
        leases, slots, versions, texts, attempts = columns
        return Claim(number, (leases or [0])[0], slots, versions, texts, attempts)

    def complete(self, claim: Claim) -> list[int]:
        """Write the vectors, or chunks, of a claim; return the settled slots."""
        is_chunked = value(
            self.connection,
            "SELECT bool_or(chunk_tokens IS NOT NULL) FROM pgembed.embedding "
            "WHERE id = %s",
            claim.embedding,
        )
        write = self._complete_chunks if is_chunked else self._complete
        return sorted(write(claim))

    def _complete(self, claim: Claim) -> list[int]:
        return self._settled(
            "_complete(%s, %s::bigint, %s, %s::int[], %s::int[], %s)",
            claim,
            self._vectors(claim.embedding, claim.texts),
        )

    def _complete_chunks(self, claim: Claim) -> list[int]:
        cut = [
            (slot, chunk)
            for slot, text in zip(claim.slots, claim.texts, strict=True)
            for chunk in chunks_of(text or "")
        ]
        texts = [chunk for _, chunk in cut]
        return self._settled(
            "_complete_chunks(%s, %s::bigint, %s, %s::int[], %s::int[], "
            "%s::int[], %s::text[], %s)",
            claim,
            [slot for slot, _ in cut],
            texts,
            self._vectors(claim.embedding, texts),
        )

    def _settled(self, call: str, claim: Claim, *arrays: object) -> list[int]:
        slots: list[int] = value(
            self.connection,
            f"SELECT pgembed.{call}",
            claim.embedding,
            claim.lease,
            self.id,
            claim.slots,
            claim.versions,
            *arrays,
        )
        return slots

    def _vectors(self, embedding: int, texts: Sequence[str | None]) -> VectorArray:
        dimensions = value(
            self.connection,
            "SELECT coalesce(max(dimensions), %s) FROM pgembed.embedding WHERE id = %s",
            DIMENSIONS,
            embedding,
        )
        vectors = [vector_of(text or "", dimensions) for text in texts]
        return VectorArray(
            np.array(vectors, np.float32).reshape(-1, dimensions),
            np.array([text is None for text in texts], bool),
        )

    def fail(
        self,
        claim: Claim,
        message: str | None = "poison",
        *,
        max_attempts: int = 3,
        base: str = "1 second",
    ) -> int:
        """Fail all rows of a claim; return how many were still held."""
        return int(
            value(
                self.connection,
                "SELECT pgembed._fail(%s, %s::bigint, %s::int[], %s::int[], "
                "%s::text[], %s, %s)",
                claim.embedding,
                claim.lease,
                claim.slots,
                claim.versions,
                [message] * len(claim),
                base,
                max_attempts,
            )
        )

    def release(self, claim: Claim, delay: str = "0") -> int:
        """Hand a claim back; return how many rows were still held."""
        query = "SELECT pgembed._release(%s, %s::bigint, %s)"
        return int(value(self.connection, query, claim.embedding, claim.lease, delay))

    def renew(self, claim: Claim, duration: str = "1 minute") -> int:
        """Prolong a claim; return how many rows are still held."""
        query = "SELECT pgembed._renew(%s, %s::bigint, %s)"
        return int(
            value(self.connection, query, claim.embedding, claim.lease, duration)
        )

    def drain(self) -> None:
        """Work until nothing can be claimed."""
        due = (
            "SELECT name, ready FROM pgembed._work() "
            "WHERE next_at OPERATOR(pg_catalog.<=) pg_catalog.now()"
        )
        for _ in range(_ROUNDS):
            found = rows(self.connection, due)
            if not found:
                return
            ready = [name for name, count in found if count]
            for name in ready:
                claim = self.claim(name)
                settled = self.complete(claim) if len(claim) else []
                assert settled == sorted(claim.slots)
        raise AssertionError(f"the queue of {ready} does not drain")


def embedding_id(connection: Connection, name: str) -> int:
    """Return the number of an embedding."""
    query = "SELECT id FROM pgembed.embedding WHERE name = %s"
    return int(value(connection, query, name))


def job_table(connection: Connection, name: str) -> str:
    """Return the job table of an embedding, quoted."""
    return f"pgembed.job_{embedding_id(connection, name)}"


def expire(connection: Connection, name: str) -> None:
    """Let all leases and waits of an embedding end now."""
    rows(
        connection,
        f"UPDATE {job_table(connection, name)} SET pgembed_available_at = now() "
        "WHERE pgembed_available_at > now()",
    )


def pending(connection: Connection, name: str) -> int:
    """Return how many jobs are to be done, now or later."""
    return int(
        value(
            connection,
            f"SELECT count(*) FROM {job_table(connection, name)} "
            "WHERE pgembed_available_at IS NOT NULL",
        )
    )


@dataclasses.dataclass(frozen=True)
class _Declared:
    source: str
    keys: list[str]
    content: str
    columns: list[str]
    target: str
    target_column: str
    is_chunked: bool
    storage: str
    dimensions: int

    def expected(self, texts: Sequence[str | None]) -> list[str]:
        """Return the text forms of the vectors of a row that is not blank."""
        whole = self._content(texts)
        cut = chunks_of(whole) if self.is_chunked else [whole]
        return [self._stored(vector_of(c, self.dimensions)) for c in cut]

    def _content(self, texts: Sequence[str | None]) -> str:
        by_name = dict(zip(self.columns, texts, strict=True))
        if self.content in by_name:
            return by_name[self.content] or ""

        def part(match: re.Match[str]) -> str:
            column = match[1]
            return match[0][0] if column is None else by_name[column] or ""

        return re.sub(r"\{\{|\}\}|\{([^{}]*)\}", part, self.content)

    def _stored(self, vector: NDArray[np.float32]) -> str:
        if self.storage == "bit":
            return "".join("1" if x > 0 else "0" for x in vector)
        return str([float(x) for x in vector])


def _declared(connection: Connection, name: str) -> _Declared:
    (row,) = rows(
        connection,
        "SELECT source::regclass::text, key_columns, content, content_columns, "
        "target::regclass::text, target_column, chunk_tokens IS NOT NULL, storage, "
        "dimensions FROM pgembed.embedding WHERE name = %s",
        name,
    )
    return _Declared(*row)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _key(keys: Sequence[str]) -> str:
    pairs = ", ".join(
        f"'{key.replace(chr(39), chr(39) * 2)}', t.{_quoted(key)}" for key in keys
    )
    return f"jsonb_build_object({pairs})"


def _canonical(key: object) -> str:
    return json.dumps(key, sort_keys=True)


def _normal_vector(text: str | None) -> str | None:
    if text is None or not text.startswith("["):
        return text
    return str([float(np.float32(x)) for x in text[1:-1].split(",")])


def assert_converged(connection: Connection, name: str) -> None:
    """Check that each row has the vector of its content, or failed; and nothing else.

    Row by row: the vector, or the chunks, that vector_of gives for its content; none
    where that is NULL or blank. One job for each row, none of them to be done.
    """
    declared = _declared(connection, name)
    with connection.transaction():
        connection.execute("SET LOCAL timezone = 'UTC'")
        connection.execute("SET LOCAL row_security = off")
        _compare(
            _found(connection, declared),
            _expected(connection, declared, _failed(connection, name)),
        )
        assert pending(connection, name) == 0
        assert _keys(connection, job_table(connection, name), declared) == _keys(
            connection, declared.source, declared
        )


def _compare(
    found: dict[str, list[str]], expected: dict[str, list[str] | None]
) -> None:
    unknown = {key for key, vectors in found.items() if vectors} - expected.keys()
    assert not unknown, f"vectors of rows that are gone: {unknown}"
    for key, vectors in expected.items():
        if vectors is not None:
            assert found.get(key, []) == vectors, f"row {key}"


def _failed(connection: Connection, name: str) -> set[str]:
    query = "SELECT key FROM pgembed.failures WHERE embedding = %s"
    return {_canonical(key) for (key,) in rows(connection, query, name)}


def _expected(
    connection: Connection, declared: _Declared, failed: set[str]
) -> dict[str, list[str] | None]:
    texts = ", ".join(f"t.{_quoted(c)}::text" for c in declared.columns)
    # What is white space is PostgreSQL's to say: Python takes U+001F for some, too.
    full = f"concat({texts}) COLLATE pg_catalog.\"default\" ~ '\\S'"
    query = f"SELECT {_key(declared.keys)}, {full}, {texts} FROM {declared.source} AS t"
    expected: dict[str, list[str] | None] = {}
    for key, is_full, *contents in rows(connection, query):
        found = declared.expected(contents) if is_full else []
        expected[_canonical(key)] = None if _canonical(key) in failed else found
    return expected


def _found(connection: Connection, declared: _Declared) -> dict[str, list[str]]:
    order = "t.chunk" if declared.is_chunked else "1"
    found: dict[str, list[str]] = {}
    for key, vector in rows(
        connection,
        f"SELECT {_key(declared.keys)}, t.{_quoted(declared.target_column)}::text "
        f"FROM {declared.target} AS t ORDER BY {order}",
    ):
        vectors = found.setdefault(_canonical(key), [])
        text = _normal_vector(vector)
        if text is not None:
            vectors.append(text)
    return found


def _keys(connection: Connection, table: str, declared: _Declared) -> list[str]:
    query = f"SELECT {_key(declared.keys)} FROM {table} AS t"
    return sorted(_canonical(key) for (key,) in rows(connection, query))
