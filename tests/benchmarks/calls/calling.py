"""A database with a model and a worker that answers, by transport."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from pgembed.models.candidate import Candidate
from pgembed.models.registry import store_model
from pgembed.postgres.connection import Connection, connect, fetch_one
from pgembed.postgres.transports import Wish
from tests.harness.server import Databases
from tests.integration.worker.running import child_process

TRANSPORTS: tuple[Wish, ...] = ("plpython", "dblink")
TIMEOUT = "60s"


@dataclasses.dataclass(frozen=True)
class Caller:
    """A session whose calls a worker of its own answers."""

    connection: Connection
    server: Databases

    @property
    def dsn(self) -> str:
        """Return the DSN of its database."""
        return self.server.dsn(self.connection.info.dbname)

    def embed_query(self, text: str) -> Any:
        """Return the vector of one text."""
        # Binary: reading a vector's text takes the client 0.2 ms.
        query = "SELECT pgembed.embed_query('model', %s)"
        return self.connection.execute(query, (text,), binary=True).fetchone()

    def embed_batch(self, texts: list[str]) -> int:
        """Have the vectors of texts made, and return how many there are.

        They stay in the server: to read them is the client's work.
        """
        query = "SELECT cardinality(pgembed.embed_batch('model', %s))"
        return int(fetch_one(self.connection, query, (texts,))[0])

    @contextlib.contextmanager
    def another_session(self) -> Iterator[Caller]:
        """Open another session of the same database."""
        with connect(self.dsn) as connection:
            connection.execute(f"SET pgembed.call_timeout = '{TIMEOUT}'".encode())
            yield Caller(connection, self.server)


@contextlib.contextmanager
def calling(
    server: Databases, transport: Wish, candidate: Candidate
) -> Iterator[Caller]:
    """Yield a caller over a transport, when its worker has loaded the model."""
    template = server.installed_template(transport)
    with server.database(template) as name, connect(server.dsn(name)) as connection:
        store_model(connection, "model", candidate)
        connection.execute(f"SET pgembed.call_timeout = '{TIMEOUT}'".encode())
        with child_process("calls", server.dsn(name)):
            caller = Caller(connection, server)
            caller.embed_query("so that the worker has loaded the model")
            yield caller
