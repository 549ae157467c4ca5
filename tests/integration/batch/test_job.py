"""From a table of queries to a table of results: all of it, or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from pgembed.batch.execute import Options
from pgembed.batch.job import Frame, read_workload, run_batch, run_join
from pgembed.batch.layout import build_layout
from pgembed.batch.search import search_batch
from pgembed.cli.batch import batch
from pgembed.cli.layout import layout
from pgembed.errors import FilterError, PgembedError, SettingError, VectorError
from pgembed.postgres import copying
from pgembed.postgres.copying import write_columns
from tests.conftest import Connect
from tests.harness.roles import ordinary_role
from tests.integration.batch.oracle import nearest
from tests.integration.search.support import Connection, adopt, create_items, unsafe

OPTIONS = Options(recall=1.0, memory=64 << 20, threads=2)


@pytest.fixture
def items(connection: Connection) -> str:
    """Create items (id, v, n), queries, and past ones, which all have filters.

    Returns the embedding's name.
    """
    random = np.random.default_rng(0)
    vectors = random.standard_normal((500, 6)).astype(np.float32)
    numbers = [i % 10 for i in range(500)]
    create_items(connection, "items", vectors, columns={"n": ("int", numbers)})
    connection.execute(
        "CREATE TABLE queries AS SELECT 'q' || id AS id, v AS embedding, "
        "CASE WHEN id % 2 = 0 THEN jsonb_build_object('n', n) END AS filter, "
        "CASE WHEN id % 3 = 0 THEN 'id > 100' END AS predicate, "
        "CASE WHEN id % 5 = 0 THEN 3 END AS k FROM items WHERE id < 30"
    )
    connection.execute(
        "CREATE TABLE past AS SELECT id, v AS embedding, "
        "jsonb_build_object('n', id % 3) AS filter FROM items WHERE id < 30"
    )
    return adopt(connection, "items")


def test_results(connection: Connection, items: str) -> None:
    rows, report = run_batch(
        connection, items, "queries", "results", k=7, options=OPTIONS
    )
    columns = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_name = 'results' ORDER BY ordinal_position"
    ).fetchall()
    assert columns == [
        ("query_id", "text"),
        ("rank", "integer"),
        ("id", "integer"),
        ("distance", "double precision"),
    ]
    expected = connection.execute(
        "SELECT q.id, x.rank, x.id, x.d FROM queries AS q CROSS JOIN LATERAL ("
        "SELECT i.id, i.v <=> q.embedding AS d, row_number() OVER "
        "(ORDER BY i.v <=> q.embedding, i.id) AS rank FROM items AS i "
        "WHERE (q.filter IS NULL OR i.n = (q.filter ->> 'n')::int) "
        "AND (q.predicate IS NULL OR i.id > 100)) AS x "
        "WHERE x.rank <= coalesce(q.k, 7) ORDER BY 1, 2"
    ).fetchall()
    found = connection.execute("SELECT * FROM results ORDER BY 1, 2").fetchall()
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    np.testing.assert_allclose(
        [row[3] for row in found], [row[3] for row in expected], atol=1e-6
    )
    assert rows == len(found)
    assert set(report.seconds) >= {"predicates", "reading", "comparing", "writing"}


def test_results_are_added_to_a_table_that_exists(
    connection: Connection, items: str
) -> None:
    connection.execute('CREATE SCHEMA "S"')
    for _ in range(2):
        run_batch(connection, items, "queries", '"S"."My results"', options=OPTIONS)
    (count,) = connection.execute(
        'SELECT count(*) FROM (SELECT 1 FROM "S"."My results" '
        "GROUP BY query_id, rank HAVING count(*) = 2) AS t"
    ).fetchone() or (0,)
    assert count > 200


def test_results_in_a_table_of_the_full_name(
    connection: Connection, items: str
) -> None:
    (database,) = connection.execute("SELECT current_database()").fetchone() or ("",)
    name = f'"{database}".public.answers'
    assert run_batch(connection, items, "queries", name, options=OPTIONS)[0] > 200


def test_a_table_that_another_batch_has_just_made(
    dsn: str, connection: Connection, connect: Connect, items: str
) -> None:
    """Its snapshot does not show it, and its results go there, too."""
    made = "CREATE TABLE results (query_id text, rank int, id int, distance float8)"
    other = connect(dsn)
    snapshots = 0

    def begin(own: Connection) -> None:
        nonlocal snapshots
        snapshots += 1
        own.execute("TABLE items")
        if snapshots == 2:  # the first is for texts among the queries
            other.execute(made)

    frame = Frame(begin=begin)
    rows, _ = run_batch(
        connection, items, "queries", "results", options=OPTIONS, frame=frame
    )
    (count,) = connection.execute("SELECT count(*) FROM results").fetchone() or (0,)
    assert count == rows > 200


@pytest.mark.parametrize(
    ("id_type", "table"),
    [
        ("int", ""),
        ("smallint", "query_id int2, rank int4, id int4, distance float8"),
        ("bigint", "query_id int8, rank int2, id int8, distance float8 CHECK (true)"),
        ("bigint", "query_id numeric, rank int4, id text, distance numeric"),
        ("bigint", "query_id int2, rank int4, id int4, distance float8"),
        ("int", "query_id int4, rank int4, id int4, distance float8, n serial"),
    ],
)
def test_integers_are_the_same_however_they_are_written(
    connection: Connection, items: str, id_type: str, table: str
) -> None:
    """Mostly by COPY, for which the types of the table have to hold them."""
    connection.execute(
        unsafe(
            "ALTER TABLE queries ALTER id TYPE "
            f"{id_type} USING substr(id, 2)::{id_type}; "
            "UPDATE queries SET k = 0 + 4"
        )
    )
    if table:
        connection.execute(unsafe(f"CREATE TABLE results ({table})"))
    run_batch(connection, items, "queries", "results", options=OPTIONS)
    connection.execute("ALTER TABLE queries ALTER id TYPE text")
    run_batch(connection, items, "queries", "expected", options=OPTIONS)
    columns = (
        "query_id::text::int, rank::int, id::text::int, round(distance::numeric, 5)"
    )
    found, expected = (
        connection.execute(
            unsafe(f"SELECT {columns} FROM {name} ORDER BY 1, 2")
        ).fetchall()
        for name in ("results", "expected")
    )
    assert found == expected
    assert len(found) > 80


@pytest.mark.parametrize("key", ["columns", "id", '"the id"'])
def test_integers_of_joins_are_copied(
    connection: Connection, items: str, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Whatever their column is called."""
    copied = []

    def write(*given: Any) -> int:
        copied.append(given[2])
        return write_columns(*given)

    monkeypatch.setattr(copying, "write_columns", write)
    connection.execute(
        "ALTER TABLE queries ALTER id TYPE int USING substr(id, 2)::int, DROP predicate"
    )
    if key != "id":
        connection.execute(unsafe(f"ALTER TABLE items RENAME id TO {key}"))
        connection.execute("SELECT pgembed.drop_embedding(%s)", [items])
        items = adopt(connection, "items")
    written, _ = run_join(connection, items, "related", k=3, options=OPTIONS)
    run_batch(connection, items, "queries", "results", options=OPTIONS)
    assert len(copied) == 2
    rows = connection.execute(
        unsafe(f"SELECT {key}, rank FROM related ORDER BY 1, 2")
    ).fetchall()
    assert rows == [(i, rank) for i in range(500) for rank in (1, 2, 3)]
    assert written == len(rows)


def test_rows_that_a_trigger_leaves_out_are_missed(
    connection: Connection, items: str
) -> None:
    connection.execute(
        "ALTER TABLE queries ALTER id TYPE int USING substr(id, 2)::int; "
        "CREATE TABLE results (query_id int, rank int, id int, distance float8); "
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RETURN CASE WHEN NEW.rank < 3 THEN NEW END; END'; "
        "CREATE TRIGGER few BEFORE INSERT ON results FOR EACH ROW "
        "EXECUTE FUNCTION nothing()"
    )
    with pytest.raises(PgembedError, match="a trigger of results left some out"):
        run_batch(connection, items, "queries", "results", options=OPTIONS)
    assert connection.execute("SELECT count(*) FROM results").fetchone() == (0,)


@pytest.mark.parametrize(
    "refusal",
    [
        "CREATE RULE own AS ON INSERT TO results DO INSTEAD "
        "INSERT INTO others SELECT NEW.*",
        "ALTER TABLE results RENAME TO others; "
        "CREATE VIEW results AS SELECT * FROM others",
    ],
    ids=["rule", "view"],
)
def test_results_go_where_inserted_rows_would(
    connection: Connection, items: str, refusal: str
) -> None:
    connection.execute("ALTER TABLE queries ALTER id TYPE int USING substr(id, 2)::int")
    connection.execute(
        unsafe(
            "CREATE TABLE results (query_id int, rank int, id int, distance float8); "
            f"CREATE TABLE {'others' if 'RULE' in refusal else 'more'} "
            f"(LIKE results); {refusal}"
        )
    )
    rows, _ = run_batch(connection, items, "queries", "results", options=OPTIONS)
    assert connection.execute("SELECT count(*) FROM others").fetchone() == (rows,)


def test_a_batch_that_fails_leaves_nothing(connection: Connection, items: str) -> None:
    connection.execute(
        "UPDATE queries SET predicate = '1 / (n - 5) > 0' WHERE id = 'q7'"
    )
    with pytest.raises(FilterError, match=r"^1 / \(n - 5\) > 0: division by zero"):
        run_batch(connection, items, "queries", "results", options=OPTIONS)
    row = connection.execute("SELECT to_regclass('results')").fetchone()
    assert row == (None,)
    assert connection.info.transaction_status.name == "IDLE"


def test_a_killed_batch_leaves_nothing(
    connection: Connection, dsn: str, items: str
) -> None:
    """Kill it while it waits for a lock in the middle of its transaction."""
    connection.execute(
        "CREATE TABLE results (query_id text, rank int, id int, distance float8)"
    )
    program = (
        "import sys\n"
        "from pgembed.batch.execute import Options\n"
        "from pgembed.batch.job import run_batch\n"
        "from pgembed.postgres.connection import connect\n"
        "with connect(sys.argv[1], purpose='victim') as c:\n"
        "    run_batch(c, sys.argv[2], 'queries', 'results',\n"
        "        options=Options(1.0, 64 << 20, 1))\n"
    )
    with connection.transaction():
        connection.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
        process = subprocess.Popen([sys.executable, "-c", program, dsn, items])
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE "
            "application_name = 'pgembed victim' AND wait_event_type = 'Lock'"
        )
        while connection.execute(waiting).fetchone() != (1,):
            assert process.poll() is None
            connection.execute("SELECT pg_stat_clear_snapshot(), pg_sleep(0.02)")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert connection.execute("SELECT count(*) FROM results").fetchone() == (0,)


def test_the_commands(
    connection: Connection,
    dsn: str,
    items: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGEMBED_DSN", dsn)
    monkeypatch.setenv("PGEMBED_CACHE_DIR", str(tmp_path / "models"))

    def run(command: click.Command, *arguments: str) -> Any:
        result = CliRunner().invoke(
            command, [*arguments, "--json"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    (built,) = run(
        layout,
        "build",
        items,
        "--list-rows",
        "20",
        "--workload",
        "past",
        "--least-rows",
        "40",
        "--precision",
        "float16",
    )
    assert (built["rows"], built["lists"] >= 20, built["leaves"] > 1) == (
        500,
        True,
        True,
    )
    (shown,) = run(layout, "show")
    assert (shown["changed"], shown["advice"]) == (0, "current")
    assert built["precision"] == shown["precision"] == "float16"
    leaves = run(layout, "show", items, "--leaves")
    assert sum(leaf["rows"] for leaf in leaves) == 500
    assert any(leaf["holds"] for leaf in leaves)
    (summary,) = run(batch, items, "--queries", "queries", "--results", "results")
    assert summary["results"] > 100
    assert not summary["layout"].startswith("not used")
    connection.execute("UPDATE items SET n = n WHERE id < 400")
    (shown,) = run(layout, "show", items)
    assert shown["advice"].startswith("a rebuild pays")
    assert shown["changed"] == 400
    connection.execute("VACUUM FULL items")
    (shown,) = run(layout, "show", items)
    assert shown["advice"].startswith("rebuild: the table was rewritten")
    output = CliRunner().invoke(layout, ["drop", items], catch_exceptions=False).output
    assert output == f"dropped the layout of {items}\n"


def test_a_layout_for_a_workload_gives_the_same_answers(
    connection: Connection, items: str, tmp_path: Path
) -> None:
    past = read_workload(connection, items, "past")
    built = build_layout(
        connection, items, workload=past, list_rows=20, least_rows=30, root=tmp_path
    )
    workload = read_workload(connection, items, "queries")
    assert built.leaves > 2
    with_layout = search_batch(
        connection,
        items,
        workload.queries,
        filters=[workload.conditions[i].filter for i in workload.members],
        predicates=[workload.conditions[i].predicate for i in workload.members],
        recall=1.0,
        layouts=tmp_path,
    )
    without = search_batch(
        connection,
        items,
        workload.queries,
        filters=[workload.conditions[i].filter for i in workload.members],
        predicates=[workload.conditions[i].predicate for i in workload.members],
        recall=1.0,
        layout=False,
    )
    assert with_layout.report.layout == built.version
    assert (with_layout.keys == without.keys).all()
    assert (with_layout.distances == without.distances).all()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER TABLE queries DROP COLUMN id", "queries need id"),
        ("ALTER TABLE queries DROP COLUMN embedding", "queries need id"),
        ("UPDATE queries SET embedding = '[1]' WHERE id = 'q3'", "1 dimensions"),
        (
            "ALTER TABLE queries RENAME TO q2; CREATE VIEW queries AS TABLE q2",
            "not an ordinary table, .*CREATE UNLOGGED TABLE",
        ),
        ("CREATE TABLE more () INHERITS (queries)", "or others inherit from it"),
        (
            "ALTER TABLE queries ADD content text; UPDATE queries SET content = 'a', "
            "embedding = NULL WHERE id = 'q3'",
            "no model",
        ),
        ("ALTER TABLE items RENAME id TO rank", "has the name of a column of results"),
        (
            "CREATE TABLE results (query_id text, rank int, item int, distance float8)",
            "results has no column id: .* query_id, rank, id, distance;",
        ),
        (
            "ALTER TABLE queries ALTER embedding TYPE text",
            r"'\[.*' *, which is no vector",
        ),
        (
            "ALTER TABLE queries ALTER embedding TYPE sparsevec "
            "USING embedding::sparsevec",
            "is no vector",
        ),
        (
            "ALTER TABLE queries ALTER embedding TYPE real[] "
            "USING ARRAY[embedding::real[]]",
            "is no vector",
        ),
    ],
)
def test_tables_that_cannot_be(
    connection: Connection, items: str, statement: str, message: str
) -> None:
    if "[1]" in statement:
        connection.execute("ALTER TABLE queries ALTER embedding TYPE vector")
    for part in statement.split(";"):
        connection.execute(unsafe(part))
    if "TO rank" in statement:
        connection.execute("UPDATE pgembed.embedding SET key_columns = '{rank}'")
        connection.execute("UPDATE queries SET predicate = NULL")
    with pytest.raises(SettingError, match=message):
        run_batch(connection, items, "queries", "results", options=OPTIONS)


@pytest.mark.parametrize("few_by_sql", [True, False])
@pytest.mark.parametrize("others", [0, 1, 2, 9])
def test_a_predicate_that_fails_on_a_row_is_named(
    connection: Connection,
    items: str,
    others: int,
    few_by_sql: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgembed.batch.singly.is_cheaper", lambda *_, **__: few_by_sql)
    # In a transaction, which goes on.
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for place in {0, others // 2, others}:
            predicates = [f"n * {i} < 100" for i in range(others)]
            predicates.insert(place, "1 / (n - 5) > 0")
            with pytest.raises(FilterError, match=r"^1 / \(n - 5\) > 0: division by"):
                search_batch(
                    connection,
                    items,
                    np.ones((others + 1, 6)),
                    predicates=predicates,
                )
        connection.execute("SELECT 1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{1,2,3,4,5,NaN}", "holds NaN"),
        ("{1,2,3,4,5,NULL}", "holds NaN"),
        ("{0,0,0,0,0,0}", "has length zero"),
    ],
)
def test_queries_without_a_distance_are_named(
    connection: Connection, items: str, value: str, message: str
) -> None:
    connection.execute(
        "ALTER TABLE queries ALTER embedding TYPE real[] USING embedding::real[]"
    )
    connection.execute(
        "UPDATE queries SET embedding = %s::real[] WHERE id = 'q7'", [value]
    )
    with pytest.raises(VectorError, match=f"query 'q7' in public.queries {message}"):
        run_batch(connection, items, "queries", "results", options=OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": np.ones((1, 5))}, VectorError, "5 dimensions"),
        ({"queries": np.zeros((1, 6))}, VectorError, "length zero"),
        ({"filters": {"price": 1}}, FilterError, "no column price"),
        ({"filters": {"n": "x"}}, FilterError, "is no value of"),
        ({"predicates": "n < 5) OR (n > 7"}, FilterError, "syntax error"),
        ({"predicates": "true; DROP TABLE items"}, FilterError, "multiple commands"),
        ({"predicates": "nothing = 1"}, FilterError, "does not exist"),
        ({"predicates": "n = $1"}, FilterError, r"n = \$1: there is no parameter \$1"),
        ({"predicates": "generate_series(1, n) > 1"}, FilterError, "^generate.*: set-"),
        ({"recall": 0}, SettingError, "recall"),
        ({"memory": "1kB"}, SettingError, "memory"),
    ],
)
def test_refused(
    connection: Connection,
    items: str,
    arguments: dict[str, Any],
    error: type[PgembedError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        search_batch(connection, items, **{"queries": np.ones((1, 6)), **arguments})
    assert connection.info.transaction_status.name == "IDLE"


def test_the_snapshot_is_the_callers(
    connection: Connection, dsn: str, items: str, connect: Connect
) -> None:
    query = np.ones((1, 6))
    with connection.transaction(), pytest.raises(PgembedError, match="read committed"):
        search_batch(connection, items, query)
    other = connect(dsn)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        before = search_batch(connection, items, query)
        other.execute("DELETE FROM items")
        assert search_batch(connection, items, query)[0] == before[0]
    assert search_batch(connection, items, query)[0] == []


def test_grants_and_row_security_count(
    dsn: str, connection: Connection, items: str, connect: Connect, tmp_path: Path
) -> None:
    query = np.ones((1, 6), np.float32)
    with ordinary_role(dsn, may_create=False) as role:
        name = role.split("//")[1].split("@")[0]
        for statement in (
            "GRANT USAGE ON SCHEMA pgembed TO {}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA pgembed TO {}",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgembed TO {}",
        ):
            connection.execute(unsafe(statement.format(name)))
        plain = connect(role)
        with pytest.raises(Exception, match="permission denied"):
            search_batch(plain, items, query)
        connection.execute(unsafe(f"GRANT SELECT ON items TO {name}"))
        connection.execute("CREATE POLICY fours ON items USING (n = 4)")
        connection.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
        expected = nearest(connection, "items", query[0], where="n = 4", k=100)
        build_layout(connection, items, root=tmp_path)
        for layout in (False, True):
            found = search_batch(
                plain,
                items,
                query,
                k=100,
                recall=1.0,
                layout=layout,
                layouts=tmp_path,
                few_by_sql=False,
            )
            assert [key for key, _ in found[0]] == [key for key, _ in expected]
            assert found.report.layout.startswith("not used") != layout
        plain.close()


def test_no_queries(connection: Connection, items: str) -> None:
    result = search_batch(connection, items, np.empty((0, 6)))
    assert (len(result), result.keys.shape) == (0, (0, 0))


def test_chunks_count_as_their_row(connection: Connection) -> None:
    from tests.harness.models import register_model

    register_model(connection, "tiny", dimensions=4)
    connection.execute("CREATE TABLE docs (id text PRIMARY KEY, n int, body text)")
    connection.execute(
        "INSERT INTO docs SELECT 'd' || i, i % 3, 'x' FROM generate_series(1, 40) i"
    )
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8)"
    )
    random = np.random.default_rng(1)
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO docs_body_chunk VALUES (%s, %s, 'x', %s)",
            [
                (
                    f"d{i}",
                    c,
                    random.integers(-2, 3, 4).astype(np.float32) + np.float32(0.5),
                )
                for i in range(1, 41)
                for c in range(i % 9)
            ],
        )
    queries = random.integers(-2, 3, (20, 4)).astype(np.float32) + np.float32(0.5)
    result = search_batch(
        connection, "docs_body", queries, filters={"n": [0, 1]}, k=15, recall=1.0
    )
    for i, query in enumerate(queries):
        expected = connection.execute(
            "SELECT d.id, min(c.embedding <=> %s) AS far FROM docs d "
            "JOIN docs_body_chunk c USING (id) WHERE d.n IN (0, 1) "
            "GROUP BY d.id ORDER BY far, d.id LIMIT 15",
            [query],
        ).fetchall()
        assert result[i] == expected


def test_few_queries_on_a_big_table_go_through_sql(connection: Connection) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((9000, 8)).astype(np.float32)
    create_items(connection, "many", vectors, columns={"n": ("int", list(range(9000)))})
    name = adopt(connection, "many")
    arguments: dict[str, Any] = {
        "queries": vectors[:2] + np.float32(0.1),
        "filters": [{"n": {"lt": 50}}, {"n": {"gt": 8990}}],
        "k": [7, 12],
        "recall": 1.0,
    }
    connection.execute("CREATE INDEX ON many (n)")
    fast = search_batch(connection, name, **arguments)
    slow = search_batch(connection, name, **arguments, few_by_sql=False)
    assert fast.report.strategy == "one by one"
    assert slow.report.strategy == "exact"
    assert fast.counts.tolist() == slow.counts.tolist() == [7, 9]
    assert (fast.keys == slow.keys).all()
    np.testing.assert_allclose(fast.distances, slow.distances, atol=1e-6)
    assert (fast.places == slow.places).all()
    assert fast.tables == slow.tables
