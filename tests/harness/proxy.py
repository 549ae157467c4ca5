"""A proxy between a client and a PostgreSQL server that fails on request."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

_IDLE = b"Z\x00\x00\x00\x05I"  # ReadyForQuery outside a transaction: it is committed
_CHUNK = 65536
_SLICE = 0.05


class _Session:
    """One client's connection, and the proxy's own to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.doomed = False

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Passes bytes on, unless told otherwise; one thread serves all connections."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        given = conninfo_to_dict(dsn)
        port = given.get("port") or 5432
        self._target = f"{given['host']}/.s.PGSQL.{port}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._sessions: set[_Session] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stalled = False
        self._refusing = False
        self._before: bytes | None = None
        self._after: bytes | None = None
        self.cut = threading.Event()
        """Set when cut_before or cut_after has cut a connection."""
        self._thread = threading.Thread(target=self._serve)

    @property
    def dsn(self) -> str:
        """The DSN that leads through the proxy."""
        parts = urlsplit(self._dsn)
        port = self._listener.getsockname()[1]
        user = parts.username or "postgres"
        plain = "sslmode=disable&gssencmode=disable"
        return f"postgresql://{user}@127.0.0.1:{port}{parts.path}?{plain}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()
        self.drop()
        self._listener.close()
        self._selector.close()

    def drop(self) -> int:
        """Close all connections; return how many there were."""
        with self._lock:
            for session in self._sessions:
                self._forget(session)
            dropped, self._sessions = len(self._sessions), set()
        return dropped

    def refuse(self) -> None:
        """Close all connections, and every new one: the server is gone."""
        self._refusing = True
        self.drop()

    def stall(self) -> None:
        """Pass nothing on, and keep every connection open."""
        with self._lock:
            self._stalled = True

    def flow(self) -> None:
        """Pass everything on again, also what came meanwhile."""
        with self._lock:
            self._stalled = False

    def cut_before(self, statement: bytes) -> None:
        """Cut the next connection that sends these bytes; they do not arrive."""
        self.cut.clear()
        self._before = statement

    def cut_after(self, statement: bytes) -> None:
        """Let the next statement with these bytes commit, and lose its answer."""
        self.cut.clear()
        self._after = statement

    def _serve(self) -> None:
        while not self._closed.is_set():
            ready = self._selector.select(_SLICE)
            with self._lock:
                if self._stalled:
                    self._closed.wait(_SLICE)
                    continue
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._sessions:
                        self._pass_on(key.data, key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._refusing:
            client.close()
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            server.close()
            return
        session = _Session(client, server)
        self._sessions.add(session)
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ, session)

    def _pass_on(self, session: _Session, source: object) -> None:
        from_client = source is session.client
        giver, taker = session.client, session.server
        if not from_client:
            giver, taker = taker, giver
        try:
            data = giver.recv(_CHUNK)
            if data and not self._fails(session, data, from_client=from_client):
                taker.sendall(data)
                return
        except OSError:
            pass
        self._forget(session)
        self._sessions.discard(session)

    def _fails(self, session: _Session, data: bytes, *, from_client: bool) -> bool:
        """Whether the connection is to be cut here."""
        if from_client and self._before and self._before in data:
            self._before = None
            self.cut.set()
            return True
        if from_client and self._after and self._after in data:
            self._after = None
            session.doomed = True
        if not from_client and session.doomed and data.endswith(_IDLE):
            self.cut.set()
            return True
        return False

    def _forget(self, session: _Session) -> None:
        for end in (session.client, session.server):
            self._selector.unregister(end)
        session.close()


@contextlib.contextmanager
def proxy(dsn: str) -> Iterator[Proxy]:
    """Run a proxy to the server of a DSN during the block."""
    with Proxy(dsn) as running:
        yield running
