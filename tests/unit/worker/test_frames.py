"""Frames: whatever arrives in whatever pieces is a request, or a FrameError."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed.worker import frames
from pgembed.worker.frames import Frame, FrameError, FrameReader, Request
from tests.harness.callers import decode_answer, encode_request

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
milliseconds = st.integers(0, 86_400_000)
requests = st.builds(
    Request,
    kind=st.sampled_from(["document", "query"]),
    model=texts.filter(lambda name: "\0" not in name),
    model_hash=st.binary(min_size=32, max_size=32),
    contents=st.lists(texts, max_size=5),
    seconds=milliseconds.map(lambda n: n / 1000),
    may_leave=st.booleans(),
)


def read(data: bytes, cuts: list[int]) -> list[Frame]:
    reader = FrameReader()
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    return [frame for piece in pieces for frame in reader.feed(piece)]


@given(st.lists(requests, max_size=3), st.lists(st.integers(0, 10_000), max_size=8))
def test_requests_come_through_in_any_pieces(
    given_requests: list[Request], cuts: list[int]
) -> None:
    data = b"".join(encode_request(r, i) for i, r in enumerate(given_requests))
    found = read(data, cuts)
    assert [f.number for f in found] == list(range(len(given_requests)))
    for frame, request in zip(found, given_requests, strict=True):
        decoded = frames.decode_request(frame)
        assert decoded.contents == request.contents
        assert decoded.model_hash == request.model_hash
        assert (decoded.kind, decoded.model) == (request.kind, request.model)
        assert decoded.may_leave == request.may_leave
        assert decoded.seconds == pytest.approx(request.seconds, abs=0.0011)


@given(st.integers(0, 255), st.binary(max_size=100))
def test_any_body_is_a_request_or_an_error(kind: int, body: bytes) -> None:
    try:
        request = frames.decode_request(Frame(kind, 1, body))
    except FrameError:
        return
    assert frames.decode_request(Frame(kind, 1, body)) == request


@given(requests, st.data())
def test_a_damaged_request_is_a_request_or_an_error(
    request: Request, data: st.DataObject
) -> None:
    [frame] = read(encode_request(request, 1), [])
    body = bytearray(frame.body)
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    try:
        decoded = frames.decode_request(Frame(frame.kind, 1, bytes(body)))
    except FrameError:
        return
    assert len(decoded.contents) <= frames.MAX_TEXTS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "begins with"),
        (b"pe\x01\x01" + bytes(8), "version 1"),
        (b"pe\x02\x01" + bytes(4) + b"\xff\xff\xff\xff", "4294967295 bytes"),
    ],
)
def test_what_is_no_frame_is_refused_by_its_header(data: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        list(FrameReader().feed(data))


def test_a_model_s_name_has_no_nul() -> None:
    """PostgreSQL would refuse to look for it."""
    request = Request("query", "a\0b", bytes(32), ["x"], 1.0, may_leave=False)
    (frame,) = FrameReader().feed(encode_request(request, 1))
    with pytest.raises(FrameError, match="NUL"):
        frames.decode_request(frame)


def test_answers_come_through() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    [frame] = read(frames.encode_answer(7, vectors), [])
    np.testing.assert_array_equal(decode_answer(frame), vectors)
    [frame] = read(frames.encode_answer(7, "it\0 failed"), [])
    assert (frame.number, decode_answer(frame)) == (7, "it failed")
