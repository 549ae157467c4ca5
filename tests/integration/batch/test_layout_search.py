"""Batches over a layout: recall, changes since it was built, layouts that are gone."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg.rows import dict_row

from pgembed.batch import strategy
from pgembed.batch.layout import build_layout, drop_layout
from pgembed.batch.search import knn_join, search_batch
from pgembed.batch.workload import Workload
from pgembed.errors import PgembedError, VectorError
from pgembed.postgres.connection import fetch_one
from tests.conftest import Connect
from tests.integration.batch.oracle import nearest, same
from tests.integration.search.support import Connection, adopt, unsafe, vector_text

ROWS, WIDTH = 6000, 24
FILTERS: list[dict[str, Any] | None] = [None, {"n": {"lt": 50}}, {"n": 7}]
TEXTS = ["true", "n < 50", "n = 7"]


class Points:
    """Random points around centres."""

    def __init__(self, seed: int = 1) -> None:
        self.random = np.random.default_rng(seed)
        self.centres = self.random.standard_normal((40, WIDTH)) * 2

    def take(self, count: int) -> NDArray[np.float32]:
        chosen = self.centres[self.random.integers(0, 40, count)]
        return (chosen + self.random.standard_normal((count, WIDTH))).astype(np.float32)


def create(
    connection: Connection, distance: str = "cosine", partitions: int = 0
) -> str:
    """Create and adopt table p."""
    partition = "PARTITION BY HASH (id)" if partitions else ""
    connection.execute(
        unsafe(
            f"CREATE TABLE p (id int PRIMARY KEY, n int, v vector({WIDTH})) {partition}"
        )
    )
    for i in range(partitions):
        connection.execute(
            unsafe(
                f"CREATE TABLE p_{i} PARTITION OF p "
                f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {i})"
            )
        )
    with connection.cursor().copy("COPY p FROM STDIN") as copy:
        for i, row in enumerate(Points().take(ROWS)):
            copy.write_row((i, i % 100, vector_text(row)))
    connection.execute("ANALYZE p")
    return adopt(connection, "p", distance=distance)


def check(
    connection: Connection,
    name: str,
    queries: NDArray[np.float32],
    layouts: Path,
    distance: str = "cosine",
    recall: float = 1.0,
) -> Any:
    """Search with every filter and compare with SQL; return the report."""
    count = len(queries)
    result = search_batch(
        connection,
        name,
        np.tile(queries, (3, 1)),
        filters=[f for f in FILTERS for _ in range(count)],
        recall=recall,
        layouts=layouts,
    )
    hits = []
    for i in range(3 * count):
        expected = nearest(
            connection,
            "p",
            queries[i % count],
            where=TEXTS[i // count],
            distance=distance,
        )
        found = result[i]
        assert len(found) == len(expected)
        if recall == 1:
            assert same(found, expected)
        true = {key for key, _ in expected}
        hits.append(len(true & {key for key, _ in found}) / max(1, len(true)))
    assert np.mean(hits) >= recall - 0.01
    return result.report


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("recall", [1.0, 0.9])
def test_search_with_a_layout(
    connection: Connection,
    tmp_path: Path,
    distance: str,
    recall: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So small a table is searched exactly, because that is faster.
    monkeypatch.setattr(strategy, "exact_seconds", lambda *_: np.inf)
    name = create(connection, distance)
    layout = build_layout(connection, name, list_rows=60, root=tmp_path)
    assert (layout.rows, layout.lists) == (ROWS, 100)
    report = check(connection, name, Points(2).take(150), tmp_path, distance, recall)
    assert report.changed == 0
    assert "opening" in report.seconds
    if recall < 1:
        assert report.strategy == "posting lists"
        assert report.recall >= recall


@pytest.mark.parametrize("recall", [1.0, 0.9])
def test_subqueries_that_many_rows_meet(
    connection: Connection,
    tmp_path: Path,
    recall: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strategy, "exact_seconds", lambda *_: np.inf)
    name = create(connection)
    build_layout(connection, name, list_rows=60, root=tmp_path)
    connection.execute("CREATE TABLE chosen AS SELECT DISTINCT n FROM p WHERE n < 60")
    where = "n IN (SELECT c.n FROM chosen AS c)"
    queries = Points(5).take(150)
    result = search_batch(
        connection, name, queries, predicates=where, recall=recall, layouts=tmp_path
    )
    if recall < 1:
        assert result.report.strategy == "posting lists"
    hits = []
    for i, query in enumerate(queries):
        expected = nearest(connection, "p", query, where=where)
        assert recall < 1 or same(result[i], expected)
        hits.append(len({k for k, _ in expected} & {k for k, _ in result[i]}) / 10)
    assert np.mean(hits) >= recall - 0.01


@pytest.mark.parametrize("partitions", [0, 3])
def test_changes_since_the_layout_count(
    connection: Connection,
    tmp_path: Path,
    partitions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strategy, "exact_seconds", lambda *_: np.inf)
    name = create(connection, partitions=partitions)
    build_layout(connection, name, list_rows=60, root=tmp_path)
    new = [vector_text(v) for v in Points(3).take(30)]
    connection.execute("DELETE FROM p WHERE id % 50 = 1")
    connection.execute("UPDATE p SET n = n + 1 WHERE id % 50 = 2")
    connection.execute("UPDATE p SET v = NULL WHERE id % 50 = 3")
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO p VALUES (%s, 7, %s)",
            [(10_000 + i, v) for i, v in enumerate(new)],
        )
        cursor.executemany(
            "UPDATE p SET v = %s WHERE id = %s", [(v, i) for i, v in enumerate(new)]
        )
    # Places of deleted rows are taken by new ones.
    connection.execute("VACUUM p")
    connection.execute("INSERT INTO p SELECT id + 20000, n, v FROM p WHERE id % 40 = 5")
    for recall in (1.0, 0.95):
        report = check(connection, name, Points(2).take(100), tmp_path, recall=recall)
        assert 300 < report.changed < 600


def test_a_rewritten_table_is_read_again(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    build_layout(connection, name, root=tmp_path)
    connection.execute("CREATE INDEX p_n ON p (n)")
    connection.execute("CLUSTER p USING p_n")
    report = check(connection, name, Points(2).take(20), tmp_path)
    assert report.layout.startswith("not used")


def local_workload() -> Workload:
    """Queries that ask for half of the rows around a few centres, elsewhere for all."""
    random, centres = np.random.default_rng(5), Points().centres
    chosen = np.concatenate([random.integers(0, 5, 600), random.integers(5, 40, 600)])
    noise = random.standard_normal((1200, WIDTH))
    return Workload.of(centres[chosen] + noise, [FILTERS[1]] * 600 + [FILTERS[0]] * 600)


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_a_layout_cut_by_centroids(
    connection: Connection,
    tmp_path: Path,
    distance: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strategy, "exact_seconds", lambda *_: np.inf)
    name = create(connection, distance)
    layout = build_layout(
        connection, name, workload=local_workload(), list_rows=10, root=tmp_path
    )
    leaves = layout.description["leaves"]
    cuts = {cut for leaf in leaves for cut in leaf["holds"] + leaf["fails"]}
    assert '{"n": {"lt": 50}}' in cuts
    assert any(cut.startswith("centroid ") for cut in cuts)
    assert sum(layout.description["centroids"]) == ROWS
    assert all(leaf["rows"] >= 60 for leaf in leaves)
    before, after = layout.description["rows_touched"]
    assert after < 0.95 * before
    queries = Points(2).take(40)
    for recall in (1.0, 0.9):
        check(connection, name, queries, tmp_path, distance, recall)
    connection.execute("DELETE FROM p WHERE id % 50 = 1")
    connection.execute("UPDATE p SET n = n + 40 WHERE id % 20 = 2")
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO p VALUES (%s, %s, %s)",
            [(10_000 + i, i % 100, vector_text(v)) for i, v in enumerate(queries)],
        )
    for recall in (1.0, 0.9):
        report = check(connection, name, queries, tmp_path, distance, recall)
        assert report.changed > 300


def test_without_vectors_a_layout_is_not_cut_by_centroids(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    past = local_workload()
    unknown = dataclasses.replace(past, queries=np.zeros((len(past), 1), np.float32))
    layout = build_layout(
        connection, name, workload=unknown, list_rows=10, root=tmp_path
    )
    assert layout.description["centroids"] == [ROWS]
    assert not any("centroid" in str(leaf) for leaf in layout.description["leaves"])
    wrong = dataclasses.replace(past, queries=unknown.queries + 1)
    with pytest.raises(VectorError, match="have 1 dimensions"):
        build_layout(connection, name, workload=wrong, root=tmp_path)


@pytest.mark.parametrize("damage", ["gone", "short", "no description"])
def test_a_lost_layout_does_no_harm(
    connection: Connection, tmp_path: Path, damage: str
) -> None:
    name = create(connection)
    version = build_layout(connection, name, root=tmp_path).version
    (place,) = tmp_path.glob(f"*/{version}")
    if damage == "gone":
        shutil.rmtree(place)
    elif damage == "short":
        (place / "vectors").write_bytes(b"1234")
    else:
        (place / "layout.json").write_text("{")
    report = check(connection, name, Points(2).take(10), tmp_path)
    assert report.layout.startswith("not used")


def test_a_new_layout_replaces_the_old(connection: Connection, tmp_path: Path) -> None:
    name = create(connection)
    first = build_layout(connection, name, root=tmp_path)
    second = build_layout(connection, name, root=tmp_path)
    assert [p.name for p in tmp_path.glob("*/*")] == [second.version]
    assert first.version != second.version
    assert drop_layout(connection, name, root=tmp_path)
    assert not list(tmp_path.glob("*"))
    assert not drop_layout(connection, name, root=tmp_path)


def test_a_plain_psycopg_connection(
    connection: Connection, dsn: str, tmp_path: Path
) -> None:
    """One that knows nothing of pgvector, begins transactions and gives dicts."""
    name = create(connection)
    queries = Points(2).take(20)
    with psycopg.connect(dsn, row_factory=dict_row) as plain:
        build_layout(plain, name, root=tmp_path)
        assert fetch_one(connection, "SELECT count(*) FROM pgembed.layout") == (1,)
        found = search_batch(plain, name, queries, layouts=tmp_path)
        joined = knn_join(plain, name, k=2, layouts=tmp_path)
        assert drop_layout(plain, name, root=tmp_path)
        assert fetch_one(connection, "SELECT count(*) FROM pgembed.layout") == (0,)
        assert plain.info.transaction_status.name == "IDLE"
        assert plain.execute("SELECT '[1]'::vector AS v").fetchone() == {"v": "[1]"}
    again = search_batch(connection, name, queries, layouts=tmp_path)
    assert [found[i] for i in range(20)] == [again[i] for i in range(20)]
    assert len(joined) == ROWS


def test_an_empty_table(connection: Connection, tmp_path: Path) -> None:
    connection.execute("CREATE TABLE z (id int PRIMARY KEY, v vector(3))")
    name = adopt(connection, "z")
    query = np.ones((1, 3), np.float32)
    for workload in (None, Workload.of(query, {"id": 1})):
        built = build_layout(connection, name, workload=workload, root=tmp_path)
        assert built.rows == 0
    result = search_batch(connection, name, query, layouts=tmp_path)
    assert result.counts.tolist() == [0]
    connection.execute("INSERT INTO z VALUES (1, '[1,0,0]')")
    assert search_batch(connection, name, query, layouts=tmp_path)[0][0][0] == 1


def test_building_in_a_transaction_is_refused(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    with connection.transaction(), pytest.raises(PgembedError, match="not idle"):
        build_layout(connection, name, root=tmp_path)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_batches_see_one_snapshot_while_others_write(
    dsn: str, connect: Connect, tmp_path: Path, precision: str
) -> None:
    """Every row says which state it is of; a result must hold one state only."""
    reader, writer = connect(dsn), connect(dsn)
    name = create(reader)
    build_layout(reader, name, list_rows=60, precision=precision, root=tmp_path)
    stop = threading.Event()
    queries = Points(2).take(40)

    def write() -> None:
        points = Points(9)
        state = 0
        while not stop.is_set():
            state += 1
            with writer.transaction():
                writer.execute(
                    "DELETE FROM p WHERE id IN (SELECT id FROM p ORDER BY id LIMIT 10)"
                )
                for i, v in enumerate(points.take(10)):
                    writer.execute(
                        "INSERT INTO p VALUES (%s, 7, %s)",
                        [100_000 + 10 * state + i, vector_text(v)],
                    )

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(8):
            with reader.transaction():
                reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                check(reader, name, queries, tmp_path)
    finally:
        stop.set()
        thread.join()
