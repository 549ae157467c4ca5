"""``search_batch``: the statements of many searches, answered as one batch."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

from sqlalchemy import ClauseElement, Connection, Row, Select
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_scoped_session,
)
from sqlalchemy.orm import Session, scoped_session

from pgembed.batch.execute import Options, Progress
from pgembed.batch.limits import thread_count
from pgembed.errors import SettingError
from pgembed.settings import memory_bytes
from pgembed.sqlalchemy.answers import Answers
from pgembed.sqlalchemy.asked import Asked, Nearest, read
from pgembed.sqlalchemy.executor import Executor, bind_arguments, executor
from pgembed.sqlalchemy.garbage import spared, uncollected
from pgembed.sqlalchemy.loading import Rows
from pgembed.sqlalchemy.search import Embedder
from pgembed.sqlalchemy.shape import refused

Blocking = Session | scoped_session[Session] | Connection
Asynchronous = AsyncSession | async_scoped_session[Any] | AsyncConnection
# As text: SQLAlchemy 2.0 has other parameters for these types.
Statements: TypeAlias = "Sequence[Select[Any, float]]"
Found: TypeAlias = "list[list[Row[Any, float]]]"


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What search_batch was told besides the statements."""

    embedder: Embedder | Callable[[str], Any] | None
    options: Options


@overload
def search_batch(
    session: Blocking,
    statements: Statements,
    *,
    embedder: Embedder | Callable[[str], Any] | None = None,
    memory: str | int = "512MB",
    threads: int | None = None,
    layout: bool = True,
    layouts: Path | None = None,
    progress: Progress | None = None,
) -> Found: ...


@overload
def search_batch(
    session: Asynchronous,
    statements: Statements,
    *,
    embedder: Embedder | Callable[[str], Any] | None = None,
    memory: str | int = "512MB",
    threads: int | None = None,
    layout: bool = True,
    layouts: Path | None = None,
    progress: Progress | None = None,
) -> Coroutine[Any, Any, Found]: ...


def search_batch(
    session: Blocking | Asynchronous,
    statements: Statements,
    *,
    embedder: Embedder | Callable[[str], Any] | None = None,
    memory: str | int = "512MB",
    threads: int | None = None,
    layout: bool = True,
    layouts: Path | None = None,
    progress: Progress | None = None,
) -> Found | Coroutine[Any, Any, Found]:
    """Execute many statements made by search() as one batch.

    Returns for each statement, in their order, its rows: (entity, distance), nearest
    first, each once. With an AsyncSession or AsyncConnection, await the result.

    The statements may have criteria, joins, loader options, and limit() and offset()
    when they join nothing; each distinct set of criteria is evaluated once, by
    PostgreSQL. Statements with columns, an order or a grouping of their own, with
    FOR UPDATE, contains_eager() or an SQL expression as query are refused, and so are
    those of hybrid_search(). *recall* is that of each search(); mode='exact' is 1.
    Distances are added up in float64, and by pgvector in float32: rows that differ by
    less than 1e-7 may come in another order than when a statement is executed.

    *embedder* embeds the texts among the queries in this process, all at once;
    without it a worker does, one by one. *memory*, *threads*, *layout*, *layouts* and
    *progress* are those of pgembed.search_batch.

    Runs on the session's own connection, which must be psycopg's, after a flush if
    the session does autoflush. In an open READ COMMITTED transaction the batch runs
    again when rows with vectors change meanwhile; an open transaction with another
    isolation level sees its snapshot; without one, all is read in a snapshot that is
    over when this returns. Its role needs what ``pgembed.grant_batch`` grants beside
    what a search does.

    Raises FilterError for a statement or criteria that a batch cannot answer,
    EmbeddingError for an embedding that cannot be searched, VectorError for queries
    that do not fit it, SettingError for arguments that make no sense, and PgembedError
    for a connection of another driver and for rows that do not stop changing; and
    SQLAlchemy's DBAPIError for what the driver raises, a lost connection say.
    """
    if isinstance(session, scoped_session | async_scoped_session):
        session = session.registry()
    _require(session, statements)
    options = Options(
        0.99,
        memory_bytes(memory),
        thread_count(threads),
        layout,
        layouts,
        progress,
        steady=True,
    )
    settings = _Settings(embedder, options)
    if isinstance(session, AsyncSession | AsyncConnection):
        return session.run_sync(_search_batch, statements, settings)
    return _search_batch(session, statements, settings)


def _require(session: Any, statements: Any) -> None:
    """Raise SettingError for what only looks like the arguments of search_batch."""
    if not isinstance(session, Session | Connection | AsyncSession | AsyncConnection):
        raise SettingError(
            f"search_batch() runs in a Session or on a Connection, and {session!r} is "
            "neither: open one, such as with Session(engine) as session"
        )
    if isinstance(statements, ClauseElement):
        raise SettingError(
            "search_batch() takes a list of statements, and one statement was given: "
            "pass [statement], or execute it by itself"
        )


def _search_batch(
    session: Session | Connection, statements: Statements, settings: _Settings
) -> Found:
    if not statements:
        return []
    # Criteria may be on what the flush makes, such as keys.
    if isinstance(session, Session) and session.autoflush:
        session.flush()
    with uncollected():
        asked = read(statements)
    rows: Found = [[] for _ in asked]
    for members in _by_bind(session, asked):
        part = [asked[i] for i in members]
        for number, found in zip(
            members, _answer(session, part, settings), strict=True
        ):
            rows[number] = found
    return rows


def _by_bind(
    session: Session | Connection, asked: Sequence[Asked]
) -> Iterable[list[int]]:
    """Return the numbers of the statements that each database of a session answers."""
    if not isinstance(session, Session):
        return [list(range(len(asked)))]
    binds: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for number, each in enumerate(asked):
        if id(each.shape) not in binds:
            bind = session.get_bind(**bind_arguments(each.statement))
            binds[id(each.shape)] = id(bind)
        groups.setdefault(binds[id(each.shape)], []).append(number)
    return groups.values()


def _answer(
    session: Session | Connection, asked: list[Asked], settings: _Settings
) -> Found:
    with (
        contextlib.ExitStack() as last,
        spared(),
        executor(session, asked[0].statement) as execute,
    ):
        found = Answers(execute, settings.options, settings.embedder).of(asked)
        # Until all else is left: nothing is to be collected on the way.
        last.enter_context(uncollected())
        return _rows(execute, asked, found)


def _rows(execute: Executor, asked: list[Asked], found: list[Nearest]) -> Found:
    groups: dict[Any, list[int]] = {}
    for number, each in enumerate(asked):
        groups.setdefault(each.loaded_with, []).append(number)
    rows: Found = [[] for _ in asked]
    for members in groups.values():
        chosen = [asked[i].chosen(found[i]) for i in members]
        keys = _distinct(itertools.chain.from_iterable(each for each, _ in chosen))
        loaded = Rows.load(execute, asked[members[0]], keys)
        for number, part in zip(members, loaded.of(chosen), strict=True):
            rows[number] = part
    return rows


def _distinct(keys: Iterable[Any]) -> set[Any]:
    try:
        return set(keys)
    except TypeError as error:
        raise refused(f"rows cannot be told apart by their key: {error}") from None
