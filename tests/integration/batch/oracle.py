"""What SQL answers, query by query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.integration.search.support import Connection, unsafe, vector_text

OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}
Answer = list[tuple[Any, float]]


def nearest(
    connection: Connection,
    table: str,
    query: NDArray[Any],
    *,
    where: str = "true",
    k: int = 10,
    distance: str = "cosine",
    keys: Sequence[str] = ("id",),
    column: str = "v",
) -> Answer:
    """Return (key, distance) of the k nearest rows of *table*, by a plain query."""
    columns = ", ".join(keys)
    rows = connection.execute(
        unsafe(
            f"SELECT {columns}, d FROM (SELECT *, {column} {OPERATORS[distance]} "
            f"'{vector_text(query)}' AS d FROM {table} WHERE ({where}) "
            f"AND {column} IS NOT NULL) AS t WHERE d <> 'NaN' "
            f"ORDER BY d, {columns} LIMIT {k}"
        )
    ).fetchall()
    return [(row[0] if len(keys) == 1 else row[:-1], row[-1]) for row in rows]


def same(found: Answer, expected: Answer) -> bool:
    """Whether two answers agree: to a rounding error, within which rows may swap."""
    if len(found) != len(expected):
        return False
    mine, theirs = (np.array([d for _, d in a]) for a in (found, expected))
    if not np.allclose(mine, theirs, rtol=1e-5, atol=1e-6):
        return False
    last = theirs[-1] if len(theirs) else 0.0
    inner = {
        key for key, d in expected if not np.isclose(d, last, rtol=1e-5, atol=1e-6)
    }
    return inner <= {key for key, _ in found}
