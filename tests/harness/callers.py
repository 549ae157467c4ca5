"""The other end of a worker's socket: what SQL functions send, and read of answers."""

from __future__ import annotations

import struct

import numpy as np

from pgembed.postgres.vectors import Float32
from pgembed.worker import frames
from pgembed.worker.frames import Frame, FrameError, Request

_REQUEST = struct.Struct("<I?HBI")


def encode_request(request: Request, number: int) -> bytes:
    """Return the bytes of a request."""
    kind = next(kind for kind, name in frames.KINDS.items() if name == request.kind)
    model = request.model.encode()
    texts = [text.encode() for text in request.contents]
    body = [
        _REQUEST.pack(
            int(request.seconds * 1000),
            request.may_leave,
            len(model),
            len(request.model_hash),
            len(texts),
        ),
        model,
        request.model_hash,
        struct.pack(f"<{len(texts)}I", *map(len, texts)),
        *texts,
    ]
    return frames.encode(Frame(kind, number, b"".join(body)))


def decode_answer(frame: Frame) -> Float32 | str:
    """Return the vectors, float32 (n, d), or the error of a frame.

    Raises FrameError when it holds neither.
    """
    if frame.kind == frames.ERROR:
        return frame.body.decode(errors="replace")
    if frame.kind != frames.VECTORS or len(frame.body) < 8:
        raise FrameError(f"frame {frame.kind} is no answer")
    count, dimensions = struct.unpack_from("<II", frame.body)
    if len(frame.body) != 8 + 4 * count * dimensions:
        raise FrameError(f"{count} vectors of {dimensions} in {len(frame.body)} bytes")
    return np.frombuffer(frame.body, "<f4", offset=8).reshape(count, dimensions)
