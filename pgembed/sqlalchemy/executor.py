"""The connection of a session, to execute statements and to run a batch on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import operator
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Result, Select, event, inspect
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.util import await_only

from pgembed.errors import PgembedError
from pgembed.postgres import connection as connections
from pgembed.postgres.borrowed import Driver, shared

T = TypeVar("T")
Cancel = Callable[[], Awaitable[None]]

_CANCEL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Executor:
    """Where a batch runs: three views of one connection."""

    session: Session | Connection
    connection: Connection
    driver: connections.Connection
    """Blocking, with pgvector's types."""
    asynchronous: bool

    def entities(self, statement: Select[Any]) -> Result[Any]:
        """Execute a statement the way the user would; its last column is unique."""
        found = self.session.execute(statement)
        if isinstance(self.session, Session):
            # For collections that joins bring along; cheaper than by all columns.
            return found.unique(operator.itemgetter(-1))
        return found

    def final(self, statement: Select[Any]) -> Select[Any]:
        """Return a statement as the events of the session change it, if they do."""
        if isinstance(self.session, Session) and self.session.dispatch.do_orm_execute:
            return _after_events(self.session, statement)
        return statement

    def blocking(self, work: Callable[[], T]) -> T:
        """Do what uses the driver for long, without holding up an event loop.

        When the task is cancelled, so are the statements.
        """
        lent: Any = self.connection.connection.driver_connection
        return _blocking(work, asynchronous=self.asynchronous, cancel=lent.cancel_safe)


@contextlib.contextmanager
def executor(
    session: Session | Connection, statement: Select[Any]
) -> Iterator[Executor]:
    """Open the connection that would execute *statement*, for a batch.

    Raises PgembedError unless it is psycopg's.
    """
    if isinstance(session, Session):
        connection = session.connection(bind_arguments=bind_arguments(statement))
    else:
        connection = session
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection | psycopg.AsyncConnection):
        raise PgembedError(
            f"a batch needs psycopg, and the engine uses {connection.dialect.driver}: "
            "make it with the URL postgresql+psycopg://…"
        )
    asynchronous = isinstance(driver, psycopg.AsyncConnection)
    with (
        _as_the_engine_does(connection),
        _entered(_lent(driver), asynchronous=asynchronous) as own,
        _unflushed(session),
    ):
        yield Executor(session, connection, own, asynchronous)


@contextlib.contextmanager
def _as_the_engine_does(connection: Connection) -> Iterator[None]:
    """Raise errors of the driver as SQLAlchemy's, and give up a lost connection."""
    dialect: Any = connection.dialect
    lent = connection.connection.dbapi_connection
    try:
        yield
    except psycopg.Error as error:
        lost = dialect.is_disconnect(error, lent, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            None,
            None,
            error,
            psycopg.Error,
            connection_invalidated=lost,
            dialect=dialect,
        ) from error


async def _nothing() -> None:
    pass


def _blocking(
    work: Callable[[], T], *, asynchronous: bool, cancel: Cancel = _nothing
) -> T:
    if not asynchronous:
        return work()
    done: T = await_only(_in_thread(work, cancel))
    return done


async def _in_thread(work: Callable[[], T], cancel: Cancel) -> T:
    """Work in a thread, and return only when it is done, even if cancelled.

    It uses the connection, which is given back then.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Again and again: one comes to nothing between two statements.
            with contextlib.suppress(asyncio.CancelledError, psycopg.Error):
                await cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=_CANCEL_SECONDS)
        task.exception()  # or else the loop complains that nobody looked at it
        raise


@contextlib.contextmanager
def _entered(
    context: contextlib.AbstractContextManager[T], *, asynchronous: bool
) -> Iterator[T]:
    """Enter and leave a context that waits for the server, which may be for long.

    A pooler keeps BEGIN waiting until others commit, for which they need the loop.
    """
    value = _blocking(context.__enter__, asynchronous=asynchronous)
    try:
        yield value
    except BaseException as error:
        leave = functools.partial(
            context.__exit__, type(error), error, error.__traceback__
        )
        if not _blocking(leave, asynchronous=asynchronous):
            raise
    else:
        leave = functools.partial(context.__exit__, None, None, None)
        _blocking(leave, asynchronous=asynchronous)


@contextlib.contextmanager
def _lent(driver: Driver) -> Iterator[connections.Connection]:
    with shared(driver) as own, _transaction(own):
        yield own


def bind_arguments(statement: Select[Any]) -> dict[str, Any]:
    """Return by what a session chooses the database for *statement*."""
    entity = statement.column_descriptions[0].get("entity")
    found: dict[str, Any] = {"clause": statement}
    return found if entity is None else {**found, "mapper": inspect(entity).mapper}


@contextlib.contextmanager
def _transaction(driver: connections.Connection) -> Iterator[None]:
    """Run a block in the open transaction, or in a snapshot of its own."""
    if driver.info.transaction_status == TransactionStatus.IDLE:
        with connections.snapshot(driver):
            yield
    else:
        yield


def _unflushed(session: Session | Connection) -> contextlib.AbstractContextManager[Any]:
    if isinstance(session, Session):
        return session.no_autoflush
    return contextlib.nullcontext()


def _after_events(session: Session, statement: Select[Any]) -> Select[Any]:
    caught: list[Select[Any]] = []

    def catch(state: ORMExecuteState) -> Result[Any]:
        assert isinstance(state.statement, Select)  # noqa: S101 - events keep it one
        caught.append(state.statement)
        return IteratorResult(SimpleResultMetaData([]), iter(()))

    event.listen(session, "do_orm_execute", catch)
    try:
        session.execute(statement)
    finally:
        event.remove(session, "do_orm_execute", catch)
    if not caught:
        raise PgembedError(
            "a do_orm_execute event of the session answers the statement itself, so "
            "that a batch cannot: execute it by itself"
        )
    return caught[-1]
