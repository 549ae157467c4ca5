"""P8: nothing of pgembed's calls an operator or a function that others put in its way.

Whoever may create in a schema of the search_path can offer better matches for operators
and functions than PostgreSQL's own, and they would run with the rights of who calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner

from pgembed.batch.execute import Options
from pgembed.batch.job import read_workload, run_batch, run_join
from pgembed.batch.layout import build_layout
from pgembed.cli.main import pgembed
from pgembed.postgres.connection import connect, fetch_all, fetch_one
from pgembed.postgres.doctor import verify
from pgembed.postgres.schema import install, uninstall
from pgembed.search import advice
from tests.integration.batch.posting import ended, post, poster
from tests.integration.search.support import Connection, adopt, create_items
from tests.integration.worker.running import (
    add_good,
    answering,
    create_docs,
    embed_all,
    insert,
)

OPTIONS = Options(0.99, 64 << 20, 1, few_by_sql=False)

# For every pair of types for which PostgreSQL has none of its own; and functions of
# arrays, whose arguments PostgreSQL's own leave open.
OFFER = r"""
DO $$
DECLARE
    o record;
    body text := 'LANGUAGE plpgsql AS ''BEGIN RAISE ''''of others: %s''''; END''';
    made int := 0;
BEGIN
    FOR o IN
        SELECT op, l, r, w.result
        FROM (VALUES
            ('{oid,regclass,regrole,regtype,regproc,regprocedure,regnamespace,int4,int8}',
                '{=,<>,<,>,<=,>=}', 'bool'),
            ('{int2,int4,int8,float4,float8,numeric}', '{=,<>,<,>,<=,>=}', 'bool'),
            ('{int2,int4,int8,float4,float8,numeric}', '{+,-,*,/,%%}', 'numeric'),
            ('{text,name,varchar,bpchar,"\"char\""}', '{=,<>}', 'bool'),
            ('{text,name,varchar,bpchar,"\"char\"",int4,int8,oid,regclass}', '{||}', 'text')
        ) AS w (types, ops, result),
            unnest(w.ops::text[]) AS op, unnest(w.types::text[]) AS l,
            unnest(w.types::text[]) AS r
        WHERE NOT EXISTS (
            SELECT FROM pg_operator AS p WHERE p.oprname = op
                AND p.oprleft = l::regtype AND p.oprright = r::regtype)
    LOOP
        made := made + 1;
        EXECUTE format('CREATE FUNCTION public.of_others_%s(a %s, b %s) RETURNS %s ' || body,
            made, o.l, o.r, o.result, format('%s %s %s', o.l, replace(o.op, '%', '%%'), o.r));
        EXECUTE format('CREATE OPERATOR public.%s (leftarg = %s, rightarg = %s, '
            'function = public.of_others_%s)', o.op, o.l, o.r, made);
    END LOOP;
    FOR o IN
        SELECT t FROM unnest('{text,name,int2,int4,int8,oid,float4,tid,bytea,regclass}'::text[]) AS t
    LOOP
        EXECUTE format('CREATE FUNCTION public.unnest(a %s[]) RETURNS SETOF %1$s ' || body,
            o.t, 'unnest');
        EXECUTE format('CREATE FUNCTION public.cardinality(a %s[]) RETURNS int ' || body,
            o.t, 'cardinality');
    END LOOP;
END;
$$;
"""  # noqa: E501 - SQL


@pytest.fixture
def posting(
    dsn: str, connection: Connection, tmp_path: Path
) -> Iterator[tuple[str, str]]:
    """Return a role that may create in public, and has; and its DSN."""
    add_good(connection, tmp_path)
    create_docs(connection, "a cat", "the dog", chunk_tokens=100)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 6)).astype(np.float32)
    columns = {"n": ("int", [i % 7 for i in range(300)])}
    create_items(connection, "items", vectors, columns=columns)
    adopt(connection, "items")
    connection.execute(
        "CREATE TABLE queries AS SELECT id, v AS embedding, "
        "jsonb_build_object('n', id) AS filter FROM items WHERE id < 9"
    )
    with poster(dsn, connection) as (name, role):
        connection.execute(f"GRANT SELECT ON items, queries TO {name}".encode())
        with psycopg.connect(role, autocommit=True) as other:
            other.execute(OFFER)
        yield name, role


def test_operators_are_there_to_be_taken(
    connection: Connection, posting: tuple[str, str]
) -> None:
    """Or the other tests would show nothing."""
    for expression in ("c.oid = 'items'::regclass", "unnest('{1}'::int4[]) = 1"):
        with pytest.raises(psycopg.errors.RaiseException, match="of others"):
            connection.execute(f"SELECT {expression} FROM pg_class AS c".encode())


@pytest.mark.usefixtures("posting")
def test_batches_and_layouts(dsn: str, tmp_path: Path) -> None:
    with connect(dsn, purpose="test") as own:
        run_batch(own, "items_v", "queries", "found", options=OPTIONS)
        run_batch(
            own, "items_v", "queries", "found", options=Options(0.99, 64 << 20, 1)
        )
        workload = read_workload(own, "items_v", "queries")
        build_layout(own, "items_v", workload=workload, root=tmp_path)
        run_batch(own, "items_v", "queries", "found", options=OPTIONS)
        run_join(own, "items_v", "related", predicate="n > {n}", options=OPTIONS)
        written = "SELECT pg_catalog.count(*) FROM found"
        assert fetch_one(own, written)[0] > 100


def test_posted_batches(
    dsn: str, connection: Connection, posting: tuple[str, str], tmp_path: Path
) -> None:
    with (
        answering(dsn, cache_dir=tmp_path / "models"),
        connect(posting[1], purpose="test") as caller,
    ):
        batch = post(caller, "search_batch('items_v', 'queries', 'answers')")
        assert ended(caller, batch)["error"] is None
        batch = post(connection, "build_layout('items_v', 'queries')")
        assert ended(connection, batch)["error"] is None


@pytest.mark.usefixtures("posting")
def test_rows_are_embedded(dsn: str, connection: Connection) -> None:
    insert(connection, "a girl", first=4)
    embed_all(dsn)
    state = "SELECT state FROM pgembed.embedding_status ORDER BY name"
    assert fetch_all(connection, state) == [("current",), ("adopted",)]


@pytest.mark.usefixtures("posting")
def test_searches_advice_and_the_doctor(connection: Connection) -> None:
    connection.execute(
        'SELECT pgembed.search(NULL::items, v, filter => \'{"n": {"lt": 3}}\') '
        "FROM items LIMIT 1"
    )
    connection.execute("CREATE TABLE workload AS SELECT filter FROM queries")
    advice.advise(connection, "items_v", workload="workload")
    findings = verify(connection)
    assert findings[-1].subject == "embedding items_v"
    assert not any("of others" in finding.message for finding in findings)


@pytest.mark.usefixtures("posting")
@pytest.mark.parametrize(
    "command",
    [
        "status",
        "doctor",
        "install --roles",
        "model list",
        "embedding list",
        "embedding reconcile docs_body",
        "layout show",
        "recall items_v --sample 5",
        "search docs_body cat --explain",
        "batch items_v --queries queries --results found",
    ],
)
def test_commands(dsn: str, command: str) -> None:
    with answering(dsn) if "search" in command else contextlib.nullcontext():
        result = CliRunner().invoke(
            pgembed, command.split(), env={"PGEMBED_DSN": dsn}, catch_exceptions=False
        )
    assert "of others" not in result.output
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("posting")
def test_installing_and_uninstalling(connection: Connection) -> None:
    connection.execute("UPDATE pgembed.installation SET digest = ''")
    assert install(connection).changed
    uninstall(connection)
