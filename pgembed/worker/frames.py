"""Frames: how SQL functions and a worker speak over a Unix socket.

All numbers are unsigned and little-endian. A frame is a header of 12 bytes, which are
magic "pe", version (1 byte), kind (1), number of the call (4), length of the body (4),
and the body:

    greeting                    empty; the worker's first frame on every connection
    document, query, add_model  milliseconds the caller waits (4), whether vectors may
                                be left in table pgembed.call (1), bytes of the model's
                                name (2) and hash (1), number of texts (4); name; hash;
                                bytes of each text (4 each); the texts, UTF-8
    vectors                     number of vectors (4), dimensions (4), float32 each
    error                       a message, UTF-8
    left                        where in pgembed.call the vectors are (8)

One call at a time is under way on a connection. sql/61_calls@plpython.sql is the other
side.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import numpy as np

from pgembed.postgres.vectors import Float32

VERSION = 2
GREETING, DOCUMENT, QUERY, ADD_MODEL, VECTORS, ERROR, LEFT = 0, 1, 2, 3, 16, 17, 18
KINDS = {DOCUMENT: "document", QUERY: "query", ADD_MODEL: "add_model"}

# SQL functions take 10,000 texts and 10,000,000 characters, of four bytes at most.
MAX_TEXTS = 10_000
MAX_REQUEST = 41 << 20

_MAGIC = b"pe"
_HEADER = struct.Struct("<2sBBII")
_REQUEST = struct.Struct("<I?HBI")
_LEFT = struct.Struct("<Q")
_HASH_BYTES = 32


class FrameError(ValueError):
    """The bytes are not those of a frame, or of too large a one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: int
    number: int
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What a SQL function asks for."""

    kind: str
    """document, query or add_model."""
    model: str
    model_hash: bytes
    """Empty for add_model."""
    contents: list[str]
    seconds: float
    """How long the caller waits."""
    may_leave: bool = False
    """Whether the caller can read vectors from table pgembed.call."""


class FrameReader:
    """Bytes in as they arrive, frames out."""

    def __init__(self, *, max_body: int = MAX_REQUEST) -> None:
        self._max_body = max_body
        self._received = bytearray()

    def __len__(self) -> int:
        """Return the bytes of the frame that is not whole yet."""
        return len(self._received)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes in and yield the frames that they complete.

        Raises FrameError when they cannot be the beginning of a frame.
        """
        self._received += data
        while len(self._received) >= _HEADER.size:
            kind, number, length = self._header()
            end = _HEADER.size + length
            if len(self._received) < end:
                return
            body = bytes(memoryview(self._received)[_HEADER.size : end])
            del self._received[:end]
            yield Frame(kind, number, body)

    def _header(self) -> tuple[int, int, int]:
        magic, version, kind, number, length = _HEADER.unpack_from(self._received)
        if magic != _MAGIC:
            raise FrameError(f"a frame begins with {magic!r}, not {_MAGIC!r}")
        if version != VERSION:
            raise FrameError(f"protocol version {version} is not {VERSION}")
        if length > self._max_body:
            raise FrameError(f"a body of {length} bytes; at most {self._max_body}")
        return kind, number, length


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame."""
    header = _HEADER.pack(_MAGIC, VERSION, frame.kind, frame.number, len(frame.body))
    return header + frame.body


def decode_request(frame: Frame) -> Request:
    """Return the request of a frame. Raises FrameError when it holds none."""
    if frame.kind not in KINDS:
        raise FrameError(f"frame {frame.kind} is no request")
    kind = KINDS[frame.kind]
    if len(frame.body) < _REQUEST.size:
        raise FrameError(f"a request of {len(frame.body)} bytes")
    milliseconds, may_leave, *lengths, texts = _REQUEST.unpack_from(frame.body)
    if texts > MAX_TEXTS:
        raise FrameError(f"{texts} texts in a call; at most {MAX_TEXTS}")
    if lengths[1] != (0 if kind == "add_model" else _HASH_BYTES):
        raise FrameError(f"a model's hash of {lengths[1]} bytes")
    if kind == "add_model" and texts != 2:
        raise FrameError(f"{texts} texts, not source and options")
    parts = _cut(frame.body, _REQUEST.size, [*lengths, 4 * texts])
    name, model_hash, sizes = parts
    if b"\0" in name:
        raise FrameError("a NUL in a model's name")
    start = _REQUEST.size + sum(map(len, parts))
    contents = _cut(frame.body, start, list(struct.unpack(f"<{texts}I", sizes)))
    if start + sum(map(len, contents)) != len(frame.body):
        raise FrameError("a request's length is not that of its parts")
    try:
        return Request(
            kind,
            name.decode(),
            model_hash,
            [text.decode() for text in contents],
            milliseconds / 1000,
            may_leave,
        )
    except UnicodeDecodeError as error:
        raise FrameError(f"a text is not UTF-8: {error}") from None


def _cut(body: bytes, start: int, lengths: list[int]) -> list[bytes]:
    parts = []
    for length in lengths:
        part = body[start : start + length]
        if len(part) != length:
            raise FrameError("a request ends in the middle of a part")
        parts.append(part)
        start += length
    return parts


def encode_answer(number: int, answer: Float32 | str) -> bytes:
    """Return the bytes of an answer: vectors, float32 (n, d), or an error."""
    if isinstance(answer, str):
        body = answer.replace("\0", "").encode(errors="replace")
        return encode(Frame(ERROR, number, body))
    shape = struct.pack("<II", *answer.shape)
    data = np.ascontiguousarray(answer, "<f4").tobytes()
    return encode(Frame(VECTORS, number, shape + data))


def encode_left(number: int, call_id: int) -> bytes:
    """Return the bytes of an answer whose vectors are left in table pgembed.call."""
    return encode(Frame(LEFT, number, _LEFT.pack(call_id)))


GREETING_BYTES = encode(Frame(GREETING, 0, b""))
