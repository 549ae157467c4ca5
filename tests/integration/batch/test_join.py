"""k-NN joins against plain SQL: related rows of every row, but for itself."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pgembed
from pgembed.batch.execute import Options
from pgembed.batch.job import run_join
from pgembed.cli.batch import batch
from pgembed.errors import FilterError, PgembedError, SettingError
from pgembed.postgres.connection import fetch_all, fetch_one
from tests.conftest import Connect
from tests.harness.models import register_model
from tests.integration.batch.oracle import OPERATORS
from tests.integration.batch.posting import batch_of, ended, post, poster
from tests.integration.batch.tables import KEYS, create, vectors
from tests.integration.search.support import Connection, adopt, create_items, unsafe
from tests.integration.worker.running import answering

_numbers = itertools.count(1)

# What is asked for, and how plain SQL says it of rows t for a row q.
PREDICATES: list[tuple[str | None, str]] = [
    (None, "true"),
    ("n = 1", "t.n = 1"),
    ("n = {n}", "t.n = q.n"),
    ("n > {n} OR {n} IS NULL", "t.n > q.n OR q.n IS NULL"),
    ("s = {s} AND n >= {n} -- both", "t.s = q.s AND t.n >= q.n"),
    ("s IS DISTINCT FROM {s}", "t.s IS DISTINCT FROM q.s"),
    ("s = ANY ('{{a,c}}') AND s <> {s}", "t.s = ANY ('{a,c}') AND t.s <> q.s"),
]
FILTERS: list[tuple[dict[str, Any] | None, str]] = [
    (None, "true"),
    ({"n": {"lt": 3}}, "t.n < 3"),
    ({"n": {"asking": "n"}}, "t.n = q.n"),
    ({"s": {"asking": "s"}, "n": {"asking": {"gt": "n"}}}, "t.s = q.s AND t.n > q.n"),
    ({"not": {"n": {"asking": {"lte": "n"}}}}, "NOT t.n <= q.n"),
    (
        {"or": [{"n": {"asking": {"ne": "n"}}}, {"not": {"s": {"asking": "s"}}}]},
        "t.n <> q.n OR NOT t.s = q.s",
    ),
    (
        {
            "not": {
                "or": [
                    {"n": {"asking": "n", "ne": 2}, "s": {"ne": None}},
                    {"not": {"and": [{"s": {"asking": {"gte": "s"}}}, {"n": 1}]}},
                ]
            }
        },
        "NOT ((t.n = q.n AND t.n <> 2 AND t.s IS NOT NULL) "
        "OR NOT (t.s >= q.s AND t.n = 1))",
    ),
    (
        {"not": {"n": {"asking": {"between": ["n", '"n"'], "lt": "n"}}}},
        "NOT (t.n BETWEEN q.n AND q.n AND t.n < q.n)",
    ),
    ({"s": {"asking": {"contains": "s"}}}, "strpos(t.s, q.s) > 0"),
]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A table, and what is asked of it."""
    width = draw(st.integers(1, 5))
    row = st.tuples(
        st.none() | vectors(width) | st.just([0] * width),
        st.none() | st.integers(-1, 3),
        st.none() | st.sampled_from(["a", "b'\\", "c{}"]),
    )
    return {
        "width": width,
        "key": draw(st.sampled_from(sorted(KEYS))),
        "distance": draw(st.sampled_from(sorted(OPERATORS))),
        "partitioned": draw(st.booleans()),
        "rows": draw(st.lists(row, max_size=30)),
        "order": draw(st.randoms(use_true_random=False)),
        "k": draw(st.integers(1, 12)),
        "predicate": draw(st.sampled_from(PREDICATES)),
        "filter": draw(st.sampled_from(FILTERS)),
    }


def related(
    connection: Connection,
    table: str,
    keys: list[str],
    where: str,
    *,
    k: int,
    distance: str,
    asking: str | None = None,
) -> list[tuple[Any, ...]]:
    """Return (key…, rank, related key…, distance) of a join by plain SQL."""
    mine = ", ".join(f"q.{key}" for key in keys)
    theirs = ", ".join(f"t.{key}" for key in keys)
    other = "true" if asking else f"({mine}) <> ({theirs})"
    nearest = f"t.v {OPERATORS[distance]} q.v"
    return fetch_all(
        connection,
        unsafe(
            f"SELECT {mine}, x.rank::int, {theirs.replace('t.', 'x.')}, x.d "
            f"FROM {asking or table} AS q CROSS JOIN LATERAL (SELECT {theirs}, "
            f"{nearest} AS d, row_number() OVER (ORDER BY {nearest}, {theirs}) AS rank "
            f"FROM {table} AS t WHERE t.v IS NOT NULL AND {nearest} <> 'NaN' "
            f"AND {other} AND ({where})) AS x "
            f"WHERE q.v IS NOT NULL AND x.rank <= {k} ORDER BY {mine}, x.rank"
        ),
    )


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_exact_joins_are_what_sql_answers(
    shared: Connection, case: dict[str, Any]
) -> None:
    table = f"j{next(_numbers)}"
    create(shared, table, case)
    name = adopt(shared, table, distance=case["distance"])
    keys = [column for column, _ in KEYS[case["key"]]]
    predicate, in_sql = case["predicate"]
    given_filter, filter_sql = case["filter"]
    where = f"({in_sql}) AND ({filter_sql})"
    arguments = {"k": case["k"], "filter": given_filter, "predicate": predicate}
    try:
        rows, _ = run_join(
            shared,
            name,
            f"r{table}",
            options=Options(recall=1.0, memory=64 << 20, threads=1),
            **arguments,
        )
        order = ", ".join(str(i + 1) for i in range(len(keys) + 1))
        found = fetch_all(shared, unsafe(f"SELECT * FROM r{table} ORDER BY {order}"))
        expected = related(
            shared, table, keys, where, k=case["k"], distance=case["distance"]
        )
        assert found == expected
        assert rows == len(expected)
        result = pgembed.knn_join(shared, name, recall=1.0, **arguments)
        assert pairs(result) == sorted(pairs_of(expected, len(keys)))
    finally:
        shared.execute(unsafe(f"DROP TABLE {table}; DROP TABLE IF EXISTS r{table}"))
        shared.execute("SELECT pgembed.drop_embedding(%s)", [name])


def pairs(result: pgembed.JoinResult) -> list[tuple[Any, ...]]:
    """Return (key, rank, related key, distance) of a join in Python, sorted."""
    return sorted(
        (key, rank, other, distance)
        for i, key in enumerate(result.keys.tolist())
        for rank, (other, distance) in enumerate(result.related[i], 1)
    )


def pairs_of(rows: list[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Return rows of results with the columns of keys drawn together."""
    return [
        (
            row[0] if width == 1 else row[:width],
            row[width],
            row[width + 1] if width == 1 else row[width + 1 : -1],
            row[-1],
        )
        for row in rows
    ]


def agree(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> bool:
    """Whether rows are equal but for the rounding of their distances."""
    return [row[:-1] for row in found] == [
        row[:-1] for row in expected
    ] and np.allclose(
        [row[-1] for row in found], [row[-1] for row in expected], atol=1e-6
    )


@pytest.fixture
def items(connection: Connection) -> str:
    """Create items (id, v, category, year); return the embedding's name."""
    random = np.random.default_rng(0)
    values = random.standard_normal((400, 6)).astype(np.float32)
    create_items(
        connection,
        "items",
        values,
        columns={
            "category": ("text", [f"c{i % 7}" for i in range(400)]),
            "year": ("numeric(6,1)", [2000 + i % 5 for i in range(400)]),
        },
    )
    return adopt(connection, "items")


PREDICATE = "category = {category} AND year > {year}"
FILTER = {"category": {"asking": "category"}, "year": {"asking": {"gt": "year"}}}
IN_SQL = "t.category = q.category AND t.year > q.year"


@pytest.mark.parametrize(
    "condition",
    [
        {"predicate": PREDICATE},
        {"filter": FILTER},
        {"filter": {"category": FILTER["category"]}, "predicate": "year > {year}"},
        {"filter": FILTER, "predicate": PREDICATE},
    ],
)
def test_each_distinct_condition_is_evaluated_once(
    connection: Connection, items: str, condition: dict[str, Any]
) -> None:
    result = pgembed.knn_join(connection, items, recall=1.0, **condition)
    assert (len(result), result.report.conditions) == (400, 35)
    expected = related(connection, "items", ["id"], IN_SQL, k=10, distance="cosine")
    assert agree(pairs(result), expected)
    plain = pgembed.knn_join(connection, items, predicate="year > 2001", recall=1.0)
    assert plain.report.conditions == 1


def test_in_small_memory(connection: Connection, items: str) -> None:
    """Queries come in portions, and conditions in rounds."""
    report: list[tuple[int, int]] = []
    options = Options(
        recall=1.0,
        memory=1 << 17,
        threads=1,
        answered=lambda done, total: report.append((done, total)),
    )
    run_join(connection, items, "small", predicate=PREDICATE, options=options)
    assert report[0] == (0, 400)
    assert report[-1] == (400, 400)
    assert len(report) > 3
    found = fetch_all(connection, "SELECT * FROM small ORDER BY 1, 2")
    expected = related(connection, "items", ["id"], IN_SQL, k=10, distance="cosine")
    assert agree(found, expected)


@pytest.mark.parametrize(
    "condition",
    [
        {"predicate": "category = {likes}"},
        {"filter": {"category": {"asking": "likes"}}},
    ],
)
def test_another_embeddings_rows_ask(
    connection: Connection, items: str, condition: dict[str, Any]
) -> None:
    connection.execute(
        "CREATE TABLE people (a int, b text, v vector(6), likes text, "
        "PRIMARY KEY (a, b)); "
        "INSERT INTO people SELECT id, 'x', v, 'c3' FROM items WHERE id < 9"
    )
    people = adopt(connection, "people")
    result = pgembed.knn_join(
        connection, items, asking=people, recall=1.0, k=4, **condition
    )
    in_sql = "SELECT id FROM items WHERE category = 'c3' ORDER BY v <=> %s LIMIT 4"
    assert result.keys.tolist() == [(i, "x") for i in range(9)]
    for i in range(9):
        (vector,) = fetch_one(connection, "SELECT v FROM items WHERE id = %s", [i])
        expected = [row[0] for row in fetch_all(connection, in_sql, [vector])]
        assert [key for key, _ in result.related[i]] == expected
    options = Options(recall=1.0, memory=64 << 20, threads=1)
    run_join(connection, items, "liked", asking=people, options=options, **condition)
    names = fetch_all(
        connection,
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_name = 'liked' ORDER BY ordinal_position",
    )
    assert names == [
        ("a", "integer"),
        ("b", "text"),
        ("rank", "integer"),
        ("related_id", "integer"),
        ("distance", "double precision"),
    ]


def test_with_a_layout(connection: Connection, items: str, tmp_path: Any) -> None:
    built = pgembed.build_layout(connection, items, list_rows=20, root=tmp_path)
    arguments: dict[str, Any] = {"predicate": PREDICATE, "recall": 1.0}
    result = pgembed.knn_join(connection, items, layouts=tmp_path, **arguments)
    assert result.report.layout == built.version
    assert pairs(result) == pairs(
        pgembed.knn_join(connection, items, layout=False, **arguments)
    )


def test_the_recall_asked_for_is_that_of_others(
    connection: Connection, tmp_path: Path
) -> None:
    """A row finds itself for certain, which does not count."""
    random = np.random.default_rng(0)
    flat = random.standard_normal((8000, 10)) @ random.standard_normal((10, 96))
    noise = 0.3 * random.standard_normal(flat.shape)
    create_items(connection, "points", (flat + noise).astype(np.float32))
    name = adopt(connection, "points")
    pgembed.build_layout(connection, name, list_rows=25, root=tmp_path)
    given: dict[str, Any] = {"k": 1, "layouts": tmp_path}
    exact = pgembed.knn_join(connection, name, recall=1.0, **given)
    found = pgembed.knn_join(connection, name, recall=0.7, **given)
    recall = float(np.mean(exact.related.keys == found.related.keys))
    assert recall >= 0.7 - 0.03


@pytest.mark.parametrize(
    "condition",
    [
        ["--predicate", PREDICATE, "--filter", '{"year": {"lt": 2004}}'],
        ["--filter", json.dumps(FILTER | {"and": [{"year": {"lt": 2004}}]})],
    ],
)
def test_the_command(
    connection: Connection,
    dsn: str,
    items: str,
    monkeypatch: pytest.MonkeyPatch,
    condition: list[str],
) -> None:
    monkeypatch.setenv("PGEMBED_DSN", dsn)
    arguments = ["items_v", "--self", "--results", "r", "-k", "3", "--recall", "1"]
    arguments += [*condition, "--json"]
    outcome = CliRunner().invoke(batch, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    (summary,) = json.loads(outcome.output)
    expected = related(
        connection,
        "items",
        ["id"],
        f"{IN_SQL} AND t.year < 2004",
        k=3,
        distance="cosine",
    )
    assert summary["results"] == len(expected)
    assert agree(fetch_all(connection, "SELECT * FROM r ORDER BY 1, 2"), expected)
    for wrong in (
        ["items_v", "--results", "r"],
        ["items_v", "--results", "r", "--self", "--queries", "q"],
        ["items_v", "--results", "r", "--queries", "q", "--predicate", "true"],
    ):
        assert CliRunner().invoke(batch, wrong).exit_code == 2


@pytest.mark.parametrize("by_filter", [False, True])
def test_posted_from_sql(
    dsn: str, connection: Connection, connect: Connect, items: str, by_filter: bool
) -> None:
    year = {"year": {"ne": 2003}}
    condition: tuple[Any, ...] = (PREDICATE, json.dumps(year))
    if by_filter:
        condition = (None, json.dumps({"and": [FILTER, year]}))
    connection.execute(
        "ALTER TABLE items ENABLE ROW LEVEL SECURITY; "
        "CREATE POLICY even ON items USING (id % 2 = 0)"
    )
    with poster(dsn, connection) as (name, role), answering(dsn):
        connection.execute(unsafe(f"GRANT SELECT ON items TO {name}"))
        session = connect(role)
        number = post(
            session,
            "knn_join('items_v', 'r', 5, predicate => %s, filter => %s, recall => 1)",
            *condition,
        )
        assert batch_of(session, number)["kind"] == "join"
        row = ended(session, number)
        assert row["error"] is None
        assert (row["queries_done"], row["report"]["conditions"]) == (200, 35)
        found = fetch_all(connection, "SELECT * FROM r ORDER BY 1, 2")
    where = f"{IN_SQL} AND t.year <> 2003"
    expected = related(
        connection,
        "(SELECT * FROM items WHERE id % 2 = 0)",
        ["id"],
        where,
        k=5,
        distance="cosine",
    )
    assert row["rows"] == len(expected)
    assert agree(found, expected)


@pytest.mark.parametrize("written", ["null", '"{}"'])
def test_a_posted_filter_that_is_none(
    dsn: str, connection: Connection, items: str, written: str
) -> None:
    """Not even where JSON's null, or the text within a string, would be one."""
    with pytest.raises(FilterError) as refused:
        pgembed.knn_join(connection, items, filter=written)
    with answering(dsn):
        call = "knn_join('items_v', 'r', 5, filter => %s)"
        row = ended(connection, post(connection, call, written))
    assert row["state"] == "failed"
    assert str(refused.value).splitlines()[0] in row["error"]


@pytest.mark.parametrize(
    "hostile",
    [
        "x' OR true; DROP TABLE items --",
        """x"}}, "or": [{"and": []}], {"a": {"b": "\\""",
        '{"asking": "id"}',
        "{id} {{}} $1 %s \\",
        "null",
    ],
)
@pytest.mark.parametrize(
    "condition",
    [
        {"predicate": "category = {category}"},
        {"filter": {"category": {"asking": "category"}}},
    ],
)
def test_values_are_never_code(
    connection: Connection, items: str, hostile: str, condition: dict[str, Any]
) -> None:
    connection.execute("UPDATE items SET category = %s WHERE id < 5", [hostile])
    result = pgembed.knn_join(connection, items, recall=1.0, **condition)
    found = {
        key: {other for other, _ in result.related[i]}
        for i, key in enumerate(result.keys.tolist())
    }
    assert [found[i] for i in range(5)] == [set(range(5)) - {i} for i in range(5)]


NESTED: dict[str, Any] = {"id": {"asking": "id"}}
for _ in range(32):
    NESTED = {"not": NESTED}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"predicate": "year > {yeer}"}, FilterError, "refers to {yeer}, but"),
        ({"predicate": "year > {year"}, FilterError, "unmatched brace"),
        ({"predicate": "nothing = {year}"}, FilterError, "does not exist"),
        ({"filter": {"nothing": 1}}, FilterError, "no column nothing"),
        (
            {"filter": {"year": {"asking": "yeer"}}},
            FilterError,
            "row that asks: .* has no column yeer\n.* id, v, category, year",
        ),
        ({"filter": {"nothing": {"asking": "id"}}}, FilterError, "no column nothing"),
        ({"filter": {"id": {"asking": "v"}}}, FilterError, "holds vectors"),
        ({"filter": {"id": {"asking": "id.x"}}}, FilterError, "has no inside"),
        ({"filter": {"id": {"asking": "category"}}}, FilterError, '"c.*" is no value'),
        ({"filter": {"id": {"asking": {"in": "id"}}}}, FilterError, "is no list"),
        ({"filter": {"id": {"asking": {"like": "id"}}}}, FilterError, "works on text"),
        ({"filter": {"id": {"asking": 5}}}, FilterError, '"asking" of id is 5: name'),
        ({"filter": {"id": {"asking": {}}}}, FilterError, '"asking" of id is {}: name'),
        ({"filter": {"id": {"asking": {"gt": 5}}}}, FilterError, "name a column"),
        ({"filter": {"id": {"asking": {"no": "id"}}}}, FilterError, "operators are eq"),
        ({"filter": {"id": {"asking": {"between": "id"}}}}, FilterError, "a list of"),
        (
            {"filter": {"id": {"gt": {"asking": "id"}}}},
            FilterError,
            'is named so: {"asking": {"gt"',
        ),
        ({"filter": NESTED}, FilterError, "nested deeper than 32 levels"),
        ({"k": 0}, SettingError, "k is 0"),
        ({"asking": "narrow_v"}, PgembedError, "have 2 dimensions"),
        ({"asking": "unknown"}, Exception, "no embedding 'unknown'"),
    ],
)
def test_refused(
    connection: Connection,
    items: str,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    create_items(connection, "narrow", np.ones((3, 2), np.float32))
    adopt(connection, "narrow")
    with pytest.raises(error, match=message):
        pgembed.knn_join(connection, items, **arguments)
    assert connection.info.transaction_status.name == "IDLE"


@pytest.fixture
def documents(connection: Connection) -> None:
    """Create docs (a, b, n, v), with embeddings docs_v and docs_body, of chunks."""
    register_model(connection, "tiny", dimensions=4)
    connection.execute(
        "CREATE TABLE docs (a text, b int, n int, body text, v vector(4), "
        "PRIMARY KEY (a, b))"
    )
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8), "
        "pgembed.adopt_vectors('docs', 'v', distance => 'cosine')"
    )
    random = np.random.default_rng(1)

    def vector() -> Any:
        return random.integers(-2, 3, 4).astype(np.float32) + np.float32(0.5)

    with connection.cursor() as cursor:
        for i in range(40):
            key = ("xyz"[i % 3], i)
            cursor.execute(
                "INSERT INTO docs VALUES (%s, %s, %s, 'x', %s)", [*key, i % 4, vector()]
            )
            cursor.executemany(
                "INSERT INTO docs_body_chunk VALUES (%s, %s, %s, 'x', %s)",
                [(*key, chunk, vector()) for chunk in range(i % 5)],
            )


@pytest.mark.parametrize("embedding", ["docs_body", "docs_v"])
@pytest.mark.parametrize("asking", ["docs_body", "docs_v"])
@pytest.mark.parametrize("predicate", [None, "n > {n}"])
def test_rows_are_as_far_apart_as_their_nearest_chunks(
    connection: Connection,
    documents: None,
    embedding: str,
    asking: str,
    predicate: str | None,
) -> None:
    tables = {
        "docs_body": "(SELECT a, b, n, c.embedding AS v FROM docs "
        "JOIN docs_body_chunk AS c USING (a, b))",
        "docs_v": "docs",
    }
    expected = fetch_all(
        connection,
        unsafe(
            "SELECT a, b, rank::int, c, d, far FROM (SELECT q.a, q.b, t.a AS c, "
            "t.b AS d, min(q.v <=> t.v) AS far, row_number() OVER "
            "(PARTITION BY q.a, q.b ORDER BY min(q.v <=> t.v), t.a, t.b) AS rank "
            f"FROM {tables[asking]} AS q, {tables[embedding]} AS t "
            "WHERE (q.a, q.b) <> (t.a, t.b) "
            f"AND {'t.n > q.n' if predicate else 'true'} "
            "GROUP BY q.a, q.b, t.a, t.b) AS x WHERE rank <= 7 ORDER BY 1, 2, 3"
        ),
    )
    assert len(expected) > 100
    run_join(
        connection,
        embedding,
        "r",
        asking=asking,
        k=7,
        predicate=predicate,
        options=Options(recall=1.0, memory=64 << 20, threads=1),
    )
    found = fetch_all(connection, "SELECT * FROM r ORDER BY a, b, rank")
    assert found == expected
    result = pgembed.knn_join(
        connection, embedding, asking=asking, k=7, predicate=predicate, recall=1.0
    )
    assert pairs(result) == [
        ((a, b), rank, (c, d), far) for a, b, rank, c, d, far in expected
    ]
