"""Random small tables, with keys of many types."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.integration.search.support import Connection, unsafe

KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "int": (("id", "int"),),
    "text": (("id", "text"),),
    "uuid": (("id", "uuid"),),
    "numeric": (("id", "numeric"),),
    "two": (("a", "text"), ("b", "int")),
}
# Small whole numbers: sums of their products are exact in every float, so that ties
# are ties everywhere, and there are many of them.
COORDINATES = st.integers(-2, 2)


def vectors(width: int) -> st.SearchStrategy[list[int]]:
    """Vectors with a direction."""
    return st.lists(COORDINATES, min_size=width, max_size=width).filter(any)


def create(connection: Connection, table: str, case: dict[str, Any]) -> None:
    """Create the table of a case; keys are given in a random order."""
    columns = KEYS[case["key"]]
    names = ", ".join(name for name, _ in columns)
    definitions = ", ".join(f"{name} {kind}" for name, kind in columns)
    partition = f"PARTITION BY HASH ({columns[0][0]})" if case["partitioned"] else ""
    connection.execute(
        unsafe(
            f"CREATE TABLE {table} ({definitions}, n int, s text, "
            f"v vector({case['width']}), PRIMARY KEY ({names})) {partition}"
        )
    )
    for i in range(2 if partition else 0):
        connection.execute(
            unsafe(
                f"CREATE TABLE {table}_{i} PARTITION OF {table} "
                f"FOR VALUES WITH (MODULUS 2, REMAINDER {i})"
            )
        )
    numbers = list(range(len(case["rows"])))
    case["order"].shuffle(numbers)
    with connection.cursor() as cursor:
        cursor.executemany(
            unsafe(
                f"INSERT INTO {table} VALUES ({', '.join(['%s'] * len(columns))}, "
                "%s, %s, %s::vector)"
            ),
            [
                (*key(case["key"], number), n, s, None if v is None else str(v))
                for number, (v, n, s) in zip(numbers, case["rows"], strict=True)
            ],
        )


def key(kind: str, number: int) -> tuple[Any, ...]:
    """Return the values of a key."""
    if kind == "uuid":
        return (f"00000000-0000-0000-0000-{number:012d}",)
    if kind == "two":
        return ("ab"[number % 2], number)
    return (f"k{number}",) if kind == "text" else (number,)
