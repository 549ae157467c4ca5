"""Each role, and each function and relation it may use: privileges.txt has all."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from pgembed.cli.errors import explain
from pgembed.postgres.connection import Connection, fetch_all
from tests.conftest import Connect
from tests.harness.models import register_model
from tests.harness.sql_worker import value
from tests.integration.roles.conftest import GROUPS, PEOPLE, Roles

EXPECTED = Path(__file__).with_name("privileges.txt")

# Internal functions run as their caller, so that the right to execute one gives nothing
# that tables withhold: they are left out, unless they run as their owner.
FOUND = """
    SELECT format('%s %s %s', g.grantee::regrole, g.privilege_type, o.name)
    FROM (
        SELECT p.oid::regprocedure::text, p.proowner, p.proacl
        FROM pg_proc AS p
        WHERE p.pronamespace = 'pgembed'::regnamespace
            AND (p.prosecdef OR NOT starts_with(p.proname, '_'))
        UNION ALL
        SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE '' END || c.oid::regclass,
            c.relowner, c.relacl
        FROM pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT format('%s (%s)', a.attrelid::regclass, a.attname), c.relowner, a.attacl
        FROM pg_attribute AS a INNER JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT 'schema pgembed', n.nspowner, n.nspacl
        FROM pg_namespace AS n WHERE n.nspname = 'pgembed'
    ) AS o (name, owner, acl),
    aclexplode(o.acl) AS g
    WHERE g.grantee <> o.owner
    ORDER BY 1
"""


def lines() -> list[str]:
    text = EXPECTED.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and line[0] != "#"]


def test_the_privileges_are_those_of_the_file(
    roles: Roles, connection: Connection
) -> None:
    found = [line for (line,) in fetch_all(connection, FOUND)]
    assert sorted(found) == sorted(lines())
    assert {line.split()[0] for line in found} == set(GROUPS)


def test_what_runs_as_its_owner_is_granted_knowingly(
    roles: Roles, connection: Connection
) -> None:
    internal = """
        SELECT p.oid::regprocedure::text FROM pg_proc AS p, aclexplode(p.proacl) AS a
        WHERE p.pronamespace = 'pgembed'::regnamespace AND p.prosecdef
            AND a.grantee <> p.proowner
    """
    listed = "\n".join(lines())
    for (name,) in fetch_all(connection, internal):
        assert f" {name}" in listed


@pytest.mark.parametrize("person", PEOPLE)
def test_a_member_reads_the_relations_of_its_role_and_no_others(
    roles: Roles, connection: Connection, connect: Connect, person: str
) -> None:
    session = connect(roles.dsn(person))
    names = """
        SELECT c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind IN ('r', 'v')
    """
    readable = set()
    for (name,) in fetch_all(connection, names):
        try:
            session.execute(f"SELECT * FROM {name}".encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
        readable.add(name)
    group = PEOPLE[person]
    listed = {
        line.split()[2] for line in lines() if line.startswith(f"{group} SELECT ")
    }
    assert readable == listed


@pytest.mark.parametrize("person", [*PEOPLE, "stranger"])
def test_a_member_calls_the_functions_of_its_role_and_no_others(
    roles: Roles, connection: Connection, connect: Connect, person: str
) -> None:
    session = connect(roles.dsn(person))
    functions = """
        SELECT p.oid::regprocedure::text, p.oid FROM pg_proc AS p
        WHERE p.pronamespace = 'pgembed'::regnamespace
            AND NOT starts_with(p.proname, '_')
    """
    group = PEOPLE.get(person, "nobody")
    listed = {
        line.split(maxsplit=2)[2]
        for line in lines()
        if line.startswith(f"{group} EXECUTE ")
    }
    for identity, number in fetch_all(connection, functions):
        # Not called: a strict function is not looked at when it is given a NULL.
        query = "SELECT has_function_privilege(%s::oid, 'EXECUTE')"
        assert value(session, query, number) == (identity in listed), identity


def test_searching_and_posting_lack_no_function(
    roles: Roles, connection: Connection
) -> None:
    """What a reader may call names no internal function that he may not."""
    missing = """
        SELECT caller.oid::regprocedure::text, callee.oid::regprocedure::text
        FROM pg_proc AS caller
        CROSS JOIN regexp_matches(
            coalesce(pg_get_function_sqlbody(caller.oid), caller.prosrc),
            'pgembed[.](_\\w+)[(]', 'g'
        ) AS m
        INNER JOIN pg_proc AS callee ON callee.proname = m[1]
        WHERE caller.pronamespace = 'pgembed'::regnamespace
            AND callee.pronamespace = 'pgembed'::regnamespace
            AND NOT caller.prosecdef
            AND has_function_privilege('pgembed_user', caller.oid, 'EXECUTE')
            AND NOT has_function_privilege('pgembed_user', callee.oid, 'EXECUTE')
    """
    assert fetch_all(connection, missing) == []


@pytest.mark.parametrize("content", ["body", "{title}: {body}"])
def test_a_reader_searches_by_words(
    roles: Roles, connection: Connection, connect: Connect, content: str
) -> None:
    register_model(connection)
    connection.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, title text, body text);"
        "INSERT INTO docs VALUES (1, 'a', 'red shoes'), (2, 'b', 'a green hat')"
    )
    connection.execute(
        "SELECT pgembed.create_embedding('docs', %s, 'tiny', 'docs_text', 'v')",
        [content],
    )
    connection.execute("GRANT SELECT ON docs TO ursula")
    found = """
        SELECT (item).id FROM pgembed.hybrid_search(
            NULL::docs, 'shoes', query_vector => '[1,0,0]')
    """
    assert value(connect(roles.dsn("ursula"), purpose="test"), found) == 1


def test_a_stranger_sees_nothing(roles: Roles, connect: Connect) -> None:
    session = connect(roles.dsn("stranger"))
    for query in ("pgembed.embed('tiny', 'x')", "pgembed._wake()", "pgembed.models"):
        with pytest.raises(
            psycopg.errors.InsufficientPrivilege, match="for schema pgembed"
        ):
            session.execute(f"SELECT * FROM {query}".encode())


def test_a_right_that_a_role_has_is_said_to_come_with_it(
    roles: Roles, connection: Connection, connect: Connect
) -> None:
    """And a right on a table of somebody's is not."""
    session = connect(roles.dsn("stranger"), purpose="test")
    connection.execute("CREATE TABLE docs (id int)")
    hints = {"TABLE docs": "Its owner may grant that."}
    roles_hint = "GRANT pgembed_user, pgembed_owner or pgembed_worker to the role"
    hints["TABLE pgembed.embedding"] = roles_hint  # the whole schema is withheld
    assert_explained(session, hints)
    connection.execute("GRANT USAGE ON SCHEMA pgembed TO stranger")
    relations = {line.split()[2] for line in lines() if " SELECT pgembed." in line}
    hints |= {f"TABLE {name}": roles_hint for name in relations}
    hints["SELECT pgembed.drop_model('tiny')"] = roles_hint
    hints["SELECT nextval('pgembed.lease_seq')"] = roles_hint
    hints["ALTER TABLE docs ADD COLUMN a int"] = ""
    assert_explained(session, hints)


def assert_explained(session: Connection, hints: dict[str, str]) -> None:
    for statement, hint in hints.items():
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            session.execute(statement.encode())
        primary, *others = explain(caught.value).splitlines()
        assert primary == caught.value.diag.message_primary
        assert " ".join(others)[: len(hint) or None] == hint, statement
