"""Kept embeddings from Python: the SQL functions, typed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any, Literal

import psycopg
from psycopg.rows import class_row

from pgembed.errors import EmbeddingError
from pgembed.postgres.connection import Connection, fetch_one, is_transient

Storage = Literal["vector", "halfvec", "bit"]
Index = Literal["hnsw", "ivfflat", "none"]
OnChange = Literal["keep", "clear"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingStatus:
    """One row of pgembed.embedding_status."""

    name: str
    source: str
    model: str | None
    rows: int | None
    embedded: int | None
    pending: int | None
    failed: int | None
    oldest_pending: datetime.timedelta | None
    rows_per_second: float
    index_state: str
    state: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """One row of pgembed.failures: its attempts are used up."""

    embedding: str
    key: dict[str, Any]
    attempts: int
    error: str
    failed_at: datetime.datetime


def create_embedding(
    connection: Connection,
    source: str,
    content: str,
    model: str,
    *,
    name: str | None = None,
    target_column: str | None = None,
    chunk_tokens: int | None = None,
    chunk_overlap: int = 0,
    storage: Storage = "vector",
    index: Index = "hnsw",
    on_change: OnChange = "keep",
) -> str:
    """Declare that a column follows from content; return the embedding's name.

    *source* is a table as SQL writes it, *content* a column or a template such as
    '{title}: {body}'. Raises EmbeddingError when it cannot be declared.
    """
    return str(
        _call(
            connection,
            """
            SELECT pgembed.create_embedding(
                source => %s::regclass, content => %s, model => %s, name => %s,
                target_column => %s, chunk_tokens => %s::int,
                chunk_overlap => %s::int, storage => %s, index => %s,
                on_change => %s)
            """,
            source,
            content,
            model,
            name,
            target_column,
            chunk_tokens,
            chunk_overlap,
            storage,
            index,
            on_change,
        )
    )


def adopt_vectors(
    connection: Connection,
    source: str,
    vector_column: str,
    *,
    name: str | None = None,
    distance: str = "cosine",
    model: str | None = None,
) -> str:
    """Make an embedding of vectors the application writes; return its name.

    Raises EmbeddingError when it cannot be declared.
    """
    return str(
        _call(
            connection,
            """
            SELECT pgembed.adopt_vectors(
                source => %s::regclass, vector_column => %s, name => %s,
                distance => %s, model => %s)
            """,
            source,
            vector_column,
            name,
            distance,
            model,
        )
    )


def drop_embedding(
    connection: Connection, name: str, *, drop_vectors: bool = False
) -> None:
    """End an embedding; with *drop_vectors* its column or chunk table goes, too."""
    _call(connection, "SELECT pgembed.drop_embedding(%s, %s)", name, drop_vectors)


def pause_embedding(connection: Connection, name: str) -> None:
    """Let the workers leave an embedding alone; changes go on being captured."""
    _call(connection, "SELECT pgembed.pause_embedding(%s)", name)


def resume_embedding(connection: Connection, name: str) -> None:
    """Let the workers go on with an embedding that was paused or blocked."""
    _call(connection, "SELECT pgembed.resume_embedding(%s)", name)


def retry_failed(connection: Connection, name: str) -> int:
    """Give failed rows their attempts again; return how many."""
    return int(_call(connection, "SELECT pgembed.retry_failed(%s)", name))


def reconcile(connection: Connection, name: str) -> int:
    """Queue every row that differs from what was embedded last; return how many.

    On a connection in autocommit, writers wait for no more than the repair of triggers.
    """
    _call(connection, "SELECT pgembed._repair_capture(%s)", name)
    return int(_call(connection, "SELECT pgembed.reconcile(%s)", name))


def embedding_status(connection: Connection) -> list[EmbeddingStatus]:
    """Return how the embeddings are doing, by name."""
    columns = ", ".join(f.name for f in dataclasses.fields(EmbeddingStatus))
    with connection.cursor(row_factory=class_row(EmbeddingStatus)) as cursor:
        return cursor.execute(
            f"SELECT {columns} FROM pgembed.embedding_status ORDER BY name"  # noqa: S608
        ).fetchall()


def failures(connection: Connection) -> list[Failure]:
    """Return the rows whose attempts are used up, the latest first."""
    query = """
        SELECT embedding, key, attempts, error, failed_at
        FROM pgembed.failures ORDER BY failed_at DESC
    """
    with connection.cursor(row_factory=class_row(Failure)) as cursor:
        return cursor.execute(query).fetchall()


def _call(connection: Connection, query: str, *parameters: object) -> Any:
    with _errors_explained():
        return fetch_one(connection, query, parameters)[0]


@contextlib.contextmanager
def _errors_explained() -> Iterator[None]:
    """Raise what the database says about a declaration as EmbeddingError."""
    try:
        yield
    except (UnicodeEncodeError, psycopg.DataError) as error:
        if isinstance(error, psycopg.Error) and error.sqlstate is not None:
            raise _explained(error) from error
        raise EmbeddingError(
            f"a name or a content holds what PostgreSQL cannot store: {error}"
        ) from error
    except psycopg.Error as error:
        if is_transient(error) or error.diag.message_primary is None:
            raise
        raise _explained(error) from error


def _explained(error: psycopg.Error) -> EmbeddingError:
    parts = (
        error.diag.message_primary,
        error.diag.message_detail,
        error.diag.message_hint,
    )
    return EmbeddingError("\n".join(filter(None, parts)))
