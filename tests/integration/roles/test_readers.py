"""Who looks at the views of pgembed runs no code of those who own tables."""

from __future__ import annotations

import pytest

from tests.conftest import Connect
from tests.harness.models import register_model
from tests.harness.sql_worker import Connection, rows, value
from tests.integration.embeddings.support import status
from tests.integration.roles.conftest import Roles, execute

# Runs as whoever calls it, and would do whatever that role may.
TRAP = """
    CREATE TABLE olga.caught (who text);
    GRANT INSERT ON olga.caught TO PUBLIC;
    GRANT USAGE ON SCHEMA olga TO PUBLIC;
    CREATE TYPE olga.evil AS ENUM ('a');
    CREATE TYPE olga.pair AS (e olga.evil, n int);
    CREATE DOMAIN olga.number AS int;
    CREATE FUNCTION olga.spring() RETURNS void LANGUAGE sql AS
        'INSERT INTO olga.caught VALUES (current_user)';
    CREATE FUNCTION olga.as_json(v olga.evil) RETURNS json LANGUAGE sql AS
        'SELECT olga.spring(); SELECT to_json(0)';
    CREATE FUNCTION olga.as_json(v olga.pair) RETURNS json LANGUAGE sql AS
        'SELECT olga.spring(); SELECT to_json(0)';
    CREATE TYPE olga.sly AS ENUM ('a');
    CREATE FUNCTION olga.as_integer(v olga.sly) RETURNS int LANGUAGE sql AS
        'SELECT olga.spring(); SELECT 0';
    CREATE FUNCTION olga.as_policy() RETURNS boolean LANGUAGE sql AS
        'SELECT olga.spring(); SELECT true';
    CREATE CAST (olga.evil AS json) WITH FUNCTION olga.as_json(olga.evil);
    CREATE CAST (olga.pair AS json) WITH FUNCTION olga.as_json(olga.pair);
    CREATE CAST (olga.sly AS int) WITH FUNCTION olga.as_integer(olga.sly) AS IMPLICIT;
"""


@pytest.fixture
def trap(olga: Connection, connection: Connection) -> Connection:
    register_model(connection)
    olga.execute(TRAP)
    return olga


def caught(connection: Connection) -> list[str]:
    """Return the roles, other than the owner's, that ran the owner's code."""
    found = rows(connection, "SELECT DISTINCT who FROM olga.caught WHERE who <> 'olga'")
    return [who for (who,) in found]


def test_failures_run_no_casts_of_their_keys(
    trap: Connection, connection: Connection
) -> None:
    trap.execute(
        "CREATE TABLE docs (e evil, b pair, l evil[], n number, at date, "
        "body text, PRIMARY KEY (n, e, b, l, at))"
    )
    trap.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    trap.execute(
        "INSERT INTO docs VALUES "
        "('a', ROW('a', 1)::pair, ARRAY['a']::evil[], 5, '2020-01-01', 'x')"
    )
    (embedding,) = rows(connection, "SELECT id FROM pgembed.embedding")[0]
    execute(
        trap,
        "UPDATE pgembed.{} SET pgembed_available_at = NULL, pgembed_error = 'bad'",
        f"job_{embedding}",
    )
    key = {"e": "a", "b": "(a,1)", "l": "{a}", "n": 5, "at": "2020-01-01"}
    assert value(connection, "SELECT key FROM pgembed.failures") == key
    assert caught(connection) == []


@pytest.mark.parametrize("forced", ["", "FORCE"])
def test_the_status_runs_no_policies(
    roles: Roles,
    trap: Connection,
    connection: Connection,
    connect: Connect,
    forced: str,
) -> None:
    trap.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    trap.execute("INSERT INTO docs VALUES (1, 'x')")
    trap.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    trap.execute("CREATE POLICY p ON docs USING (olga.as_policy())")
    trap.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    trap.execute(f"ALTER TABLE docs {forced or 'NO FORCE'} ROW LEVEL SECURITY".encode())
    connection.execute("GRANT olga TO ursula; SELECT pgembed.grant_owner('ursula')")
    ursula = connect(roles.dsn("ursula"), purpose="test")
    walter = connect(roles.dsn("walter"), purpose="test")
    for reader in (ursula, walter):
        rows(reader, "SELECT * FROM pgembed._queue_depths()")
    found = status(ursula, "docs_body")
    assert found["rows"] == (None if forced else 1)
    assert ("row-level security" in found["state"]) is bool(forced)
    assert caught(connection) == []


def test_the_status_runs_no_casts_of_chunks(
    trap: Connection, connection: Connection
) -> None:
    trap.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    trap.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8)"
    )
    trap.execute("ALTER TABLE docs_body_chunk ALTER chunk TYPE sly USING 'a'")
    trap.execute(
        "INSERT INTO docs_body_chunk VALUES "
        "(1, 'a', 'x', array_fill(1, ARRAY[3])::public.vector)"
    )
    assert "not counted" in status(connection, "docs_body")["state"]
    assert caught(connection) == []


def test_the_status_reads_no_table_that_became_a_view(
    trap: Connection, connection: Connection
) -> None:
    if connection.info.server_version >= 160000:
        pytest.skip("a rule makes no view of a table any more")
    trap.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    trap.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    for (name,) in rows(
        trap,
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'docs'::regclass "
        "AND NOT tgisinternal",
    ):
        execute(trap, "DROP TRIGGER {} ON docs", name)
    trap.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey")
    trap.execute("ALTER TABLE docs ALTER id DROP NOT NULL")
    trap.execute("VACUUM docs")
    trap.execute(
        """CREATE RULE "_RETURN" AS ON SELECT TO docs DO INSTEAD
        SELECT 1 AS id, 'x'::text AS body, NULL::public.vector(3) AS body_embedding
        WHERE olga.as_policy()"""
    )
    assert "not counted" in status(connection, "docs_body")["state"]
    assert caught(connection) == []
