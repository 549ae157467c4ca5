"""What anybody may do, and whose search_path functions use."""

from __future__ import annotations

import re

from pgembed.postgres.resources import resource_dir
from tests.harness.sql_worker import Connection, rows
from tests.integration.embeddings.support import declare, documents


def declare_all(db: Connection) -> None:
    documents(db)
    declare(db, "docs", "body", on_change="clear")
    declare(db, "docs", "title", chunk_tokens=8)


def test_definer_functions_pin_their_search_path(scratch: Connection) -> None:
    declare_all(scratch)
    found = rows(
        scratch,
        "SELECT oid::regprocedure::text, proconfig FROM pg_proc "
        "WHERE pronamespace = 'pgembed'::regnamespace AND prosecdef",
    )
    assert sum("_capture_" in name for name, _ in found) == 10
    for name, settings in found:
        assert "search_path=pg_catalog, pg_temp" in (settings or []), name


def test_plpgsql_functions_pin_their_search_path(scratch: Connection) -> None:
    # But for those of the search, which run what the caller wrote as the caller would.
    declare_all(scratch)
    kept = {
        name
        for path in resource_dir("sql").glob("[1-5]*.sql")
        for name in re.findall(r"FUNCTION pgembed\.(\w+)\(", path.read_text())
    }
    found = rows(
        scratch,
        "SELECT p.proname FROM pg_proc AS p "
        "JOIN pg_language AS l ON l.oid = p.prolang "
        "WHERE pronamespace = 'pgembed'::regnamespace AND l.lanname = 'plpgsql' "
        "AND NOT coalesce(p.proconfig::text, '') LIKE '%search_path=%pg_temp%'",
    )
    assert kept & {name for (name,) in found} == set()


def test_nothing_is_granted_to_public(scratch: Connection) -> None:
    declare_all(scratch)
    found = rows(
        scratch,
        """
        SELECT 'routine', p.oid::regprocedure::text
        FROM pg_proc AS p,
            aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
        WHERE p.pronamespace = 'pgembed'::regnamespace AND a.grantee = 0
        UNION ALL
        SELECT 'relation', c.oid::regclass::text
        FROM pg_class AS c, aclexplode(c.relacl) AS a
        WHERE c.relnamespace = 'pgembed'::regnamespace AND a.grantee = 0
        UNION ALL
        SELECT 'schema', n.nspname::text
        FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
        WHERE n.nspname = 'pgembed' AND a.grantee = 0
        """,
    )
    assert found == []


def test_everything_has_a_comment(scratch: Connection) -> None:
    declare_all(scratch)
    found = rows(
        scratch,
        """
        SELECT p.oid::regprocedure::text FROM pg_proc AS p
        WHERE p.pronamespace = 'pgembed'::regnamespace
          AND obj_description(p.oid, 'pg_proc') IS NULL
        UNION ALL
        SELECT c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind IN ('r', 'v')
          AND obj_description(c.oid, 'pg_class') IS NULL
        """,
    )
    # Alembic makes its own.
    assert found in ([], [("pgembed.alembic_version",)])
