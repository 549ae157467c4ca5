"""Query vectors as parameters: text that PostgreSQL reads as a vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Dialect
from sqlalchemy.types import UserDefinedType

from pgembed.errors import VectorError


class VectorText(UserDefinedType[str]):
    """A vector that is text already; the server knows from the context what it is."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the name of the type."""
        return "VECTOR"

    def literal_processor(self, dialect: Dialect) -> Any:
        """Return what writes such text into a statement."""
        return "'{}'".format


def vector_text(vector: Any) -> str:
    """Return a vector, of any kind that is a sequence of numbers, as pgvector reads it.

    Nine digits are what float32 has. Raises VectorError for anything else, and for
    NaN and infinity.
    """
    given = vector.to_list() if hasattr(vector, "to_list") else vector
    try:
        values = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        values = np.empty((0, 0), np.float32)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise VectorError(
            f"{vector!r:.80} is no query: pass a text, a list or an array (d,) of "
            "finite numbers, or an SQL expression"
        )
    return "[" + ("%.9g," * len(values) % tuple(values.tolist()))[:-1] + "]"
