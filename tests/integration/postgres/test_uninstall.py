"""Removing the schema: what goes, what stays, what is refused."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgembed.errors import InstallError
from pgembed.postgres.schema import install, uninstall
from tests.conftest import Connect

Connection = psycopg.Connection[Any]

REGISTER_MODEL = """
    INSERT INTO pgembed.model (name, hash, source, dimensions, distance, max_tokens,
        options)
    VALUES ('tiny', sha256('tiny'), 'test', 3, 'cosine', 16, '{}')
"""


@pytest.fixture
def embedded_table(connection: Connection) -> Connection:
    """Return a connection to a database with a kept embedding and a chunked one."""
    connection.execute(REGISTER_MODEL)
    connection.execute('CREATE TABLE "My Docs" (id int PRIMARY KEY, body text)')
    connection.execute("INSERT INTO \"My Docs\" VALUES (1, 'one')")
    connection.execute(
        "SELECT pgembed.create_embedding('\"My Docs\"', 'body', 'tiny', 'plain')"
    )
    connection.execute(
        "SELECT pgembed.create_embedding('\"My Docs\"', 'body', 'tiny', 'cut', "
        "chunk_tokens => 8)"
    )
    connection.execute(
        "UPDATE \"My Docs\" SET body_embedding = '[1,2,3]'::public.vector"
    )
    return connection


def relations(connection: Connection) -> set[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ).fetchall()
    return {row[0] for row in rows}


def test_tables_vectors_and_chunks_stay(embedded_table: Connection) -> None:
    before = relations(embedded_table)
    uninstall(embedded_table)
    row = embedded_table.execute("SELECT to_regnamespace('pgembed')").fetchone()
    assert row == (None,)
    assert relations(embedded_table) == before
    assert "cut_chunk" in before
    row = embedded_table.execute('SELECT body_embedding FROM "My Docs"').fetchone()
    assert row is not None
    assert row[0].tolist() == [1, 2, 3]
    embedded_table.execute("INSERT INTO \"My Docs\" VALUES (2, 'two')")


ADVISED = "pgembed_1_0123456789ab"
CALLING = (
    "docs (id) WHERE pgembed._json_as(pgembed._json_value(meta, '{n}'), 'number') > '5'"
)


def test_advised_indexes_that_call_into_the_schema_go(connection: Connection) -> None:
    """And no others: an index that the user thought of is named in the error."""
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, meta jsonb)")
    for name, definition in (
        (ADVISED, CALLING),
        ("pgembed_1_0123456789cd", "docs (id) WHERE id > 5"),
        ("mine", CALLING),
    ):
        connection.execute(f"CREATE INDEX {name} ON {definition}".encode())
    with pytest.raises(InstallError, match=r"public\.mine"):
        uninstall(connection)
    assert ADVISED in relations(connection)
    connection.execute("DROP INDEX mine")
    uninstall(connection)
    assert relations(connection) >= {"docs", "docs_pkey", "pgembed_1_0123456789cd"}
    assert ADVISED not in relations(connection)


def test_triggers_on_partitions_go(connection: Connection) -> None:
    connection.execute(REGISTER_MODEL)
    connection.execute(
        "CREATE TABLE parts (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)"
    )
    connection.execute(
        "CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (9)"
    )
    connection.execute("SELECT pgembed.create_embedding('parts', 'body', 'tiny')")
    uninstall(connection)
    row = connection.execute("SELECT count(*) FROM pg_trigger").fetchone()
    assert row == (0,)


def test_install_again_after_uninstall(connection: Connection) -> None:
    uninstall(connection)
    assert install(connection).previous_version is None


def test_nothing_to_remove(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    with pytest.raises(InstallError, match="no installation"):
        uninstall(connection)
    connection.execute("CREATE SCHEMA pgembed")
    with pytest.raises(InstallError, match="no installation"):
        uninstall(connection)


def test_dependent_view_is_named_and_nothing_removed(
    embedded_table: Connection,
) -> None:
    embedded_table.execute("CREATE VIEW mine AS SELECT name FROM pgembed.models")
    with pytest.raises(InstallError, match=r"public\.mine"):
        uninstall(embedded_table)
    embedded_table.execute("INSERT INTO \"My Docs\" VALUES (3, 'three')")
    row = embedded_table.execute("SELECT count(*) FROM mine").fetchone()
    assert row == (1,)


def test_objects_of_others_are_refused(
    connection: Connection, role_dsn: str, connect: Connect
) -> None:
    other = connect(role_dsn)
    role = other.info.user
    connection.execute(f'GRANT CREATE, USAGE ON SCHEMA pgembed TO "{role}"'.encode())
    other.execute("CREATE TABLE pgembed.theirs (id int)")
    with pytest.raises(InstallError, match=rf"pgembed\.theirs \(owner {role}\)"):
        uninstall(connection)
    other.close()
