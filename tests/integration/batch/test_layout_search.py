"""Batches over a layout: recall, changes since it was built, layouts that are gone."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from pgembed.batch import strategy
from pgembed.batch.corpus import find_layout
from pgembed.batch.layout import build_layout, drop_layout
from pgembed.batch.search import knn_join, search_batch
from pgembed.batch.source import describe
from pgembed.batch.workload import Workload
from pgembed.errors import PgembedError, VectorError
from pgembed.postgres.connection import fetch_one
from tests.conftest import Connect
from tests.harness.roles import ordinary_role
from tests.harness.server import Databases
from tests.integration.batch.oracle import nearest, same
from tests.integration.search.support import (
    Connection,
    adopt,
    create_items,
    unsafe,
    vector_text,
)

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
        assert report.recall is not None
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


def test_a_copy_of_the_database_does_not_use_its_layout(
    server: Databases,
    dsn: str,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does one restored from a dump: the same numbers may mean other rows there."""
    monkeypatch.setenv("PGEMBED_CACHE_DIR", str(tmp_path / "models"))
    original = connect(dsn)
    name = create(original)
    build_layout(original, name)
    original.close()
    with server.database(str(conninfo_to_dict(dsn)["dbname"])) as database:
        copy = connect(server.dsn(database))
        assert advice(copy).startswith("rebuild: it was built in another database")
        for expected in (False, True):
            report = search_batch(
                copy, name, Points(2).take(6), few_by_sql=False
            ).report
            used = report.layout != "not used: it was built in another database"
            assert used == expected
            build_layout(copy, name)
        assert advice(copy) == "current"
        copy.close()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE p RENAME v TO old; ALTER TABLE p RENAME w TO v",
        "ALTER TABLE p DROP v; ALTER TABLE p ADD v vector(24) DEFAULT {!r}",
        "ALTER TABLE p DROP CONSTRAINT p_pkey, DROP id; "
        "ALTER TABLE p RENAME m TO id; ALTER TABLE p ADD PRIMARY KEY (id)",
    ],
    ids=["renamed", "default", "key"],
)
def test_a_column_that_takes_the_name_of_another(
    connection: Connection, tmp_path: Path, change: str
) -> None:
    """Rows keep their places and their transactions."""
    name = create(connection)
    connection.execute(
        "ALTER TABLE p ADD w vector(24), ADD m int; UPDATE p SET w = v * v, m = -id"
    )
    build_layout(connection, name, root=tmp_path)
    connection.execute(unsafe(change.format(vector_text(np.ones(WIDTH, np.float32)))))
    report = check(connection, name, Points(2).take(6), tmp_path)
    assert report.layout == (
        "not used: it was built for another column, or for another key"
    )
    assert advice(connection).startswith("rebuild: it was built for another column")


def test_a_key_of_another_type(connection: Connection, tmp_path: Path) -> None:
    """Without a rewrite, after which integers are the keys."""
    connection.execute("CREATE DOMAIN number AS int")
    name = create(connection)
    connection.execute("ALTER TABLE p ALTER id TYPE number")
    build_layout(connection, name, root=tmp_path)
    connection.execute("ALTER TABLE p ALTER id TYPE int")
    report = check(connection, name, Points(2).take(6), tmp_path)
    assert "for another key" in report.layout


def test_nobody_rewrites_a_table_whose_layout_was_found(
    connection: Connection, dsn: str, connect: Connect, tmp_path: Path
) -> None:
    name = create(connection)
    build_layout(connection, name, root=tmp_path)
    other = connect(dsn)
    with connection.transaction():
        found = find_layout(connection, describe(connection, name), tmp_path)
        assert not isinstance(found, str)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("BEGIN; LOCK TABLE p IN ACCESS EXCLUSIVE MODE NOWAIT")
    other.close()


def test_changed_rows_of_other_dimensions_are_refused(
    connection: Connection, tmp_path: Path
) -> None:
    """As they are without a layout, and in SQL."""
    name = create(connection)
    build_layout(connection, name, root=tmp_path)
    connection.execute("ALTER TABLE p ALTER v TYPE vector")
    connection.execute("INSERT INTO p VALUES (-1, 0, '[7]')")
    with pytest.raises(VectorError, match="of 1 dimensions"):
        search_batch(connection, name, Points(2).take(6), layouts=tmp_path)


def test_a_table_of_another_name_keeps_its_layout(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    layout = build_layout(connection, name, root=tmp_path)
    queries = Points(2).take(6)
    before = search_batch(connection, name, queries, layouts=tmp_path)
    connection.execute("ALTER TABLE p RENAME TO q")
    after = search_batch(connection, name, queries, layouts=tmp_path)
    assert before.report.layout == after.report.layout == layout.version
    assert (before.keys == after.keys).all()


@pytest.mark.parametrize(
    ("statement", "changed", "told", "used"),
    [
        ("SELECT 1", 0, "current", True),
        ("UPDATE items SET n = 2 WHERE id < 1500", 1500, "a rebuild pays", True),
        ("DELETE FROM items WHERE id < 2500", 0, "current", True),
        ("UPDATE items SET n = 2 WHERE id < 2500", 2500, "rebuild: too much", False),
        ("UPDATE items SET v = NULL WHERE id < 2500", 0, "current", True),
        ("VACUUM FULL items", None, "rebuild: the table was rewritten", False),
        ("ALTER TABLE items RENAME v TO w", None, "rebuild: it was built for", False),
    ],
)
def test_the_advice_says_what_batches_do(
    connection: Connection,
    tmp_path: Path,
    statement: str,
    changed: int | None,
    told: str,
    used: bool,
) -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, 2)).astype(np.float32)
    create_items(connection, "items", vectors, columns={"n": ("int", [1] * 3000)})
    name = adopt(connection, "items")
    layout = build_layout(connection, name, root=tmp_path)
    connection.execute(unsafe(statement))
    found = connection.execute("SELECT changed FROM pgembed.layouts").fetchone()
    assert found == (changed,)
    assert advice(connection).startswith(told)
    if "RENAME" in statement:
        connection.execute("ALTER TABLE items ADD v vector(2)")
    report = search_batch(
        connection, name, vectors[:2], layouts=tmp_path, few_by_sql=False
    ).report
    assert (report.layout == layout.version) == used


def test_advice_to_a_role_that_may_post_batches(
    connection: Connection, dsn: str, connect: Connect, tmp_path: Path
) -> None:
    build_layout(connection, create(connection), root=tmp_path)
    with ordinary_role(dsn, may_create=False) as role:
        user = conninfo_to_dict(role)["user"]
        connection.execute(unsafe(f"SELECT pgembed.grant_batch('{user}')"))
        theirs = connect(role)
        assert advice(theirs) == "unknown: this role may not read table p"
        connection.execute(unsafe(f"GRANT SELECT (v, xmin) ON p TO {user}"))
        assert advice(theirs) == "current"
        theirs.close()


def test_keys_are_refused_to_those_who_may_not_read_them(
    connection: Connection, dsn: str, connect: Connect, tmp_path: Path
) -> None:
    """Also those that the layout knows."""
    name = create(connection)
    build_layout(connection, name, root=tmp_path)
    with ordinary_role(dsn, may_create=False) as role:
        user = conninfo_to_dict(role)["user"]
        for statement in (
            f"SELECT pgembed.grant_batch('{user}')",
            f"GRANT SELECT (v, n, ctid, xmin) ON p TO {user}",
        ):
            connection.execute(unsafe(statement))
        theirs = connect(role)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            search_batch(theirs, name, Points(2).take(60), layouts=tmp_path)
        connection.execute(unsafe(f"GRANT SELECT (id) ON p TO {user}"))
        answer = search_batch(theirs, name, Points(2).take(60), layouts=tmp_path)
        assert answer.counts.tolist() == [10] * 60
        theirs.close()


def test_a_layout_that_does_not_say_of_which_database_it_is(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    build_layout(connection, name, root=tmp_path)
    connection.execute(
        "UPDATE pgembed.layout SET description = description #- '{origin,database}'"
    )
    [file] = tmp_path.rglob("layout.json")
    description = json.loads(file.read_text())
    del description["origin"]["database"]
    file.write_text(json.dumps(description))
    reason = "it was built by an earlier version of pgembed"
    assert advice(connection).startswith(f"rebuild: {reason}")
    report = search_batch(
        connection, name, Points(2).take(6), layouts=tmp_path, few_by_sql=False
    ).report
    assert report.layout == f"not used: {reason}"


@pytest.mark.parametrize("few_by_sql", [True, False])
def test_rights_on_columns_are_enough_with_those_on_versions(
    connection: Connection, dsn: str, connect: Connect, few_by_sql: bool
) -> None:
    name = create(connection)
    with ordinary_role(dsn, may_create=False) as role:
        user = conninfo_to_dict(role)["user"]
        connection.execute(unsafe(f"SELECT pgembed.grant_batch('{user}')"))
        connection.execute(unsafe(f"GRANT SELECT (id, v) ON p TO {user}"))
        theirs = connect(role)
        queries = Points(2).take(60)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            search_batch(theirs, name, queries, few_by_sql=few_by_sql)
        connection.execute(
            unsafe(f"GRANT SELECT (ctid, xmin, tableoid) ON p TO {user}")
        )
        answer = search_batch(theirs, name, queries, few_by_sql=few_by_sql)
        assert answer.counts.tolist() == [10] * 60
        theirs.close()


def advice(connection: Connection) -> str:
    """Return what the only layout is said to need."""
    row = connection.execute("SELECT advice FROM pgembed.layouts").fetchone()
    assert row is not None
    return str(row[0])


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


def test_a_workload_without_queries_is_none(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    nothing = Workload.of(np.empty((0, WIDTH)))
    layout = build_layout(connection, name, workload=nothing, root=tmp_path)
    assert layout.leaves == 1
    check(connection, name, Points(2).take(6), tmp_path)


def test_a_new_layout_replaces_the_old(connection: Connection, tmp_path: Path) -> None:
    name = create(connection)
    first = build_layout(connection, name, root=tmp_path)
    second = build_layout(connection, name, root=tmp_path)
    assert [p.name for p in tmp_path.glob("*/*")] == [second.version]
    assert first.version != second.version
    assert drop_layout(connection, name, root=tmp_path)
    assert not list(tmp_path.glob("*"))
    assert not drop_layout(connection, name, root=tmp_path)


def test_files_of_a_dropped_embedding_go_with_the_next_build(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    build_layout(connection, name, root=tmp_path)
    (orphan,) = tmp_path.glob("*")
    others = [tmp_path / f"{orphan.name.rpartition('-')[0]}9-1", tmp_path / "notes"]
    for other in others:
        other.mkdir()
    connection.execute("SELECT pgembed.drop_embedding(%s)", [name])
    assert orphan.exists()
    build_layout(connection, adopt(connection, "p"), root=tmp_path)
    assert not orphan.exists()
    assert all(other.exists() for other in others)
    assert len(list(tmp_path.glob("*"))) == 3


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_drop_in_a_transaction_leaves_files_alone(
    connection: Connection, dsn: str, connect: Connect, tmp_path: Path, end: str
) -> None:
    """It may be rolled back, and sees no embedding that is younger than it."""
    name = create(connection)
    build_layout(connection, name, root=tmp_path)
    old = connect(dsn)
    old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    old.execute("SELECT 1")
    connection.execute("CREATE TABLE younger AS SELECT id, v FROM p")
    connection.execute("ALTER TABLE younger ADD PRIMARY KEY (id)")
    younger = adopt(connection, "younger")
    build_layout(connection, younger, root=tmp_path)
    assert drop_layout(old, name, root=tmp_path)
    assert len(list(tmp_path.glob("*/*"))) == 2
    old.execute(end)
    used = []
    for embedding in (name, younger):
        answer = search_batch(
            connection,
            embedding,
            Points(2).take(6),
            layouts=tmp_path,
            few_by_sql=False,
        )
        used.append(not answer.report.layout.startswith("not used"))
    assert used == [end == "ROLLBACK", True]
    assert drop_layout(connection, name, root=tmp_path) == (end == "ROLLBACK")
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_builds_at_once_leave_one_layout(
    connection: Connection, dsn: str, connect: Connect, tmp_path: Path
) -> None:
    name = create(connection)
    with ThreadPoolExecutor(3) as pool:
        versions = {
            layout.version
            for layout in pool.map(
                lambda own: build_layout(own, name, root=tmp_path),
                [connect(dsn) for _ in range(9)],
            )
        }
    assert len(versions) == 9
    answer = search_batch(
        connection, name, Points(2).take(60), layouts=tmp_path, few_by_sql=False
    )
    assert answer.report.layout in versions
    assert [p.name for p in tmp_path.glob("*/*")] == [answer.report.layout]


@pytest.mark.parametrize("folder", ["a file", "full"])
def test_files_that_cannot_be_written(
    connection: Connection, tmp_path: Path, folder: str
) -> None:
    name, root = create(connection), tmp_path / "layouts"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if folder == "a file":
        root.write_text("")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(PgembedError, match=f"to {root}.*set PGEMBED_CACHE_DIR"):
            build_layout(connection, name, root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(root.glob("*"))
    assert connection.execute("SELECT * FROM pgembed.layout").fetchone() is None


def test_temporary_files_that_cannot_be_written(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    name = create(connection)
    monkeypatch.setattr("pgembed.batch.layout.memory_bytes", lambda _: 1 << 20)
    with pytest.raises(PgembedError, match=r"temporary file: .*nowhere.* set TMPDIR"):
        build_layout(connection, name, root=tmp_path)


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
