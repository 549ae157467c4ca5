"""A database with one of everything, which no bad input may change."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest

from pgembed.postgres.connection import connect, fetch_all, fetch_one
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import Connection

TABLES = """
    CREATE TABLE docs (
        id int PRIMARY KEY, body text, price int, tags text[], meta jsonb, born date);
    INSERT INTO docs VALUES
        (1, 'a cat', 5, '{a}', '{"a": 1}', '2020-01-01'),
        (2, 'the dog', 7, '{b}', '{}', NULL);
    CREATE TABLE items (id int PRIMARY KEY, v vector(3), price int, name text);
    INSERT INTO items VALUES
        (1, '[1,0,0]', 5, 'x'), (2, '[0,1,0]', 7, 'y'), (3, '[0,0,1]', 9, 'z');
    CREATE TABLE bits (id int PRIMARY KEY, v bit(3));
    CREATE TABLE keyless (body text);
    CREATE TABLE loose (id int PRIMARY KEY, v vector, w int);
    CREATE TABLE plain (id int PRIMARY KEY, body text, body_embedding text);
    CREATE TABLE queries (id int, embedding vector(3));
    INSERT INTO queries VALUES (1, '[1,0,0]');
    CREATE TABLE nonsense (x int);
    CREATE VIEW seen AS SELECT * FROM docs;
    CREATE SEQUENCE counter;
    CREATE INDEX docs_price ON docs (price);
    SELECT pgembed.create_embedding('docs', 'body', 'tiny', index => 'none');
    SELECT pgembed.adopt_vectors('items', 'v');
    SELECT pgembed.adopt_vectors('bits', 'v');
"""
_CATALOG = """
    SELECT 'relation', oid, relname::text FROM pg_class WHERE relnamespace >= 2200
    UNION ALL SELECT 'column', attrelid, attname::text FROM pg_attribute
    WHERE attrelid >= 16384
    UNION ALL SELECT 'routine', oid, proname::text FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'trigger', oid, tgname::text FROM pg_trigger
    UNION ALL SELECT 'schema', oid, nspname::text FROM pg_namespace
    ORDER BY 1, 2, 3
"""
# A statement that reads every row of every table.
_READ_ALL = """
    SELECT string_agg(
        format('SELECT %L, t::text FROM %s AS t', c.oid::regclass, c.oid::regclass),
        ' UNION ALL ' ORDER BY c.oid) || ' ORDER BY 1, 2'
    FROM pg_class AS c
    WHERE c.relkind = 'r'
        AND c.relnamespace::regnamespace::text IN ('public', 'pgembed')
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Connections to the same database: usable, closed, and in a transaction."""

    dsn: str
    open: Connection
    closed: Connection
    busy: Connection
    before: object

    def everything(self) -> object:
        """Return all that the database holds."""
        return everything(self.open)


def everything(connection: Connection) -> object:
    """Return all that a database holds."""
    statement = fetch_one(connection, _READ_ALL)[0]
    return fetch_all(connection, statement), fetch_all(connection, _CATALOG)


@pytest.fixture(scope="module")
def _stage(server: Databases) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(server.database(server.installed_template()))
        dsn = server.dsn(name)
        connection = stack.enter_context(connect(dsn))
        for model, dimensions in (("tiny", 3), ("wide", 16000), ("idle", 3)):
            register_model(connection, model, dimensions=dimensions)
        connection.execute(TABLES)
        closed = connect(dsn)
        closed.close()
        busy = stack.enter_context(connect(dsn, autocommit=False))
        busy.execute("SELECT 1")
        yield Stage(dsn, connection, closed, busy, everything(connection))


@pytest.fixture
def stage(_stage: Stage) -> Iterator[Stage]:
    """Return the connections; afterwards nothing may have changed."""
    yield _stage
    assert _stage.everything() == _stage.before
