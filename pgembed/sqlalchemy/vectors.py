"""Query vectors as parameters: text that PostgreSQL reads as a vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import BindParameter, ColumnElement, Dialect, func, literal_column
from sqlalchemy.types import UserDefinedType

from pgembed.errors import VectorError
from pgembed.postgres.vectors import is_lossy

# A NULL vector: it lends its type, wherever pgvector was installed.
_NULL = literal_column("((NULL::pgembed.call).vectors)[1]", VECTOR())


class QueryVector:
    """A vector (d,) float32 on its way to the server."""

    __slots__ = ("_digits", "values")

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values
        self._digits: str | None = None

    def __str__(self) -> str:
        """Return it as pgvector reads it: nine digits are what float32 has."""
        values = self.values.tolist()
        return "[" + ("%.9g," * len(values) % tuple(values))[:-1] + "]"

    def digits(self) -> str:
        """Return it as pgvector reads it, sooner and less legibly.

        Whole numbers with one exponent for all are written in half the time.
        """
        if self._digits is None:
            self._digits = _scaled(self.values) or str(self)
        return self._digits

    def __repr__(self) -> str:
        return f"{self!s:.80}"


def _scaled(values: NDArray[np.float32]) -> str | None:
    """Return *values* (d,) as text; None when they differ too much in size."""
    sizes = np.abs(values)
    smallest, largest = float(sizes.min()), float(sizes.max())
    # With so many places, no other float32 is as near as the one that is meant.
    places = math.ceil(math.log10(2**26 / smallest)) if smallest else 0
    if not smallest or largest * 10.0**places >= 2**63:
        return None
    whole = np.rint(values * np.float64(10.0**places)).astype(np.int64).tolist()
    return "[" + (f"%de{-places}," * len(whole) % tuple(whole))[:-1] + "]"


def as_vector(parameter: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a parameter that is sent as text as one of pgvector's type."""
    return func.coalesce(_NULL, parameter)


class VectorText(UserDefinedType[QueryVector]):
    """A vector sent as text; the server knows from the context what it is."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the name of the type."""
        return "VECTOR"

    def bind_expression(
        self, bindvalue: BindParameter[QueryVector]
    ) -> ColumnElement[Any]:
        """Return the parameter as an expression of pgvector's type."""
        return as_vector(bindvalue)

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return what makes a parameter of the vector."""
        return QueryVector.digits

    def literal_processor(self, dialect: Dialect) -> Any:
        """Return what writes the vector into a statement."""
        return "'{}'".format


def query_vector(vector: Any) -> QueryVector:
    """Return a vector, of any kind that is a sequence of numbers, as a query.

    Raises VectorError for anything else, and for NaN and infinity.
    """
    given = vector.to_list() if hasattr(vector, "to_list") else vector
    try:
        values = np.array([] if is_lossy(given) else given, dtype=np.float32)
    except (TypeError, ValueError):
        values = np.empty((0, 0), np.float32)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise VectorError(
            f"{vector!r:.80} is no query: pass a text, a list or an array (d,) of "
            "finite numbers, or an SQL expression"
        )
    return QueryVector(values)
