"""Models as the database knows them, without files: for tests of the SQL alone."""

from __future__ import annotations

from typing import Any

import psycopg


def register_model(
    connection: psycopg.Connection[Any],
    name: str = "tiny",
    *,
    dimensions: int = 3,
    distance: str = "cosine",
) -> str:
    """Register a model that has no files; return its name."""
    connection.execute(
        "INSERT INTO pgembed.model "
        "(name, hash, source, dimensions, distance, max_tokens, options) "
        "VALUES (%s, sha256(%s), 'test', %s, %s, 256, '{}')",
        (name, name.encode(), dimensions, distance),
    )
    return name
