"""Calls that come over a Unix socket, from SQL functions in PL/Python."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import select
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pgembed.errors import WorkerError
from pgembed.postgres.vectors import Float32
from pgembed.worker.frames import (
    GREETING_BYTES,
    FrameError,
    FrameReader,
    Request,
    decode_request,
    encode_answer,
    encode_left,
)
from pgembed.worker.pending import AnsweredCall, Call, Group
from pgembed.worker.socketplace import Peer, SocketPlace

_log = logging.getLogger(__name__)

_MAX_PEERS = 500  # below the usual limit of 1024 open files
_MAX_HELD = 256 << 20  # bytes of all requests that are still arriving
_PIECE = 1 << 16  # of larger ones malloc() maps each anew
_PIECES = 64  # taken of one caller at a time
_SLOW_SECONDS = 10.0  # for the rest of a frame to come, or of an answer to go

Answered = Callable[[str | None], None]
Leave = Callable[[str, Float32], int | None]


@dataclasses.dataclass(eq=False)
class _Caller:
    """A backend's connection."""

    socket: socket.socket
    reader: FrameReader = dataclasses.field(default_factory=FrameReader)
    outgoing: bytes = b""
    number: int | None = None
    """The call under way."""
    moved: float = dataclasses.field(default_factory=time.monotonic)
    """When bytes came or went last."""
    held: int = 0
    """Bytes of its unfinished request, as they are counted in the sum of all."""

    @property
    def is_idle(self) -> bool:
        return self.number is None and not self.outgoing and not len(self.reader)

    @property
    def is_between(self) -> bool:
        """Whether a frame is on its way, one way or the other."""
        return bool(self.outgoing) or len(self.reader) > 0


@dataclasses.dataclass(frozen=True)
class _Reply:
    caller: _Caller
    number: int
    leaves: str | None = None
    """The model whose vectors the caller can read from pgembed.call."""


class SocketCalls:
    """A socket as a transport.

    *knows* says whether a model has that hash, *add_model* begins to add one and calls
    back with an error or None, from any thread. *leave* puts vectors of a model where
    callers can read them, and returns where, or None when it could not.
    """

    def __init__(
        self,
        place: SocketPlace,
        knows: Callable[[str, bytes], bool],
        add_model: Callable[[str, list[str], Answered], None],
        leave: Leave,
        *,
        slow_seconds: float = _SLOW_SECONDS,
    ) -> None:
        self._place = place
        self._knows = knows
        self._add_model = add_model
        self._leave = leave
        self._slow_seconds = slow_seconds
        self._next_check = 0.0
        self.other_is_ready = False
        """Whether the file descriptor given to take() could be read."""
        self._listener, self.path = place.listen()
        self._is_lost = False
        self._callers: dict[int, _Caller] = {}
        self._held = 0
        self._added: queue.SimpleQueue[tuple[_Reply, str | None]] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._wake_reader, select.EPOLLIN)

    def take(self, timeout: float, other: int | None = None) -> list[Call]:
        """Return new calls; waits for one at most *timeout* seconds.

        Also ends when *other*, a file descriptor, can be read.
        """
        self._watch(other)
        self.other_is_ready = False
        calls: list[Call] = []
        for descriptor, event in self._poll.poll(timeout):
            if descriptor == self._listener.fileno():
                self._accept()
            elif descriptor == self._wake_reader:
                self._answer_additions()
            elif descriptor == other:
                self.other_is_ready = True
            elif descriptor in self._callers:
                calls += self._serve(self._callers[descriptor], event)
        self._look_around()
        return calls

    def brought(self, call: Call) -> bool:
        """Whether a call came from here."""
        return isinstance(call.reply_to, _Reply)

    def answer(self, answers: Sequence[AnsweredCall]) -> None:
        """Answer calls with vectors, float32 (n, d), or with errors."""
        for call, answer in answers:
            assert isinstance(call.reply_to, _Reply)  # noqa: S101 - made here
            self._reply(call.reply_to, answer)

    def has_caller(self, call: Call) -> bool:
        """Whether the caller neither hung up nor gave the call up."""
        assert isinstance(call.reply_to, _Reply)  # noqa: S101 - made here
        return call.reply_to.caller.number == call.reply_to.number

    def close(self) -> None:
        """End all connections and remove the socket."""
        for caller in list(self._callers.values()):
            self._drop(caller)
        with contextlib.suppress(FileNotFoundError):
            Path(self.path).unlink()
        self._listener.close()
        self._poll.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _watch(self, other: int | None) -> None:
        if other is not None:
            # Registered anew each time: the descriptor may be another connection's.
            with contextlib.suppress(FileExistsError):
                self._poll.register(other, select.EPOLLIN)

    def _accept(self) -> None:
        """Let everybody in who waits: not one after each batch of calls."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # it left again, or no file is left to open
                _log.warning("a connection could not be accepted: %s", error)
                if not self._drop_idlest():
                    self._poll.modify(self._listener, 0)  # until we look around
                return
            self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        if not self._admits(connection):
            connection.close()
            return
        if len(self._callers) >= _MAX_PEERS:
            self._drop_idlest()
        if len(self._callers) >= _MAX_PEERS:
            connection.close()  # it tries again
            return
        connection.setblocking(False)
        caller = _Caller(connection)
        self._callers[connection.fileno()] = caller
        self._poll.register(connection, select.EPOLLIN)
        self._send(caller, GREETING_BYTES)

    def _admits(self, connection: socket.socket) -> bool:
        peer = Peer.of(connection)
        try:
            admitted = self._place.admits(peer)
        except OSError as error:  # the folder is gone, and the socket with it
            _log.warning("a connection could not be accepted: %s", error)
            return False
        if not admitted:
            _log.warning("user %d may not ask for vectors", peer.user)
        return admitted

    def _serve(self, caller: _Caller, event: int) -> list[Call]:
        try:
            if event & select.EPOLLOUT:
                self._send(caller, b"")
            if event & ~select.EPOLLOUT:
                return self._receive(caller)
        except FrameError as error:
            _log.warning("a caller was cut off: %s", error)
            self._drop(caller)
        return []

    def _receive(self, caller: _Caller) -> list[Call]:
        try:
            data = _received(caller.socket)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self._drop(caller)
            return []
        # A trickle is no progress: the time runs from the first byte of a frame.
        if not len(caller.reader):
            caller.moved = time.monotonic()
        calls = []
        try:
            for frame in caller.reader.feed(data):
                if caller.number is not None:
                    raise FrameError("a second call while one is under way")
                caller.number = frame.number
                reply = _Reply(caller, frame.number)
                calls += self._begin(reply, decode_request(frame))
        finally:
            self._count(caller)
        if self._held > _MAX_HELD:
            raise FrameError("too many bytes of requests are held already")
        return calls

    def _count(self, caller: _Caller) -> None:
        is_there = self._callers.get(caller.socket.fileno()) is caller
        held = len(caller.reader) if is_there else 0
        self._held += held - caller.held
        caller.held = held

    def _begin(self, reply: _Reply, request: Request) -> list[Call]:
        if request.kind == "add_model":

            def answered(error: str | None) -> None:
                self._added.put((reply, error))
                with contextlib.suppress(OSError):
                    os.write(self._wake_writer, b"\0")

            self._add_model(request.model, request.contents, answered)
            return []
        if not self._knows(request.model, request.model_hash):
            self._reply(reply, f"model {request.model!r} is not registered")
            return []
        if request.may_leave:
            reply = dataclasses.replace(reply, leaves=request.model)
        group = Group(request.model, request.model_hash, request.kind)
        deadline = time.monotonic() + request.seconds
        return [Call(reply, group, request.contents, deadline)]

    def _answer_additions(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 1024)
        with contextlib.suppress(queue.Empty):
            while True:
                reply, error = self._added.get_nowait()
                self._reply(
                    reply, np.empty((0, 0), np.float32) if error is None else error
                )

    def _reply(self, reply: _Reply, answer: Float32 | str) -> None:
        caller = reply.caller
        # A caller that went away, or gave up and asked again over another connection.
        if caller.number == reply.number:
            caller.number = None
            self._send(caller, self._encoded(reply, answer))

    def _encoded(self, reply: _Reply, answer: Float32 | str) -> bytes:
        if reply.leaves is not None and not isinstance(answer, str):
            place = self._leave(reply.leaves, answer)
            if place is not None:
                return encode_left(reply.number, place)
        return encode_answer(reply.number, answer)

    def _send(self, caller: _Caller, data: bytes) -> None:
        waited = bool(caller.outgoing)
        data = caller.outgoing + data
        try:
            sent = caller.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(caller)
            return
        if sent or not waited:
            caller.moved = time.monotonic()
        caller.outgoing = data[sent:]
        if bool(caller.outgoing) != waited:
            write = select.EPOLLOUT if caller.outgoing else 0
            self._poll.modify(caller.socket, select.EPOLLIN | write)

    def _drop(self, caller: _Caller) -> None:
        caller.number = None
        caller.outgoing = b""
        self._callers.pop(caller.socket.fileno(), None)
        self._count(caller)
        caller.socket.close()

    def _drop_idlest(self) -> bool:
        """Make room, and return whether there was any to make.

        A backend that is cut off while idle connects again.
        """
        idle = [each for each in self._callers.values() if each.is_idle]
        if idle:
            self._drop(min(idle, key=lambda each: each.moved))
        return bool(idle)

    def _look_around(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + self._slow_seconds / 10
        self._drop_slow(now)
        self._poll.modify(self._listener, select.EPOLLIN)
        if not os.path.exists(self.path):
            self._reopen()

    def _reopen(self) -> None:
        """Open another socket: somebody deleted the file of this one."""
        try:
            listener, path = self._place.listen()
        except WorkerError as error:
            if not self._is_lost:
                _log.warning("%s", error)
            self._is_lost = True
            return
        self._is_lost = False
        _log.warning(
            "%s was deleted; callers now find this worker at %s", self.path, path
        )
        self._poll.unregister(self._listener)
        self._listener.close()
        self._listener, self.path = listener, path
        self._poll.register(listener, select.EPOLLIN)

    def _drop_slow(self, now: float) -> None:
        for caller in list(self._callers.values()):
            if caller.is_between and caller.moved < now - self._slow_seconds:
                _log.warning("a caller was cut off: its frame did not move on")
                self._drop(caller)


def _received(connection: socket.socket) -> bytes:
    """Return what has come, of much only the beginning; nothing when it ended."""
    data = connection.recv(_PIECE)
    pieces = [data]
    with contextlib.suppress(OSError):
        while len(data) == _PIECE and len(pieces) < _PIECES:
            data = connection.recv(_PIECE)
            pieces.append(data)
    return b"".join(pieces)
