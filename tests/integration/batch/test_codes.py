"""Columns of few values that a layout knows: conditions are asked for each value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pgembed.batch import codes
from pgembed.batch.corpus import find_layout
from pgembed.batch.layout import build_layout
from pgembed.batch.passing import Conditions
from pgembed.batch.result import BatchResult
from pgembed.batch.rows import Tables
from pgembed.batch.search import search_batch
from pgembed.batch.source import describe
from pgembed.batch.store import Store
from pgembed.batch.workload import Condition, Workload
from pgembed.postgres.connection import fetch_all, fetch_one
from tests.conftest import Connect
from tests.harness.models import register_model
from tests.harness.roles import ordinary_role
from tests.integration.search.support import Connection, adopt, unsafe

ROWS = 600
COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "i": ("int", [-3, 0, 1, 2, 7]),
    "b": ("bigint", [0, 2**40]),
    "n": ("numeric", ["1", "1.00", "2.5", "NaN"]),
    "f": ("float8", [0.0, -0.0, 1.5, "NaN", "Infinity"]),
    "t": ("text", ["a", "A", "ä", "", "'", 'x" y']),
    "c": ('text COLLATE "C"', ["a", "A", "b"]),
    "o o": ("varchar(9)", ["one", "two", "three"]),
    "u": ("uuid", [f"{n:032x}" for n in range(3)]),
    "d": ("date", ["2020-01-31", "infinity", "0001-01-01 BC"]),
    "z": ("timestamptz", ["2020-01-31 12:00+02", "-infinity"]),
    "y": ("boolean", [True, False]),
}
OPERATORS = ("eq", "ne", "lt", "lte", "gt", "gte")


def create(connection: Connection, options: str = "", rows: int = ROWS) -> str:
    """Create table "T t" with these columns; every fifth value is NULL."""
    columns = ", ".join(f'"{name}" {kind}' for name, (kind, _) in COLUMNS.items())
    connection.execute(
        unsafe(
            f'CREATE TABLE "T t" (id int PRIMARY KEY, v vector(2), {columns}){options}'
        )
    )
    if options:
        connection.execute(
            'CREATE TABLE "low" PARTITION OF "T t" FOR VALUES FROM (MINVALUE) TO (300);'
            'CREATE TABLE "high" PARTITION OF "T t" FOR VALUES FROM (300) TO (MAXVALUE)'
        )
    insert(connection, 0, rows)
    return adopt(connection, '"T t"', distance="l2")


def insert(connection: Connection, first: int, last: int) -> None:
    """Insert rows with these keys."""
    random = np.random.default_rng(first)
    with connection.cursor() as cursor:
        for key in range(first, last):
            values = [
                None
                if (key + place) % 5 == 0
                else random.choice(np.array(given, object))
                for place, (_, given) in enumerate(COLUMNS.values())
            ]
            cursor.execute(
                sql.SQL('INSERT INTO "T t" VALUES ({})').format(
                    sql.SQL(", ").join(
                        map(sql.Literal, [key, f"[{key % 17},{key}]", *values])
                    )
                )
            )


def filters() -> list[dict[str, Any]]:
    """Return filters on each column, and on several."""
    found: list[dict[str, Any]] = [
        {name: {operator: values[len(values) // 2]}}
        for name, (_, values) in COLUMNS.items()
        for operator in OPERATORS
    ]
    found += [{name: {"in": values}} for name, (_, values) in COLUMNS.items()]
    found += [{name: None} for name in COLUMNS]
    return [
        *found,
        {"t": {"like": "%a%"}},
        {"t": {"ilike": "Ä"}},
        {"i": {"between": [0, 2]}, "t": "a"},
        {"not": {"i": 1}},
        {"or": [{"i": 1}, {"i": {"gt": 5}}]},
        {"or": [{"i": 1}, {"t": "a"}]},
        {"d": {"lt": "today"}},
        {"i": []},
    ]


def ask(
    connection: Connection, name: str, asked: list[Any], **given: Any
) -> BatchResult:
    """Return the nearest rows of each filter."""
    return search_batch(
        connection,
        name,
        np.full((len(asked), 2), 8.0),
        filters=asked,
        k=ROWS,
        recall=1.0,
        few_by_sql=False,
        **given,
    )


def layout_of(connection: Connection, name: str, root: Path) -> Store:
    """Return the layout that a batch would use."""
    found = find_layout(connection, describe(connection, name), root)
    assert isinstance(found, Store)
    return found


def built(connection: Connection, name: str, root: Path, past: list[Any]) -> Store:
    """Build a layout for queries with these filters."""
    workload = Workload.of(np.ones((len(past), 2)), past)
    build_layout(connection, name, workload=workload, root=root)
    return layout_of(connection, name, root)


def same(connection: Connection, name: str, asked: list[Any], root: Path) -> None:
    """Compare with what is found without a layout."""
    found = ask(connection, name, asked, layouts=root)
    assert found.report.layout == layout_of(connection, name, root).version
    expected = ask(connection, name, asked, layout=False)
    for number, each in enumerate(asked):
        assert found[number] == expected[number], each


@pytest.mark.parametrize("options", ["", " PARTITION BY RANGE (id)"])
def test_the_rows_are_those_of_postgresql(
    connection: Connection, tmp_path: Path, options: str
) -> None:
    """Also of values that the layout was not built for, and of rows that changed."""
    name = create(connection, options)
    past = [{column: {"ne": None}} for column in COLUMNS]
    layout = built(connection, name, tmp_path, past)
    assert {each.column.name.strip('"') for each in layout.codes} == set(COLUMNS)
    same(connection, name, filters(), tmp_path)
    connection.execute("UPDATE \"T t\" SET i = 1, t = 'new' WHERE id % 7 = 0")
    connection.execute('DELETE FROM "T t" WHERE id % 11 = 0')
    insert(connection, 1000, 1020)
    same(connection, name, [*filters(), {"t": "new"}], tmp_path)


def test_postgresql_is_not_asked_for_each_row(
    connection: Connection, tmp_path: Path
) -> None:
    name = create(connection)
    layout = built(connection, name, tmp_path, [{"i": 1, "t": "a"}])
    source = describe(connection, name)
    asked = [
        Condition('{"i": {"lt": 5}}'),
        Condition('{"t": "b"}'),
        Condition('{"b": 0}'),
    ]
    for coded, words in ((layout.codes, 0), ((), 1)):
        conditions = Conditions(connection, source, asked[:2], coded=coded)
        (part,) = conditions.rounds(ROWS, 1 << 29)
        assert part.shared == (0, 1)
        assert len(conditions.listing(Tables(), part).words) == words
    conditions = Conditions(connection, source, asked, coded=layout.codes)
    (part,) = conditions.rounds(ROWS, 1 << 29)
    assert len(conditions.listing(Tables(), part).words) == 1


def test_many_values_of_one_column(connection: Connection, tmp_path: Path) -> None:
    """They are looked up, among the values."""
    name = create(connection)
    connection.execute('UPDATE "T t" SET t = id % 150, i = id % 90')
    asked: list[Any] = [{"t": str(value)} for value in range(150)]
    asked += [{"i": value, "t": {"gt": "5"}} for value in range(95)]
    layout = built(connection, name, tmp_path, asked[:10] + asked[-10:])
    assert {len(each.values) for each in layout.codes} == {150, 90}
    same(connection, name, asked, tmp_path)
    connection.execute(
        'DELETE FROM "T t" WHERE id % 13 = 0; UPDATE "T t" SET t = 3 WHERE id % 14 = 1'
    )
    same(connection, name, asked, tmp_path)


def test_rows_that_policies_hide(
    connection: Connection, dsn: str, connect: Connect, tmp_path: Path
) -> None:
    """Their values are in the layout, which another role built."""
    name = create(connection)
    connection.execute('UPDATE "T t" SET t = id % 150, i = id % 3')
    asked: list[Any] = [{"t": str(value)} for value in range(150)]
    asked += [{"i": value} for value in range(3)]
    built(connection, name, tmp_path, asked[-20:])
    with ordinary_role(dsn, may_create=False) as role:
        user = conninfo_to_dict(role)["user"]
        for statement in (
            f"SELECT pgembed.grant_batch('{user}')",
            f'GRANT SELECT ON "T t" TO {user}',
            'CREATE POLICY odd ON "T t" USING (id % 2 = 1)',
            'ALTER TABLE "T t" ENABLE ROW LEVEL SECURITY',
        ):
            connection.execute(unsafe(statement))
        theirs = connect(role)
        same(theirs, name, asked, tmp_path)
        found = ask(theirs, name, asked, layouts=tmp_path)
        assert {key % 2 for row in range(len(asked)) for key, _ in found[row]} == {1}
        theirs.close()


def test_chunks_stay_when_their_row_changes(
    connection: Connection, tmp_path: Path
) -> None:
    register_model(connection, "tiny", dimensions=4)
    connection.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, n int, body text); "
        "INSERT INTO docs SELECT i, i % 3, 'x' FROM generate_series(1, 60) AS i"
    )
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8)"
    )
    connection.execute(
        "INSERT INTO docs_body_chunk SELECT i, c, 'x', ARRAY[i, c, 1, 1]::vector "
        "FROM generate_series(1, 60) AS i, generate_series(1, 3) AS c"
    )
    asked: list[Any] = [{"n": 0}, {"n": {"gt": 0}}, {"n": 7}]
    workload = Workload.of(np.ones((3, 4)), asked)
    build_layout(connection, "docs_body", workload=workload, root=tmp_path)
    connection.execute("UPDATE docs SET n = 7 WHERE id % 2 = 0")
    given: dict[str, Any] = {"filters": asked, "k": 60, "recall": 1.0}
    given["few_by_sql"] = False
    found, expected = (
        search_batch(connection, "docs_body", np.ones((3, 4)), **given, **where)
        for where in ({"layouts": tmp_path}, {"layout": False})
    )
    assert found.report.layout.count("-") == 4
    assert found.report.changed == 0
    assert found.counts.tolist() == [10, 50, 30]
    assert (found.keys == expected.keys).all()


def test_columns_of_many_values_are_left_out(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "_MOST_VALUES", 5)
    name = create(connection)
    layout = built(connection, name, tmp_path, [{column: None} for column in COLUMNS])
    whole = {each.column.name for each in layout.codes if each.terms is None}
    assert {"y", "u"} <= whole
    assert {"t", "i"}.isdisjoint(whole)
    assert "t" not in {each.column.name for each in layout.codes}
    same(connection, name, filters(), tmp_path)


def test_numbers_of_many_values_are_known_by_the_workloads_terms(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "_MOST_VALUES", 40)
    name = create(connection)
    connection.execute(
        'UPDATE "T t" SET i = id, n = id * 0.25, f = CASE id % 9 '
        "WHEN 0 THEN 'NaN' WHEN 1 THEN NULL ELSE sin(id) END, "
        "d = DATE '2020-01-01' + id"
    )
    past: list[Any] = [
        {"i": {"gt": 100}, "n": {"between": [3, 50]}},
        {"i": {"lte": 300}, "f": {"gte": 0.5}},
        {"not": {"f": 0.25}},
        {"f": None},
        {"d": {"gt": "2020-03-01"}},
        *({"i": number} for number in range(7)),
    ]
    layout = built(connection, name, tmp_path, past)
    found = {each.column.name: len(each.terms or ()) for each in layout.codes}
    assert found == {"i": 9, "n": 1, "f": 3}
    others: list[Any] = [
        {"i": {"gt": 101}},
        {"n": {"between": [3, 51]}},
        {"f": {"gte": 0.25}},
        *({"i": number} for number in range(200, 207)),
    ]
    conditions = Conditions(
        connection,
        describe(connection, name),
        [Condition('{"i": {"gt": 100}}'), Condition('{"i": {"gt": 101}}')],
        coded=layout.codes,
    )
    assert len(conditions._coded) == 1
    for asked in (past, others, [*past, *others]):
        same(connection, name, asked, tmp_path)
    connection.execute(
        'UPDATE "T t" SET i = 3, n = 49, f = 0.7 WHERE id % 7 = 0; '
        'DELETE FROM "T t" WHERE id % 11 = 0'
    )
    same(connection, name, [*past, *others], tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        'ALTER TABLE "T t" RENAME i TO j; ALTER TABLE "T t" RENAME t TO i; '
        'ALTER TABLE "T t" RENAME j TO t',
        'ALTER TABLE "T t" DROP i; ALTER TABLE "T t" ADD i int DEFAULT 7',
        'ALTER TABLE "T t" ALTER "o o" TYPE text',
        'ALTER TABLE "T t" DROP t, DROP i; ALTER TABLE "T t" ADD t text, ADD i int',
    ],
    ids=["swapped", "default", "type", "new"],
)
def test_a_column_that_is_another_now(
    connection: Connection, tmp_path: Path, change: str
) -> None:
    """Rows are what they were, and their columns are not."""
    name = create(connection)
    built(connection, name, tmp_path, [{"i": 1, "t": "a", "o o": "one"}])
    connection.execute(unsafe(change))
    asked: list[Any] = [{"i": "1"}, {"t": "7"}, {"o o": "one"}, {"i": None}, {"i": "7"}]
    same(connection, name, asked, tmp_path)


@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
def test_generated_columns(connection: Connection, tmp_path: Path, kind: str) -> None:
    """A virtual one has other values when its expression is another."""
    if connection.info.server_version < 180000:
        pytest.skip("PostgreSQL 18 brought virtual columns")
    name = create(connection)
    connection.execute(
        unsafe(f'ALTER TABLE "T t" ADD g int GENERATED ALWAYS AS (i * 2) {kind}')
    )
    asked: list[Any] = [{"g": 2}, {"g": {"gt": 5}}, {"g": None}]
    layout = built(connection, name, tmp_path, asked)
    assert bool(layout.codes) == (kind == "STORED")
    same(connection, name, asked, tmp_path)
    connection.execute('ALTER TABLE "T t" ALTER g SET EXPRESSION AS (i + 5)')
    found = ask(connection, name, asked, layouts=tmp_path)
    expected = ask(connection, name, asked, layout=False)
    assert (found.keys == expected.keys).all()


def test_a_partition_that_was_changed_by_itself(
    connection: Connection, tmp_path: Path
) -> None:
    """Its table and its rows are what they were, and the parent's columns, too."""
    name = create(connection, " PARTITION BY RANGE (id)")
    built(connection, name, tmp_path, [{"i": 1, "b": 0}])
    connection.execute(
        'ALTER TABLE "T t" DETACH PARTITION high; '
        "ALTER TABLE high DROP i; ALTER TABLE high ADD i int DEFAULT 2; "
        'ALTER TABLE "T t" ATTACH PARTITION high FOR VALUES FROM (300) TO (MAXVALUE)'
    )
    asked: list[Any] = [{"i": 2}, {"i": 1}, {"i": None}, {"b": 0}]
    same(connection, name, asked, tmp_path)
    connection.execute(
        'ALTER TABLE "T t" DETACH PARTITION high; '
        "ALTER TABLE high RENAME v TO w; ALTER TABLE high ADD v vector(2) "
        "DEFAULT '[1,1]'; ALTER TABLE high DROP w; "
        'ALTER TABLE "T t" ATTACH PARTITION high FOR VALUES FROM (300) TO (MAXVALUE)'
    )
    found = ask(connection, name, asked, layouts=tmp_path)
    assert "for another column" in found.report.layout
    (advice,) = fetch_one(connection, "SELECT advice FROM pgembed.layouts")
    assert "for another column" in advice


def test_texts_in_another_encoding(
    connection: Connection, dsn: str, tmp_path: Path
) -> None:
    """PostgreSQL sends and receives them in that of the client."""
    name = create(connection)
    built(connection, name, tmp_path, [{"t": "a"}])
    asked: list[Any] = [{"t": {"like": "_"}}, {"t": {"gt": "b"}}]
    with psycopg.connect(dsn, client_encoding="LATIN1", autocommit=True) as other:
        same(other, name, asked, tmp_path)


def test_a_column_called_like_ours(connection: Connection, tmp_path: Path) -> None:
    name = create(connection)
    connection.execute('ALTER TABLE "T t" RENAME i TO pgembed_place')
    asked: list[Any] = [{"pgembed_place": 1}, {"pgembed_place": {"gt": 1}, "t": "a"}]
    assert len(built(connection, name, tmp_path, asked).codes) == 2
    same(connection, name, asked, tmp_path)


def test_too_many_changes(connection: Connection, tmp_path: Path) -> None:
    """Then the layout's codes are of no use either."""
    name = create(connection, rows=0)
    connection.execute(
        "INSERT INTO \"T t\" (id, v, i, t) SELECT n, '[1,2]', n % 5, n % 7 "
        "FROM generate_series(1, 3000) AS n"
    )
    built(connection, name, tmp_path, [{"i": 1, "t": "a"}])
    connection.execute('UPDATE "T t" SET i = i + 1, t = 9 WHERE id % 10 <> 0')
    asked: list[Any] = [{"i": value} for value in range(7)] + [{"t": "9"}, {"t": "3"}]
    found = ask(connection, name, asked, layouts=tmp_path)
    assert found.report.layout == "not used: too many rows have changed"
    expected = ask(connection, name, asked, layout=False)
    assert (found.keys == expected.keys).all()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(asked=st.lists(st.deferred(lambda: NODES), min_size=1, max_size=4))
def test_any_filter(coded: tuple[Connection, str, Path], asked: list[Any]) -> None:
    connection, name, root = coded
    same(connection, name, asked, root)


@pytest.fixture
def coded(
    connection: Connection, tmp_path: Path
) -> Iterator[tuple[Connection, str, Path]]:
    """Create the table and a layout, since which some rows changed."""
    name = create(connection)
    built(connection, name, tmp_path, [{column: {"ne": None}} for column in COLUMNS])
    connection.execute('UPDATE "T t" SET i = 7, t = NULL WHERE id % 50 = 0')
    yield connection, name, tmp_path
    assert fetch_all(connection, "SELECT 1") == [(1,)]


def _leaves(column: str) -> st.SearchStrategy[dict[str, Any]]:
    values = st.sampled_from(COLUMNS[column][1])
    return st.one_of(
        st.tuples(st.sampled_from(OPERATORS), values).map(
            lambda t: {column: {t[0]: t[1]}}
        ),
        st.lists(values, max_size=3).map(lambda some: {column: {"not_in": some}}),
        st.booleans().map(lambda null: {column: {"is_null": null}}),
    )


NODES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.sampled_from(sorted(COLUMNS)).flatmap(_leaves),
    lambda nodes: st.one_of(
        st.lists(nodes, max_size=3).map(lambda some: {"and": some}),
        st.lists(nodes, max_size=3).map(lambda some: {"or": some}),
        nodes.map(lambda node: {"not": node}),
    ),
    max_leaves=4,
)
