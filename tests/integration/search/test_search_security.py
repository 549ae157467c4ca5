"""Search runs as its caller: grants, row-level security, hostile search paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from pgembed.postgres.resources import resource_dir
from tests.integration.search.support import (
    Connection,
    Matrix,
    adopt,
    create_items,
    explain,
    passing,
    plan_of,
    search,
    unsafe,
)

ROWS = 2000


def vectors() -> Matrix:
    """Return 2,000 vectors of 16 dimensions."""
    return np.random.default_rng(0).standard_normal((ROWS, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def tenants(shared: Connection) -> Iterator[Connection]:
    """Two tenants' rows under row-level security; tenant 1 has one row in fifty."""
    tenant = [1 if i % 50 == 0 else 2 for i in range(ROWS)]
    create_items(shared, "docs", vectors(), columns={"tenant": ("int", tenant)})
    shared.execute("ALTER TABLE docs ADD title text DEFAULT 'x'; ANALYZE docs")
    shared.execute("CREATE INDEX ON docs USING hnsw (v vector_l2_ops)")
    adopt(shared, "docs", distance="l2")
    shared.execute("CREATE ROLE searcher")
    shared.execute("SELECT pgembed.grant_search('searcher')")
    shared.execute(
        "ALTER TABLE docs ENABLE ROW LEVEL SECURITY; "
        "CREATE POLICY own ON docs USING "
        "(tenant = current_setting('app.tenant', true)::int); "
        "GRANT SELECT ON docs TO searcher"
    )
    yield shared
    shared.execute("RESET ROLE; DROP OWNED BY searcher CASCADE; DROP ROLE searcher")


@pytest.fixture
def searcher(tenants: Connection) -> Iterator[Connection]:
    """The same connection as a role that may search, and no more."""
    tenants.execute("SET ROLE searcher")
    yield tenants
    tenants.execute("RESET ROLE; RESET app.tenant; RESET search_path")


def nearest(query: Matrix, ids: Any, k: int) -> list[int]:
    """Return the k of *ids* nearest to *query*, nearest first."""
    order = np.linalg.norm(vectors()[ids] - query, axis=1).argsort()[:k]
    return [int(i) for i in np.asarray(ids)[order]]


@pytest.mark.parametrize("mode", ["exact", "index", "auto"])
def test_each_tenant_finds_its_own_rows(searcher: Connection, mode: str) -> None:
    query = vectors()[1]  # a row of tenant 2
    mine = np.arange(0, ROWS, 50)
    theirs = np.setdiff1d(np.arange(ROWS), mine)
    for tenant, ids in ((1, mine), (2, theirs)):
        searcher.execute(unsafe(f"SET app.tenant = {tenant}"))
        found = [i for i, _ in search(searcher, "docs", query, k=20, mode=mode)]
        assert len(found) == 20
        assert set(found) <= set(ids.tolist())
        expected = nearest(query, ids, 20)
        assert len(set(found) & set(expected)) >= (20 if mode == "exact" else 19)
        only = search(
            searcher, "docs", query, mode=mode, filter={"tenant": 1}, predicate="true"
        )
        assert len(only) == (10 if tenant == 1 else 0)
        both = searcher.execute(
            "SELECT (item).tenant FROM pgembed.hybrid_search(NULL::docs, 'x', 20, "
            "query_vector => array_fill(1, ARRAY[16])::vector, words => 'title', "
            "mode => %s)",
            (mode,),
        ).fetchall()
        assert both == [(tenant,)] * 20
    searcher.execute("SET app.tenant = 0")
    assert search(searcher, "docs", query, mode=mode) == []


def test_the_status_counts_no_table_that_policies_hide(searcher: Connection) -> None:
    """To count it would run the policies, code of the table's owner, as its reader."""
    searcher.execute("RESET ROLE; SELECT pgembed.grant_owner('searcher')")
    query = (
        "SELECT rows, embedded, state FROM pgembed.embedding_status "
        "WHERE source ~ 'docs$'"
    )
    try:
        searcher.execute("SET ROLE searcher; SET app.tenant = 1")
        ((rows, embedded, state),) = searcher.execute(query).fetchall()
        assert (rows, embedded) == (None, None)
        assert state.startswith("adopted; not counted: query would be affected by row")
        searcher.execute("RESET ROLE; ALTER ROLE searcher BYPASSRLS")
        searcher.execute("SET ROLE searcher")
        assert searcher.execute(query).fetchall() == [(ROWS, ROWS, "adopted")]
        searcher.execute("RESET ROLE; REVOKE SELECT ON docs FROM searcher")
        searcher.execute("SET ROLE searcher")
        ((rows, embedded, state),) = searcher.execute(query).fetchall()
        assert (rows, embedded) == (None, None)
        assert "permission denied" in state
    finally:
        searcher.execute(
            "RESET ROLE; ALTER ROLE searcher NOBYPASSRLS; "
            "GRANT SELECT ON docs TO searcher; "
            "SELECT pgembed.revoke_all('searcher'); "
            "SELECT pgembed.grant_search('searcher')"
        )


def granted(connection: Connection) -> set[str]:
    """Return all that searcher may do in schema pgembed."""
    rows = connection.execute(
        """
        SELECT o.name || ': ' || lower(a.privilege_type)
        FROM (
            SELECT 'schema', n.nspacl FROM pg_namespace AS n WHERE n.nspname = 'pgembed'
            UNION ALL
            SELECT c.relname::text, c.relacl FROM pg_class AS c
            WHERE c.relnamespace = 'pgembed'::regnamespace
            UNION ALL
            SELECT c.relname || '.' || a.attname, a.attacl FROM pg_attribute AS a
            JOIN pg_class AS c ON c.oid = a.attrelid
            WHERE c.relnamespace = 'pgembed'::regnamespace
            UNION ALL
            SELECT p.oid::regprocedure::text, p.proacl FROM pg_proc AS p
            WHERE p.pronamespace = 'pgembed'::regnamespace
        ) AS o (name, acl), aclexplode(o.acl) AS a
        WHERE a.grantee = 'searcher'::regrole
        """
    )
    return {name for (name,) in rows}


def test_a_searcher_may_search_and_no_more(tenants: Connection) -> None:
    routines = {
        f"{name}: execute"
        for (name,) in tenants.execute("SELECT pgembed._search_routines()::text")
    }
    tables = {"schema: usage", "embedding: select"}
    assert granted(tenants) == routines | tables
    source = (resource_dir("sql") / "95_privileges.sql").read_text()
    literals = re.findall(
        r"^ +'([a-z0-9_ ]+)'", source.split(" AS r;")[0], re.MULTILINE
    )
    assert {routine.split("(")[0] for routine in routines} == {
        f"pgembed.{name}" for name in " ".join(literals).split()
    }
    tenants.execute("SELECT pgembed.revoke_all('searcher')")
    assert granted(tenants) == set()
    tenants.execute("SELECT pgembed.grant_search('searcher')")
    assert granted(tenants) == routines | tables


def test_only_calls_and_the_record_run_as_the_owner(tenants: Connection) -> None:
    rows = tenants.execute(
        "SELECT p.proname FROM pgembed._search_routines() AS r "
        "JOIN pg_proc AS p ON p.oid = r WHERE p.prosecdef"
    )
    assert {name for (name,) in rows} == {
        "embed",
        "embed_batch",
        "embed_query",
        "_record_filter",
    }


def test_a_poster_of_batches_may_do_what_is_listed(tenants: Connection) -> None:
    source = (resource_dir("sql") / "95_privileges.sql").read_text()
    literals = re.findall(
        r"^ +'([a-z0-9_ ]+)'", source.split(" AS r;")[1], re.MULTILINE
    )
    routines = {
        name for (name,) in tenants.execute("SELECT pgembed._batch_routines()::text")
    }
    assert {routine.split("(")[0] for routine in routines} == {
        f"pgembed.{name}" for name in " ".join(literals).split()
    }
    before = granted(tenants)
    tenants.execute("SELECT pgembed.grant_batch('searcher')")
    inserted = ["kind", "embedding", "queries", "results"]
    inserted += ["k", "recall", "options", "settings"]
    readable = ["batch", "batch_progress", "batches", "layout", "layouts", "worker"]
    assert granted(tenants) - before == (
        {f"{routine}: execute" for routine in routines}
        | {f"{name}: select" for name in readable}
        | {f"batch.{name}: insert" for name in inserted}
        | {"batch.cancel_requested: update"}
    )
    tenants.execute("SELECT pgembed.revoke_all('searcher')")
    assert granted(tenants) == set()
    tenants.execute("SELECT pgembed.grant_search('searcher')")


def test_a_searcher_measures_recall(searcher: Connection) -> None:
    searcher.execute("SET app.tenant = 2")
    rows = searcher.execute("SELECT * FROM pgembed.recall('docs_v', 5)").fetchall()
    assert rows


def test_the_index_is_used_under_row_level_security(searcher: Connection) -> None:
    searcher.execute("SET app.tenant = 2")
    report = explain(searcher, "docs", vectors()[1], mode="index")
    assert (report["strategy"], report["fallback"]) == ("index", False)
    plan = plan_of(searcher, report, vectors()[1])
    assert "using docs_v_idx" in plan
    assert "tenant = " in plan


def test_errors_do_not_show_hidden_rows(searcher: Connection) -> None:
    """A predicate is kept behind the policy: it never meets the others' rows."""
    searcher.execute("SET app.tenant = 1")
    found = search(searcher, "docs", vectors()[1], predicate="1 / (2 - tenant) > 0")
    assert len(found) == 10


def test_grants_are_the_callers(searcher: Connection) -> None:
    searcher.execute("RESET ROLE")
    create_items(searcher, "secret", vectors()[:9])
    adopt(searcher, "secret")
    searcher.execute("GRANT SELECT (id) ON secret TO searcher")
    searcher.execute("SET ROLE searcher")
    for mode in ("exact", "index"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="table secret"):
            search(searcher, "secret", vectors()[0], mode=mode)


def test_only_the_record_is_written_as_somebody_else(tenants: Connection) -> None:
    rows = tenants.execute(
        "SELECT proname, proconfig[1] FROM pg_proc "
        "WHERE pronamespace = 'pgembed'::regnamespace "
        "AND proname ~ 'search|filter|advi' AND prosecdef"
    ).fetchall()
    assert rows == [("_record_filter", "search_path=pg_catalog, pg_temp")]


def test_who_searches_need_not_see_the_record(searcher: Connection) -> None:
    searcher.execute("SET app.tenant = 2; SET pgembed.record_filters = 1")
    assert search(searcher, "docs", vectors()[0], filter={"id": 3}) != []
    searcher.execute("RESET pgembed.record_filters")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        searcher.execute("SELECT * FROM pgembed.recorded_filter")
    searcher.execute("RESET ROLE")
    rows = searcher.execute("SELECT filter FROM pgembed.recorded_filter").fetchall()
    assert rows == [({"id": 3},)]


HOSTILE_FUNCTIONS = [
    ("count", "bigint", "bigint"),
    ("set_config", "text, text, boolean", "text"),
    ("set_config", "unknown, unknown, boolean", "text"),
    ("current_setting", "text, boolean", "text"),
    ("clock_timestamp", "", "timestamptz"),
    ("pg_typeof", "anyelement", "regtype"),
    ("json_extract_path_text", "json, text, text, text", "text"),
    ("to_jsonb", "record", "jsonb"),
    ("format", "text, text", "text"),
    ("array_length", "anyarray, int", "int"),
    ("min", "float8", "float8"),
    ("quote_ident", "text", "text"),
]
HOSTILE_OPERATORS = [
    (operator, kind, kind, "boolean")
    for operator in ("=", "<>", "<", "<=", ">", ">=")
    for kind in ("text", "int", "bigint", "oid", "float8", "jsonb", "tid", "regclass")
] + [
    ("+", "float8", "float8", "float8"),
    ("||", "text", "text", "text"),
    ("||", "text[]", "text", "text[]"),
    ("||", "jsonb", "jsonb", "jsonb"),
    ("->>", "jsonb", "text", "text"),
    ("->", "jsonb", "text", "jsonb"),
    ("<->", "public.vector", "public.vector", "float8"),
    ("<=>", "public.vector", "public.vector", "float8"),
    ("~~", "text", "text", "boolean"),
    ("@>", "anyarray", "anyarray", "boolean"),
]
HOSTILE_TYPES = (
    "text", "jsonb", "json", "record", "float8", "int4", "int8", "bool", "timestamptz",
    "regclass", "oid", "vector", "halfvec", "docs", "numeric", "_text", "embedding",
)  # fmt: skip


@pytest.fixture
def hostile(tenants: Connection) -> Iterator[Connection]:
    """A search_path that begins with traps for whoever does not qualify names."""
    trap = "LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END'"
    tenants.execute("CREATE SCHEMA evil")
    for name, arguments, result in HOSTILE_FUNCTIONS:
        if "unknown" not in arguments:
            tenants.execute(
                unsafe(
                    f"CREATE FUNCTION evil.{name}({arguments}) RETURNS {result} {trap}"
                )
            )
    for number, (operator, left, right, result) in enumerate(HOSTILE_OPERATORS):
        tenants.execute(
            unsafe(
                f"CREATE FUNCTION evil.o{number}(a {left}, b {right}) "
                f"RETURNS {result} {trap}"
            )
        )
        tenants.execute(
            unsafe(
                f"CREATE OPERATOR evil.{operator} "
                f"(LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = evil.o{number})"
            )
        )
    for name in HOSTILE_TYPES:
        tenants.execute(unsafe(f"CREATE TYPE evil.{name} AS (trapped int)"))
    tenants.execute("CREATE TEMP TABLE embedding (trapped int)")
    tenants.execute("CREATE TEMP TABLE pg_type (trapped int)")
    yield tenants
    tenants.execute("RESET search_path; DROP TABLE pg_temp.embedding, pg_temp.pg_type")
    tenants.execute("DROP SCHEMA evil CASCADE")


def test_a_hostile_search_path_changes_nothing(hostile: Connection) -> None:
    query = "'[" + ",".join("1" * 16) + "]'::public.vector"
    arguments = (
        f"NULL::public.docs, {query}, 5, filter => "
        '\'{"tenant": {"in": [2, 3], "lt": 9}, "id": [1, 2, 3, 4, 5, 6, 7]}\''
    )
    searches = [
        f"SELECT (item).id, distance FROM pgembed.search({arguments}, mode => '{mode}')"
        for mode in ("exact", "index", "auto")
    ]
    reports = (
        f"SELECT pgembed.explain_search({arguments}, mode => 'index') OPERATOR("
        "pg_catalog.-) 'planning_ms'::pg_catalog.text OPERATOR(pg_catalog.-) "
        "'execution_ms'::pg_catalog.text"
    )
    fused = (
        "SELECT (item).id, score FROM pgembed.hybrid_search(NULL::public.docs, 'x', 5, "
        f"query_vector => {query}, words => 'title')"
    )
    measured = "SELECT recall FROM pgembed.recall('docs_v', sample => 3)"
    everything = (*searches, reports, fused, measured)
    expected = [hostile.execute(unsafe(s)).fetchall() for s in everything]
    assert len(expected[0]) == 5
    hostile.execute("SET search_path = pg_temp, evil, pg_catalog, public")
    with pytest.raises(psycopg.errors.RaiseException, match="trapped"):
        hostile.execute("SELECT 1 = 1")
    found = [hostile.execute(unsafe(s)).fetchall() for s in everything]
    hostile.execute("RESET search_path")
    assert found == expected


def test_the_predicate_is_read_under_the_callers_search_path(
    tenants: Connection,
) -> None:
    tenants.execute("CREATE SCHEMA mine; CREATE TABLE mine.chosen AS SELECT 5 AS id")
    tenants.execute(
        "CREATE FUNCTION mine.twice(i int) RETURNS int LANGUAGE sql RETURN i * 2"
    )
    tenants.execute("SET search_path = mine, public")
    found = search(
        tenants, "public.docs", vectors()[1],
        predicate="id IN (SELECT twice(c.id) FROM chosen c)",
    )  # fmt: skip
    tenants.execute("RESET search_path; DROP SCHEMA mine CASCADE")
    assert [i for i, _ in found] == [10]


def test_filters_do_not_follow_the_search_path(tenants: Connection) -> None:
    tenants.execute("CREATE SCHEMA other; CREATE TABLE other.docs (id int)")
    tenants.execute("SET search_path = other, public")
    assert passing(tenants, "public.docs", {"tenant": 1})[:2] == [0, 50]
    tenants.execute("RESET search_path; DROP SCHEMA other CASCADE")


def test_operators_of_others_do_not_serve_filters(tenants: Connection) -> None:
    """They would run their owner's code with the rights of whoever searches."""
    query = np.ones(3, dtype=np.float32)
    with tenants.transaction(force_rollback=True):
        tenants.execute(
            "CREATE ROLE attacker; CREATE SCHEMA lair AUTHORIZATION attacker; "
            "CREATE TABLE labelled (id int PRIMARY KEY, v vector(3), "
            "label varchar(9), tag name); "
            "INSERT INTO labelled SELECT i, '[1,1,1]', 'n' || i, 'n' || i "
            "FROM generate_series(1, 9) AS i; "
            "SET ROLE attacker"
        )
        for kind in ("varchar", "name"):
            tenants.execute(
                unsafe(
                    f"CREATE FUNCTION lair.all(text, {kind}) RETURNS bool "
                    "LANGUAGE sql RETURN true; "
                    f"CREATE FUNCTION lair.all({kind}, text) RETURNS bool "
                    "LANGUAGE sql RETURN true; "
                    f"CREATE FUNCTION lair.all({kind}, {kind}) RETURNS bool "
                    "LANGUAGE sql RETURN true"
                )
            )
            for left, right in ((kind, kind), (kind, "text"), ("text", kind)):
                for operator in ("~~", "~~*"):
                    tenants.execute(
                        unsafe(
                            f"CREATE OPERATOR lair.{operator} (LEFTARG = {left}, "
                            f"RIGHTARG = {right}, FUNCTION = lair.all)"
                        )
                    )
        tenants.execute("RESET ROLE")
        adopt(tenants, "labelled")
        for column in ("label", "tag"):
            for word in ("like", "ilike"):
                where = {column: {word: "n3"}}
                assert search(tenants, "labelled", query, filter=where) == [(3, 0)]


def test_operators_of_a_types_extension_serve_filters(tenants: Connection) -> None:
    query = np.ones(3, dtype=np.float32)
    with tenants.transaction(force_rollback=True):
        tenants.execute(
            "CREATE SCHEMA words; CREATE EXTENSION citext SCHEMA words; "
            "CREATE EXTENSION ltree SCHEMA words; "
            "CREATE TABLE named (id int PRIMARY KEY, v vector(3), "
            "title words.citext, path words.ltree); "
            "INSERT INTO named VALUES (1, '[1,1,1]', 'Moon', 'a.b'), "
            "(2, '[1,1,1]', 'Sun', 'b')"
        )
        adopt(tenants, "named")
        for where in ({"title": {"like": "mo%"}}, {"path": {"contains": "a.b.c"}}):
            assert search(tenants, "named", query, filter=where) == [(1, 0)]


def test_what_policies_hide_is_estimated(searcher: Connection) -> None:
    """Without a filter, too: a tenant of few rows is searched exactly."""
    searcher.execute("SET app.tenant = 1")
    report = explain(searcher, "docs", vectors()[1])
    assert report["estimated_rows"] < ROWS / 2
    searcher.execute("RESET ROLE")
    report = explain(searcher, "docs", vectors()[1])
    assert report["estimated_rows"] == ROWS


def test_recall_is_measured_under_the_callers_path(searcher: Connection) -> None:
    """Policies that call what they find by search_path work as they do in a search."""
    searcher.execute("RESET ROLE")
    with searcher.transaction(force_rollback=True):
        searcher.execute(
            "CREATE SCHEMA club; CREATE TABLE club.member (tenant int); "
            "INSERT INTO club.member VALUES (1); "
            "CREATE FUNCTION club.is_member(int) RETURNS bool LANGUAGE plpgsql STABLE "
            "AS 'BEGIN RETURN $1 IN (SELECT m.tenant FROM member AS m); END'; "
            "GRANT USAGE ON SCHEMA club TO searcher; "
            "GRANT SELECT ON club.member TO searcher; "
            "DROP POLICY own ON docs; "
            "CREATE POLICY own ON docs USING (club.is_member(tenant)); "
            "SET LOCAL search_path = club, public; SET LOCAL ROLE searcher"
        )
        (row,) = searcher.execute(
            "SELECT recall, short, current_setting('search_path') "
            "FROM pgembed.recall('docs_v', sample => 3, mode => 'exact')"
        )
        assert row == (1, 0, "club, public")
        found = search(searcher, "docs", vectors()[0], k=3)
        assert all(i % 50 == 0 for i, _ in found)
