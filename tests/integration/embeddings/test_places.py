"""Quoted names, other schemas, pgvector elsewhere, a hostile search_path."""

from __future__ import annotations

import psycopg
import pytest

from pgembed.postgres.connection import connect
from pgembed.postgres.schema import install
from tests.harness.models import register_model
from tests.harness.sql_worker import Connection, SqlWorker, assert_converged, rows
from tests.integration.embeddings.support import declare

ODD = 'Odd "name" % its $body$ {0}'


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("chunk_tokens", [None, 8])
@pytest.mark.parametrize("on_change", ["keep", "clear"])
def test_odd_names_everywhere(
    scratch: Connection,
    scratch_worker: SqlWorker,
    chunk_tokens: int | None,
    on_change: str,
) -> None:
    odd = quoted(ODD)
    table = f"{odd}.{odd}"
    rows(scratch, f"CREATE SCHEMA {odd}")
    rows(scratch, f"CREATE TABLE {table} ({odd} int PRIMARY KEY, body text)")
    name = declare(
        scratch, table, "body", name=ODD, chunk_tokens=chunk_tokens, on_change=on_change
    )
    rows(scratch, f"INSERT INTO {table} VALUES (1, 'x'), (2, 'y')")
    scratch_worker.drain()
    rows(scratch, f"UPDATE {table} SET body = 'z' WHERE body = 'x'")
    rows(scratch, f"UPDATE {table} SET {odd} = 3 WHERE body = 'y'")
    scratch_worker.drain()
    assert_converged(scratch, name)
    for statement in ("reconcile", "pause_embedding", "resume_embedding"):
        rows(scratch, f"SELECT pgembed.{statement}(%s)", name)
    rows(scratch, f"TRUNCATE {table}")
    assert_converged(scratch, name)
    rows(scratch, "SELECT pgembed.drop_embedding(%s, true)", name)


def test_pgvector_in_another_schema(empty_dsn: str) -> None:
    with connect(empty_dsn) as connection:
        connection.execute('CREATE SCHEMA "Ext ""e"" x"')
        connection.execute('CREATE EXTENSION vector SCHEMA "Ext ""e"" x"')
        install(connection)
        register_model(connection)
        connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        connection.execute("INSERT INTO docs VALUES (1, 'x y z'), (2, NULL)")
        worker = SqlWorker(connection)
        for storage in ("vector", "halfvec", "bit"):
            for chunk_tokens in (None, 8):
                name = declare(
                    connection,
                    "docs",
                    "body",
                    name=f"docs_{storage}_{chunk_tokens}",
                    target_column=None if chunk_tokens else storage,
                    storage=storage,
                    chunk_tokens=chunk_tokens,
                    on_change="clear",
                )
                connection.execute("UPDATE docs SET body = body || '!' WHERE id = 1")
                worker.drain()
                assert_converged(connection, name)
                for _, statement in rows(
                    connection,
                    "SELECT s.* FROM pgembed.embedding AS e, "
                    "pgembed._index_statements(e.id) AS s WHERE e.name = %s",
                    name,
                ):
                    connection.execute(statement)
        # A column of the right type is recognised.
        connection.execute('ALTER TABLE docs ADD COLUMN v "Ext ""e"" x".vector(3)')
        declare(connection, "docs", "body", name="again", target_column="v")
        worker.drain()
        assert_converged(connection, "again")


HOSTILE = """
    CREATE SCHEMA evil;
    CREATE TABLE evil.touched (what text);
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'evil.now'; END $$;
    CREATE FUNCTION evil.concat(VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'evil.concat'; END $$;
    CREATE FUNCTION evil.evil_eq(int, int) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'evil.='; END $$;
    CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.evil_eq);
    CREATE FUNCTION evil.evil_cat(text, text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'evil.||'; END $$;
    CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.evil_cat);
    CREATE TYPE evil.vector AS (x int);
    CREATE TABLE evil.pg_class (oid oid, relname name);
    CREATE TABLE evil.pg_trigger (oid oid);
"""


def test_hostile_search_path(db: Connection, worker: SqlWorker) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    db.execute(HOSTILE)
    db.execute("SET search_path = evil, pg_temp, pg_catalog, public")
    db.execute("CREATE TEMP TABLE pg_attribute (attname text)")
    # The oracle and the worker's own statements speak plain SQL: from a clean session.
    names = [
        declare(db, "public.docs", "{title}: {body}", on_change="clear"),
        declare(db, "public.docs", "body", chunk_tokens=8, on_change="clear"),
    ]
    rows(db, "INSERT INTO public.docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    worker.drain()
    rows(db, "UPDATE public.docs SET body = 'e', id = 3 WHERE body = 'b'")
    rows(db, "UPDATE public.docs SET body = 'f' WHERE body = 'd'")
    rows(db, "DELETE FROM public.docs WHERE body = 'nothing'")
    worker.drain()
    for name in names:
        rows(db, "SELECT pgembed.reconcile(%s)", name)
    rows(db, "SELECT * FROM pgembed.embedding_status")
    rows(db, "SELECT s.* FROM pgembed._index_statements(1) AS s")
    rows(db, "RESET search_path")
    for name in names:
        assert_converged(db, name)
    rows(db, "SET search_path = evil, pg_temp, pg_catalog, public")
    for name in names:
        rows(db, "SELECT pgembed.drop_embedding(%s, true)", name)


def test_writer_without_any_privilege_on_the_schema(
    db: Connection, worker: SqlWorker, role_dsn: str
) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    role = psycopg.conninfo.conninfo_to_dict(role_dsn)["user"]
    db.execute(f"GRANT ALL ON docs TO {role}".encode())
    names = [
        declare(db, "docs", "body", on_change="clear"),
        declare(db, "docs", "body", name="cut", chunk_tokens=8, on_change="clear"),
    ]
    with connect(role_dsn) as writer:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            writer.execute("SELECT * FROM pgembed.embedding")
        writer.execute("INSERT INTO docs VALUES (1, 'x'), (2, 'y'), (3, 'z')")
        worker.drain()
        writer.execute("UPDATE docs SET body = 'v' WHERE id = 1")
        writer.execute("UPDATE docs SET id = 4 WHERE id = 2")
        writer.execute("DELETE FROM docs WHERE id = 3")
        worker.drain()
        for name in names:
            assert_converged(db, name)
        writer.execute("TRUNCATE docs")
    for name in names:
        assert_converged(db, name)
