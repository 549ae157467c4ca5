"""Calls from table and socket, taken as one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pgembed.worker.pending import AnsweredCall, Call
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

    def answer(self, answers: Sequence[AnsweredCall]) -> None:
        """Answer calls of one group with vectors, float32 (n, d), or with errors."""
        by_socket = [each for each in answers if self._sockets.brought(each[0])]
        self._sockets.answer(by_socket)
        by_table = [each for each in answers if not self._sockets.brought(each[0])]
        self._table.answer(by_table)

    def has_caller(self, call: Call) -> bool:
        """Whether the caller is still there, as far as is known."""
        if self._sockets.brought(call):
            return self._sockets.has_caller(call)
        return self._table.has_caller(call)
