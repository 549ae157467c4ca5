"""A driver connection that somebody else owns, used as one of ours for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from pgembed.errors import PgembedError
from pgembed.postgres import vectors
from pgembed.postgres.connection import Connection

Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


@contextlib.contextmanager
def borrowed(driver: Driver) -> Iterator[Connection]:
    """Lend the session of *driver* as :func:`shared` does, and to nobody else.

    Other threads that use *driver* meanwhile wait, as for any statement of psycopg's.
    """
    with contextlib.ExitStack() as stack:
        # An asynchronous one is of one thread, which its batch keeps.
        if isinstance(driver, psycopg.Connection):
            stack.enter_context(driver.lock)
        yield stack.enter_context(shared(driver))


@contextlib.contextmanager
def shared(driver: Driver) -> Iterator[Connection]:
    """Lend the session of *driver* as a blocking connection with pgvector's types.

    Both speak over the same socket and are in the same transaction, so *driver* must
    rest while the other is used. Adapters, row factory and prepared statements of
    *driver* stay as they are. Raises PgembedError for a connection that is closed or in
    pipeline mode.
    """
    if driver.closed:
        raise PgembedError("the connection is closed; open another")
    pgconn = driver.pgconn
    if pgconn.pipeline_status != PipelineStatus.OFF:
        raise PgembedError(
            "the connection is in pipeline mode, in which it cannot wait for "
            "answers: leave the pipeline first, or pass another connection"
        )
    handlers = pgconn.notice_handler, pgconn.notify_handler
    own: Connection = psycopg.Connection(pgconn)
    # What the owner listens for arrives once, whoever reads it.
    pgconn.notify_handler = handlers[1]
    # Names of prepared statements would be those that the driver gives its own.
    own.prepare_threshold = None
    if own.info.transaction_status == TransactionStatus.IDLE:
        own.autocommit = True
    encoding = own.info.parameter_status("client_encoding")
    set_encoding = "SELECT pg_catalog.set_config('client_encoding', %s, false)"
    try:
        if encoding != "UTF8":  # of statements of ours, and of what JSON is read from
            own.execute(set_encoding, ["UTF8"])
        vectors.register(own)
        yield own
    finally:
        if encoding != "UTF8":  # a failed transaction, rolled back, restores it itself
            with contextlib.suppress(psycopg.Error):
                own.execute(set_encoding, [encoding])
        pgconn.notice_handler, pgconn.notify_handler = handlers
        # Without it, the connection is not missed as one that nobody closed.
        del own.pgconn
