"""pgembed as an extension, for tests: its files, its catalog, a table with vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgembed.postgres import extension, vectors
from pgembed.postgres.connection import connect
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import SqlWorker, value
from tests.integration.worker.running import wait_until

Connection = psycopg.Connection[Any]

# What a user can see of the schema; object ids and row versions differ.
CATALOG = """
    SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid),
        obj_description(p.oid, 'pg_proc'), p.proacl::text
    FROM pg_proc AS p
    WHERE p.pronamespace = 'pgembed'::regnamespace AND p.prokind IN ('f', 'p')
    UNION ALL
    SELECT 'relation', c.oid::regclass::text,
        concat_ws(' ', c.relkind, c.relpersistence,
            CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END),
        obj_description(c.oid, 'pg_class'), c.relacl::text
    FROM pg_class AS c WHERE c.relnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'column', format('%s.%s', c.oid::regclass, a.attname), concat_ws(' ',
            a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
            a.attstorage, pg_get_expr(d.adbin, d.adrelid)),
        col_description(c.oid, a.attnum), a.attacl::text
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
    WHERE c.relnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'constraint', format('%s.%s', r.conrelid::regclass, r.conname),
        pg_get_constraintdef(r.oid), NULL, NULL
    FROM pg_constraint AS r WHERE r.connamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid),
        NULL, NULL
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'type', t.oid::regtype::text, t.typtype::text,
        obj_description(t.oid, 'pg_type'), t.typacl::text
    FROM pg_type AS t WHERE t.typnamespace = 'pgembed'::regnamespace
    UNION ALL
    SELECT 'schema', n.nspname, NULL,
        obj_description(n.oid, 'pg_namespace'), n.nspacl::text
    FROM pg_namespace AS n WHERE n.nspname = 'pgembed'
    UNION ALL
    SELECT 'record', i.version, v.version_num,
        array_to_string(i.objects, E'\\n'), i.digest
    FROM pgembed.installation AS i, pgembed.alembic_version AS v
    ORDER BY 1, 2, 3
"""


def catalog(connection: Connection) -> list[tuple[Any, ...]]:
    connection.execute("SET search_path = pg_catalog")
    rows = connection.execute(CATALOG.encode()).fetchall()
    connection.execute("RESET search_path")
    # The installer quotes every schema, the server only those that need it.
    return [
        tuple(
            v.replace('"public".', "public.") if isinstance(v, str) else v for v in row
        )
        for row in rows
    ]


class Files:
    """The folder in which the server finds the extension's files."""

    def __init__(self, server: Databases) -> None:
        with connect(server.dsn()) as connection:
            self.major = connection.info.server_version // 10000
        self.is_private = self.major >= 18
        if self.is_private:
            self.share = server.socket_dir.parent / "share"
            (self.share / "extension").mkdir(parents=True, exist_ok=True)
            self.share.chmod(0o755)
        else:
            self.share = Path(f"/usr/share/postgresql/{self.major}")

    @property
    def server(self) -> extension.Server:
        """Return what extension.write() asks for."""
        return extension.Server(self.major, self.share / "extension")

    @property
    def is_usable(self) -> bool:
        """Whether files can be put there, and taken away again."""
        folder = self.share / "extension"
        return os.access(folder, os.W_OK) and not list(folder.glob("pgembed*"))

    def clear(self) -> None:
        """Remove them all."""
        for path in (self.share / "extension").glob("pgembed*"):
            path.unlink()

    def pg_config(self, folder: Path) -> str:
        """Return a program that describes the server."""
        program = folder / "pg_config"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --sharedir ] && echo {self.share} '
            f"|| echo PostgreSQL {self.major}\n"
        )
        program.chmod(0o755)
        return str(program)


def extension_files(server: Databases) -> Iterator[Files]:
    """Yield an empty folder where the server finds extensions; it is emptied again."""
    files = Files(server)
    if not files.is_usable:
        pytest.skip(f"{files.share} cannot be written to, or holds pgembed already")
    if files.is_private:
        _set_path(server, f"{files.share}:$system")
    try:
        yield files
    finally:
        files.clear()
        if files.is_private:
            _set_path(server, "$system")


def _set_path(server: Databases, path: str) -> None:
    """Let all new sessions look for extensions there."""
    with connect(server.dsn()) as connection:
        connection.execute(
            f"ALTER SYSTEM SET extension_control_path = '{path}'".encode()
        )
        connection.execute("SELECT pg_reload_conf()")
    # The server reads it when it gets to it.
    wait_until(lambda: _path_of_new_sessions(server) == path)


def _path_of_new_sessions(server: Databases) -> object:
    with connect(server.dsn()) as connection:
        return value(connection, "SHOW extension_control_path")


def declare_docs(connection: Connection) -> SqlWorker:
    """Create table docs with five rows and an embedding; return what embeds them."""
    vectors.register(connection)
    register_model(connection)
    connection.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text);"
        "INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(1, 5) AS i"
    )
    connection.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    return SqlWorker(connection)
