"""Calls from table and socket, taken as one."""

from __future__ import annotations

import time

from pgembed.postgres.vectors import Float32
from pgembed.worker.pending import Call
from pgembed.worker.socketcalls import SocketCalls
from pgembed.worker.tablecalls import TableCalls


class TableAndSocket:
    """Waits for both at once; each answers the calls that it brought."""

    def __init__(self, table: TableCalls, sockets: SocketCalls) -> None:
        self._table = table
        self._sockets = sockets

    def take(self, timeout: float) -> list[Call]:
        """Return new calls; waits for one at most *timeout* seconds."""
        due = self._table.due - time.monotonic()
        calls = self._sockets.take(
            max(min(timeout, due), 0.0), self._table.descriptor()
        )
        if self._sockets.other_is_ready or time.monotonic() >= self._table.due:
            calls += self._table.take(0)
        return calls

    def answer(self, call: Call, answer: Float32 | str) -> None:
        """Answer with vectors, float32 (n, d), or with an error."""
        if self._sockets.brought(call):
            self._sockets.answer(call, answer)
        else:
            self._table.answer(call, answer)
