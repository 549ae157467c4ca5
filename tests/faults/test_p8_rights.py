"""P8: least privilege. What runs with more rights than its caller's is a short list."""

from __future__ import annotations

from pathlib import Path

import psycopg

from pgembed.postgres.connection import fetch_all
from tests.harness.sql_worker import Connection

EXPECTED = Path(__file__).with_name("privileges.txt")
PRIVILEGES = """
    SELECT 'SECURITY DEFINER ' || p.oid::regprocedure
    FROM pg_proc AS p
    WHERE p.pronamespace = 'pgembed'::regnamespace AND p.prosecdef
    UNION ALL
    SELECT format('%s TO %s ON %s', g.privilege_type,
        CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END, o.name)
    FROM (
        SELECT p.oid::regprocedure::text, p.proowner, p.proacl, 'f'::"char"
        FROM pg_proc AS p WHERE p.pronamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT c.oid::regclass::text, c.relowner, c.relacl,
            CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char"
        FROM pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind <> 'i'
        UNION ALL
        SELECT 'schema pgembed', n.nspowner, n.nspacl, 'n'::"char"
        FROM pg_namespace AS n WHERE n.nspname = 'pgembed'
    ) AS o (name, owner, acl, kind),
    aclexplode(coalesce(o.acl, acldefault(o.kind, o.owner))) AS g
    WHERE g.grantee <> o.owner
    ORDER BY 1
"""


def test_privileges_are_those_of_the_file(connection: Connection) -> None:
    """A function that comes to run as its owner, or a grant, has to be written down."""
    found = [line for (line,) in fetch_all(connection, PRIVILEGES)]
    expected = EXPECTED.read_text(encoding="utf-8").splitlines()
    assert found == [line for line in expected if not line.startswith("#")]


def test_a_role_without_grants_can_do_nothing(
    connection: Connection, role_dsn: str
) -> None:
    """Not even look: every name in the schema is refused."""
    names = """
        SELECT c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind IN ('r', 'v')
    """
    with psycopg.connect(role_dsn, autocommit=True) as stranger:
        for (name,) in fetch_all(connection, names):
            try:
                stranger.execute(f"SELECT * FROM {name} LIMIT 0".encode())
            except psycopg.errors.InsufficientPrivilege:
                continue
            raise AssertionError(f"{name} can be read")
