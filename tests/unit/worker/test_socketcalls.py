"""The socket: good callers are served, whatever the others send, and however slowly."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgembed.errors import WorkerError
from pgembed.postgres.vectors import Float32
from pgembed.worker import frames, socketcalls
from pgembed.worker.frames import FrameReader, Request
from pgembed.worker.pending import Call
from pgembed.worker.socketcalls import SocketCalls
from pgembed.worker.socketplace import Peer, SocketPlace
from tests.harness.callers import decode_answer, encode_request

HASH = bytes(32)
PREFIX = "7-5-"
_ROUNDS = 10_000


class Bench:
    """The worker's end, stepped by hand; every call is answered with its lengths."""

    def __init__(self, folder: Path, slow_seconds: float) -> None:
        self.additions: list[tuple[str, list[str], socketcalls.Answered]] = []
        self.left: list[Float32] = []
        self.room = 1
        self.sockets = SocketCalls(
            SocketPlace(folder, PREFIX, None),
            knows=lambda name, model_hash: name == "tiny" and model_hash == HASH,
            add_model=lambda *arguments: self.additions.append(arguments),
            leave=self.leave,
            slow_seconds=slow_seconds,
        )

    def leave(self, model: str, vectors: Float32) -> int | None:
        if len(self.left) >= self.room:
            return None
        self.left.append(vectors)
        return len(self.left)

    def step(self) -> list[Call]:
        calls = self.sockets.take(0.01)
        for call in calls:
            self.sockets.answer([(call, lengths(call.contents))])
        return calls

    @contextlib.contextmanager
    def caller(self) -> Iterator[Caller]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(0)
            connection.connect(str(self.sockets.path))
            yield Caller(connection, self)


class Caller:
    """A backend's end."""

    def __init__(self, connection: socket.socket, bench: Bench) -> None:
        self.connection = connection
        self.bench = bench
        self.reader = FrameReader(max_body=1 << 30)
        self.ended = False

    def send(self, data: bytes) -> None:
        """Send all, while the worker takes steps."""
        while data and not self.ended:
            try:
                data = data[self.connection.send(data) :]
            except BlockingIOError:
                self.bench.step()
            except OSError:
                self.ended = True

    def frame(self) -> frames.Frame:
        """Return the next frame that is no greeting."""
        for _ in range(_ROUNDS):
            self.bench.step()
            for frame in self.receive():
                if frame.kind != frames.GREETING:
                    return frame
        raise AssertionError("no answer came")

    def receive(self) -> list[frames.Frame]:
        try:
            data = self.connection.recv(1 << 20)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.ended = not data
        return list(self.reader.feed(data))

    def wait_for_the_end(self) -> None:
        for _ in range(_ROUNDS):
            self.bench.step()
            self.receive()
            if self.ended:
                return
        raise AssertionError("the connection was not ended")


def lengths(contents: list[str]) -> Float32:
    return np.array([[len(text), 1] for text in contents], np.float32).reshape(-1, 2)


def request(
    *texts: str, model: str = "tiny", number: int = 1, may_leave: bool = False
) -> bytes:
    asked = Request("query", model, HASH, list(texts), 60.0, may_leave)
    return encode_request(asked, number)


def assert_serves(bench: Bench) -> None:
    with bench.caller() as caller:
        for number in (1, 2):
            caller.send(request("a cat", "the dog!", number=number))
            frame = caller.frame()
            assert frame.number == number
            answer = decode_answer(frame)
            np.testing.assert_array_equal(answer, [[5, 1], [8, 1]])


@contextlib.contextmanager
def opened(folder: Path, slow_seconds: float) -> Iterator[Bench]:
    bench = Bench(folder, slow_seconds)
    yield bench
    bench.sockets.close()
    assert list(folder.iterdir()) == []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with opened(tmp_path / "calls", slow_seconds=60) as bench:
        yield bench


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Bench]:
    """A bench that soon loses patience with who is slow."""
    with opened(tmp_path / "calls", slow_seconds=0.2) as bench:
        yield bench


def test_calls_are_answered(bench: Bench) -> None:
    assert_serves(bench)


def test_a_large_answer_and_a_large_request(bench: Bench) -> None:
    with bench.caller() as caller:
        caller.send(request(*["x" * 1000] * 10_000))
        answer = decode_answer(caller.frame())
        assert np.shape(answer) == (10_000, 2)


def test_vectors_are_left_for_those_who_can_read_them(bench: Bench) -> None:
    with bench.caller() as caller:
        caller.send(request("a cat", may_leave=True))
        frame = caller.frame()
        assert (frame.kind, frame.body) == (frames.LEFT, b"\1" + bytes(7))
        np.testing.assert_array_equal(bench.left, [[[5, 1]]])
        caller.send(request("there is no room", number=2, may_leave=True))
        np.testing.assert_array_equal(decode_answer(caller.frame()), [[16, 1]])


def test_an_unknown_model_is_an_error(bench: Bench) -> None:
    with bench.caller() as caller:
        caller.send(request("x", model="other"))
        answer = decode_answer(caller.frame())
        assert answer == "model 'other' is not registered"


@pytest.mark.parametrize("error", [None, "it cannot be read"])
def test_models_are_added_by_others(bench: Bench, error: str | None) -> None:
    contents = ["org/name", "{}"]
    data = encode_request(Request("add_model", "new", b"", contents, 9.0), 3)
    with bench.caller() as caller:
        caller.send(data)
        while not bench.additions:
            bench.step()
        [(name, given_contents, answered)] = bench.additions
        assert (name, given_contents) == ("new", contents)
        answered(error)
        answer = decode_answer(caller.frame())
        assert np.size(answer) == 0 if error is None else answer == error


pieces = st.lists(
    st.one_of(
        st.binary(max_size=64),
        st.just(request("a cat")),
        st.just(request("the dog")[:-3]),
        st.just(b"pe\x02\x02" + bytes(4) + b"\xff\xff\xff\x00"),
        st.just(b"pe\x02\x03" + bytes(8)),
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(pieces, st.booleans())
def test_garbage_hurts_nobody_else(
    bench: Bench, garbage: list[bytes], stays: bool
) -> None:
    with bench.caller() as hostile:
        for piece in garbage:
            hostile.send(piece)
            bench.step()
        if stays:
            assert_serves(bench)
    assert_serves(bench)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", request("a") * 2, request("a", number=5) + b"pe\x09"],
)
def test_who_breaks_the_protocol_is_cut_off(bench: Bench, data: bytes) -> None:
    with bench.caller() as caller:
        caller.send(data + bytes(12))
        caller.wait_for_the_end()
    assert_serves(bench)


def test_a_frame_that_does_not_end_is_cut_off(hasty: Bench) -> None:
    with hasty.caller() as slow:
        slow.send(request("the dog")[:-1])
        hasty.step()
        assert_serves(hasty)
        slow.wait_for_the_end()


def test_an_answer_that_nobody_reads_is_given_up(hasty: Bench) -> None:
    with hasty.caller() as deaf:
        deaf.send(request(*["x"] * 10_000))
        while not (calls := hasty.sockets.take(0.01)):
            continue
        hasty.sockets.answer([(calls[0], np.zeros((10_000, 384), np.float32))])
        assert_serves(hasty)
        waits: Callable[[], bool] = lambda: bool(hasty.sockets._callers)  # noqa: E731
        for _ in range(_ROUNDS):
            hasty.step()
            if not waits():
                break
        assert not waits()


def test_a_caller_that_leaves_is_not_answered(bench: Bench) -> None:
    with bench.caller() as caller:
        caller.send(request("a cat"))
        while not (calls := bench.sockets.take(0.01)):
            continue
        assert bench.sockets.has_caller(calls[0])
    bench.step()
    assert not bench.sockets.has_caller(calls[0])
    bench.sockets.answer([(calls[0], lengths(["a cat"]))])
    assert_serves(bench)


def test_all_who_wait_are_greeted_at_once(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(bench.caller()) for _ in range(20)]
        bench.step()
        greetings = [frame.kind for each in callers for frame in each.receive()]
        assert greetings == [frames.GREETING] * 20


def test_too_many_callers_make_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketcalls, "_MAX_PEERS", 3)
    with contextlib.ExitStack() as stack:
        callers = []
        for _ in range(5):
            callers.append(stack.enter_context(bench.caller()))
            bench.step()
        callers[0].wait_for_the_end()
        assert_serves(bench)


def test_a_worker_without_files_to_open_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks from time to time whether those who wait can be let in."""

    class Full(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, Any]:
            self.tries += 1
            raise OSError(errno.EMFILE, "no file is left")

    with opened(tmp_path / "calls", slow_seconds=2) as bench, bench.caller() as busy:
        busy.send(request("the dog")[:-1])
        bench.step()
        listener = bench.sockets._listener
        full = Full(fileno=listener.fileno())
        monkeypatch.setattr(bench.sockets, "_listener", full)
        with bench.caller() as late:
            ends = time.monotonic() + 1
            while time.monotonic() < ends:
                bench.step()
            assert 1 < full.tries < 10
            full.detach()
            monkeypatch.setattr(bench.sockets, "_listener", listener)
            late.send(request("a cat"))
            assert late.frame().kind == frames.VECTORS


def test_too_much_held_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketcalls, "_MAX_HELD", 100_000)
    with bench.caller() as greedy:
        greedy.send(request("x" * 300_000)[:-1])
        greedy.wait_for_the_end()
    assert_serves(bench)
    # What it held counts no more; nor what was answered.
    for _ in range(3):
        with bench.caller() as modest:
            modest.send(request("x" * 90_000))
            assert modest.frame().kind == frames.VECTORS


def test_the_folder_is_for_its_group_alone(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    place = SocketPlace(folder, PREFIX, None)
    listener, path = place.listen()
    listener.close()
    assert folder.stat().st_mode & 0o777 == 0o750
    assert path.stat().st_mode & 0o777 == 0o660
    assert place.admits(Peer(os.geteuid(), 12345))
    assert place.admits(Peer(0, 0))
    assert place.admits(Peer(12345, folder.stat().st_gid))
    assert not place.admits(Peer(12345, 12345))


def test_what_died_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    place = SocketPlace(tmp_path / "calls", PREFIX, None)
    first, dead = place.listen()
    first.close()
    second, living = place.listen()
    third, _ = place.listen()
    assert not dead.exists()
    assert living.exists()
    second.close()
    third.close()


def test_a_socket_that_does_not_listen_yet_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks for dead sockets between another one's bind() and listen()."""
    place = SocketPlace(tmp_path / "calls", PREFIX, None)
    found: list[tuple[socket.socket, Path]] = []
    second = threading.Thread(target=lambda: found.append(place.listen()))

    class Hesitant(socket.socket):
        def listen(self, backlog: int = 1, /) -> None:
            if threading.current_thread() is not second:
                second.start()
                second.join(0.3)
            super().listen(backlog)

    monkeypatch.setattr("socket.socket", Hesitant)
    first, path = place.listen()
    second.join()
    assert path.exists()
    assert found[0][1].exists()
    first.close()
    found[0][0].close()


def test_a_socket_whose_file_is_lost_comes_back(
    hasty: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(hasty.sockets.path.parent)
    lost = hasty.sockets.path
    while hasty.sockets.path == lost:
        hasty.step()
    assert f"{lost} was deleted" in caplog.text
    assert_serves(hasty)


def test_who_waits_while_the_folder_is_removed_hurts_nobody(hasty: Bench) -> None:
    with hasty.caller() as waiting:
        shutil.rmtree(hasty.sockets.path.parent)
        waiting.wait_for_the_end()
    assert_serves(hasty)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: folder.chmod(0o755), "chmod o="),
        (lambda folder: (folder.rmdir(), folder.touch()), "socket for SQL"),
    ],
)
def test_a_folder_that_will_not_do(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(WorkerError, match=message):
        SocketPlace(folder, PREFIX, None).listen()


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    with pytest.raises(WorkerError, match="too long"):
        SocketPlace(folder, PREFIX, None).listen()
