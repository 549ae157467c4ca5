"""Layouts of float16: half the size, and the answers of SQL all the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgembed.batch import precision, strategy
from pgembed.batch.layout import Layout, build_layout
from pgembed.batch.result import BatchResult
from pgembed.batch.search import search_batch
from pgembed.errors import VectorError
from pgembed.postgres.connection import fetch_one
from tests.integration.batch.oracle import nearest
from tests.integration.batch.test_layout_search import (
    ROWS,
    WIDTH,
    Points,
    check,
    create,
)
from tests.integration.search.support import (
    Connection,
    adopt,
    create_items,
    unsafe,
    vector_text,
)

_numbers = itertools.count(1)
DISTANCES = ["cosine", "l2", "inner_product"]

# From 2048 on, float16 has the even numbers only. Sums of these squares are exact in
# float32, so that ties are ties in SQL, too.
COORDINATES = st.integers(2046, 2052) | st.integers(-2, 2)


def vectors(width: int) -> st.SearchStrategy[list[int]]:
    """Vectors with a direction."""
    return st.lists(COORDINATES, min_size=width, max_size=width).filter(any)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A table, what comes to it after its layout was built, and queries."""
    width = draw(st.integers(1, 3))
    rows = st.lists(vectors(width), min_size=1, max_size=40)
    return {
        "width": width,
        "kind": draw(st.sampled_from(["vector", "halfvec"])),
        "distance": draw(st.sampled_from(DISTANCES)),
        "rows": draw(rows),
        "later": draw(st.just([]) | rows),
        "list_rows": draw(st.sampled_from([5, 1000])),
        "queries": draw(st.lists(vectors(width), min_size=1, max_size=6)),
        "k": draw(st.integers(1, 12)),
    }


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_exact_batches_are_what_sql_answers(
    shared: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: dict[str, Any],
) -> None:
    # What would be slow is refused, but it would be right as well.
    monkeypatch.setattr(precision, "_MOST_MOVED", np.inf)
    # A layout waits for the log to be written.
    shared.execute("SET synchronous_commit = on")
    table = f"f{next(_numbers)}"
    create_items(shared, table, np.array(case["rows"], np.float32), kind=case["kind"])
    name = adopt(shared, table, distance=case["distance"])
    try:
        build_layout(
            shared,
            name,
            list_rows=case["list_rows"],
            precision="float16",
            root=tmp_path,
        )
        with shared.cursor() as cursor:
            cursor.executemany(
                unsafe(f"INSERT INTO {table} VALUES (%s, %s)"),
                [(1000 + i, str(row)) for i, row in enumerate(case["later"])],
            )
        queries = np.array(case["queries"], np.float32)
        result = search(shared, name, queries, tmp_path, k=case["k"])
        for i, query in enumerate(queries):
            assert result[i] == expected(
                shared, table, query, case["distance"], case["kind"], case["k"]
            )
    finally:
        shared.execute(unsafe(f"DROP TABLE {table}"))
        shared.execute("SELECT pgembed.drop_embedding(%s)", [name])


@pytest.mark.parametrize(
    ("distance", "query", "good", "fair"),
    [
        ("inner_product", (2, 2, 1), 2, 1),
        ("cosine", (1, 1, 0), 30, 60),
        ("l2", (4096, 4096, 0), 0, 80),
    ],
)
@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_the_nearest_that_rounding_hides(
    connection: Connection,
    tmp_path: Path,
    kind: str,
    distance: str,
    query: tuple[int, ...],
    good: int,
    fair: int,
) -> None:
    """(2049, 2049, 0) is the nearest, and in float16 farther than all others."""
    rows = [(2048, 2048, fair)] * 150 + [(2049, 2049, 0)] + [(2048, 2048, good)] * 20
    name, layout = items(connection, tmp_path, rows, distance, kind)
    result = search(connection, name, [query], tmp_path)
    assert result[0] == expected(connection, "i", np.array(query), distance, kind)
    hidden = kind == "vector"
    assert result.keys[0, 0] == 150 or not hidden
    assert (result.report.fetched > 0) == hidden
    assert layout.description["lossless"] != hidden


def items(
    connection: Connection,
    root: Path,
    rows: Sequence[Sequence[float]] | NDArray[Any],
    distance: str = "cosine",
    kind: str = "vector",
) -> tuple[str, Layout]:
    """Create table i, adopt it, and build its layout."""
    create_items(connection, "i", np.array(rows, np.float32), kind=kind)
    name = adopt(connection, "i", distance=distance)
    return name, build_layout(connection, name, precision="float16", root=root)


def search(
    connection: Connection, name: str, queries: Any, root: Path, k: int = 10
) -> BatchResult:
    """Search exactly, by the layout."""
    result = search_batch(
        connection,
        name,
        np.array(queries, np.float32),
        k=k,
        recall=1.0,
        layouts=root,
        few_by_sql=False,
    )
    assert not result.report.layout.startswith("not used")
    return result


def expected(
    connection: Connection,
    table: str,
    query: NDArray[Any],
    distance: str,
    kind: str,
    k: int = 10,
) -> list[tuple[Any, float]]:
    """Return what SQL answers, for halfvec on what it stores, in float32."""
    if kind == "halfvec":
        query = query.astype(np.float16).astype(np.float32)
    stored = f"(SELECT id, v::vector FROM {table}) AS {table}"
    return nearest(connection, stored, query, distance=distance, k=k)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("recall", [1.0, 0.9])
def test_search(
    connection: Connection,
    tmp_path: Path,
    distance: str,
    recall: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So small a table is searched exactly, because that is faster.
    monkeypatch.setattr(strategy, "exact_seconds", lambda *_: np.inf)
    name = create(connection, distance)
    layout = build_layout(
        connection, name, list_rows=60, precision="float16", root=tmp_path
    )
    (file,) = tmp_path.glob("*/*/vectors")
    assert file.stat().st_size == ROWS * WIDTH * 2
    assert layout.description["precision"] == "float16"
    report = check(connection, name, Points(2).take(150), tmp_path, distance, recall)
    assert (report.strategy == "posting lists") == (recall < 1)
    assert 0 < report.fetched < 450 * 16


def test_recall_counts_what_rounding_hides(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest rows differ by less than float16 can tell, and are found."""
    monkeypatch.setattr(strategy, "exact_seconds", lambda *_: np.inf)
    points = Points(4)
    rows = np.repeat(points.take(120), 50, axis=0)
    rows += points.random.standard_normal(rows.shape) * np.float32(3e-5)
    create_items(
        connection, "p", rows, columns={"n": ("int", [i % 100 for i in range(ROWS)])}
    )
    name = adopt(connection, "p")
    build_layout(connection, name, list_rows=60, precision="float16", root=tmp_path)
    report = check(connection, name, points.take(60), tmp_path, recall=0.9)
    assert report.strategy == "posting lists"
    assert report.repeated > 0


@pytest.mark.parametrize("partitions", [0, 3])
def test_changes_since_the_layout_count(
    connection: Connection, tmp_path: Path, partitions: int
) -> None:
    name = create(connection, partitions=partitions)
    build_layout(connection, name, list_rows=60, precision="float16", root=tmp_path)
    connection.execute("DELETE FROM p WHERE id % 50 = 1")
    connection.execute("UPDATE p SET v = NULL WHERE id % 50 = 3")
    # Too large for float16, which the changed rows need not be.
    connection.execute(
        unsafe(f"UPDATE p SET v = array_fill(1e6, ARRAY[{WIDTH}]) WHERE id = 9")
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO p VALUES (%s, 7, %s)",
            [(10_000 + i, vector_text(v)) for i, v in enumerate(Points(3).take(30))],
        )
    # Places of deleted rows are taken by new ones.
    connection.execute("VACUUM p")
    connection.execute("INSERT INTO p SELECT id + 20000, n, v FROM p WHERE id % 40 = 5")
    report = check(connection, name, Points(2).take(60), tmp_path)
    assert 150 < report.changed < 300
    result = search(connection, name, [np.ones(WIDTH)], tmp_path, k=1)
    assert result.keys.tolist() == [[9]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (65520, "the value 65520.0, which does not fit float16 .* precision float32"),
        (1e-7, r"by \d+.\d% of its own length, .* with precision float32"),
    ],
)
def test_what_does_not_fit_is_refused(
    connection: Connection, tmp_path: Path, value: float, message: str
) -> None:
    rows = [[1, 2], [3, 4]]
    name, before = items(connection, tmp_path, rows)
    connection.execute(unsafe(f"INSERT INTO i VALUES (2, '[{value}, {value / 3}]')"))
    with pytest.raises(VectorError, match=message):
        build_layout(connection, name, precision="float16", root=tmp_path)
    # The one before is as it was, and the other precision helps.
    result = search(connection, name, rows, tmp_path)
    assert result.report.layout == before.version
    after = build_layout(connection, name, root=tmp_path)
    assert search(connection, name, rows, tmp_path).report.layout == after.version


def test_the_layout_says_what_it_is(connection: Connection, tmp_path: Path) -> None:
    name, _ = items(connection, tmp_path, [[0.5, 0.25], [1, 65504]])
    query = "SELECT description FROM pgembed.layouts"
    (description,) = fetch_one(connection, query)
    assert (description["precision"], description["lossless"]) == ("float16", True)
    assert search(connection, name, [[1, 2]], tmp_path).report.fetched == 0
    connection.execute("UPDATE i SET v = '[0.1, 0.2]' WHERE id = 0")
    build_layout(connection, name, precision="float16", root=tmp_path)
    (description,) = fetch_one(connection, query)
    assert (description["precision"], description["lossless"]) == ("float16", False)
    assert search(connection, name, [[1, 2]], tmp_path).report.fetched == 2
    build_layout(connection, name, root=tmp_path)
    (description,) = fetch_one(connection, query)
    assert (description["precision"], description["lossless"]) == ("float32", True)
    assert json.dumps(description)
