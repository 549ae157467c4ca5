"""The bytes of model files: in chunks in the database, verified in a local cache."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from pgembed.errors import ModelFileError

Connection = psycopg.Connection[Any]
CHUNK_BYTES = 1 << 20
_DRAFT = "pgembed-draft-"
_ABANDONED_SECONDS = 3600.0
"""A draft is written in one go: so old, it is of a process that was killed."""

_log = logging.getLogger(__name__)


def put(connection: Connection, data: bytes) -> None:
    """Store a file unless it is there whole; call it in a transaction."""
    sha256 = hashlib.sha256(data).digest()
    stored = connection.execute(
        """
        SELECT pg_catalog.sha256(data) FROM pgembed.blob_chunk
        WHERE sha256 = %s ORDER BY ordinal
        """,
        [sha256],
    ).fetchall()
    wanted = [(hashlib.sha256(chunk).digest(),) for chunk in _chunks(data)]
    if stored == wanted:
        return
    connection.execute("DELETE FROM pgembed.blob_chunk WHERE sha256 = %s", [sha256])
    copy = "COPY pgembed.blob_chunk (sha256, ordinal, data) FROM STDIN (FORMAT binary)"
    with connection.cursor() as cursor, cursor.copy(copy) as stream:
        stream.set_types(["bytea", "int4", "bytea"])
        for ordinal, chunk in enumerate(_chunks(data)):
            stream.write_row((sha256, ordinal, chunk))


def get(
    connection: Connection, sha256: bytes, size: int, cache_dir: Path | None
) -> bytes:
    """Return a file's bytes, from the cache when they are right, else fetched.

    Raises ModelFileError when the database does not give the bytes of this hash.
    """
    data = _cached(cache_dir, sha256)
    if data is None:
        data = _fetched(connection, sha256, size)
        if cache_dir is not None:
            _keep(cache_dir, sha256, data)
    return data


def _chunks(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(data), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def _fetched(connection: Connection, sha256: bytes, size: int) -> bytes:
    query = "SELECT data FROM pgembed.blob_chunk WHERE sha256 = %s ORDER BY ordinal"
    data = bytearray()
    with connection.cursor(binary=True) as cursor:
        for (chunk,) in cursor.stream(query, [sha256]):
            data += chunk
            if len(data) > size:
                break
    if len(data) != size:
        raise ModelFileError(
            f"the database holds {len(data)} of its {size} bytes, chunks are lost"
        )
    if hashlib.sha256(data).digest() != sha256:
        raise ModelFileError(
            f"its bytes in the database do not have the SHA-256 {sha256.hex()}"
        )
    return bytes(data)


def _cached(cache_dir: Path | None, sha256: bytes) -> bytes | None:
    if cache_dir is None:
        return None
    path = cache_dir / sha256.hex()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("cached model file %s cannot be read: %s", path, error)
        return None
    if hashlib.sha256(data).digest() != sha256:
        _log.warning("cached model file %s is corrupt and is fetched again", path)
        return None
    return data


def _keep(cache_dir: Path, sha256: bytes, data: bytes) -> None:
    """Write a file to the cache, whole or not at all; a full disk is no error."""
    temporary = None
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_abandoned(cache_dir)
        with tempfile.NamedTemporaryFile(
            prefix=_DRAFT, dir=cache_dir, delete=False
        ) as file:
            temporary = file.name
            file.write(data)
        os.replace(temporary, cache_dir / sha256.hex())
    except OSError as error:
        _log.warning("a model file cannot be kept in %s: %s", cache_dir, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _remove_abandoned(cache_dir: Path) -> None:
    before = time.time() - _ABANDONED_SECONDS
    for draft in cache_dir.glob(f"{_DRAFT}*"):
        with contextlib.suppress(OSError):
            if draft.stat().st_mtime < before:
                draft.unlink()
