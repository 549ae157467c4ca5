"""Batches keep to the memory they are given, beside what they return."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgembed.batch.layout import build_layout
from pgembed.batch.search import search_batch
from tests.integration.search.support import Connection, adopt, unsafe

ROWS, WIDTH = 32_000, 1000
MEMORY = 64 << 20
"""Half of what the vectors take."""


@pytest.fixture
def wide(connection: Connection) -> str:
    """Create a table of long vectors."""
    connection.execute(
        unsafe(
            f"CREATE TABLE w (id int PRIMARY KEY, n int, v vector({WIDTH})); "
            "ALTER TABLE w ALTER v SET STORAGE PLAIN; "
            "INSERT INTO w SELECT i, 0, array_fill(sin(i)::real, ARRAY[1000])::vector "
            f"FROM generate_series(1, {ROWS}) AS i"
        )
    )
    return adopt(connection, "w", distance="l2")


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """Have Python and NumPy count what they allocate."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def peak(connection: Connection, name: str, **given: Any) -> int:
    """Return the bytes that a batch allocates at most, after one that warms up."""
    queries = np.random.default_rng(0).standard_normal((60, WIDTH))
    given = {"memory": MEMORY, "few_by_sql": False, **given}
    search_batch(connection, name, queries, **given)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    search_batch(connection, name, queries, **given)
    return tracemalloc.get_traced_memory()[1] - before


def test_without_a_layout(connection: Connection, wide: str) -> None:
    assert peak(connection, wide, layout=False) < 1.2 * MEMORY


def test_more_rows_than_there_are(connection: Connection) -> None:
    """What is asked for takes no room where it cannot be found."""
    connection.execute("CREATE TABLE few (id int PRIMARY KEY, v vector(3))")
    connection.execute("INSERT INTO few VALUES (1, '[1,0,0]'), (2, '[0,1,0]')")
    name = adopt(connection, "few", distance="l2")
    queries = np.ones((2000, 3), np.float32)
    result = search_batch(connection, name, queries, k=10_000, few_by_sql=False)
    assert (result.counts == 2).all()
    assert tracemalloc.get_traced_memory()[1] < MEMORY


@pytest.mark.parametrize(("precision", "k"), [("float32", 10), ("float16", 60)])
def test_with_a_layout_and_changed_rows(
    connection: Connection, wide: str, tmp_path: Path, precision: str, k: int
) -> None:
    build_layout(connection, wide, root=tmp_path, memory=MEMORY, precision=precision)
    assert peak(connection, wide, layouts=tmp_path, k=k) < 1.2 * MEMORY
    connection.execute("UPDATE w SET n = 1 WHERE id % 4 = 0")
    assert peak(connection, wide, layouts=tmp_path, k=k) < 1.2 * MEMORY


def test_building(connection: Connection, wide: str, tmp_path: Path) -> None:
    before, _ = tracemalloc.get_traced_memory()
    build_layout(connection, wide, root=tmp_path, memory=MEMORY)
    assert tracemalloc.get_traced_memory()[1] - before < 1.2 * MEMORY
