"""Keys of every type, and of several columns."""

from __future__ import annotations

import pytest

from tests.harness.sql_worker import Connection, SqlWorker, assert_converged, rows
from tests.integration.embeddings.support import create_blind_collation, declare

SETUP = """
    CREATE EXTENSION citext;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN code AS text COLLATE "C" CHECK (VALUE <> '');
    CREATE TYPE pair AS (a int, b text);
"""
KEYS: dict[str, list[str | None]] = {
    "int": ["1", "2", "3"],
    "smallint": ["1", "-2", "3"],
    "bigint": ["1", "9223372036854775807", "3"],
    "uuid": [f"00000000-0000-0000-0000-00000000000{i}" for i in range(3)],
    "text": ["", 'it\'s "odd" \\ %s', "é"],
    "text COLLATE blind": ["a", "B", "ç"],
    'text COLLATE "POSIX"': ["a", "B", "c"],
    "citext": ["a", "B", "c"],
    "varchar(9)": ["a", "b", "c "],
    "timestamptz": ["infinity", "2020-01-01 00:00:00.000001+00", "2021-01-01"],
    "bytea": ["\\x", "\\x00ff", "\\x01"],
    "numeric": ["1.0", "NaN", "-1e30"],
    "mood": ["sad", "ok", "happy"],
    "positive": ["1", "2", "3"],
    "code": ["a", "b", "c"],
    "int[]": ["{}", "{1,2}", "{NULL}"],
    "char(5)": ["a", "b", "c"],
    "pair": ["(1,x)", "(2,)", '(3,"y, z")'],
    "int4range": ["[1,2)", "empty", "(,)"],
    "inet": ["10.0.0.1", "::1", "10.0.0.0/8"],
    "bit(4)": ["0000", "0101", "1111"],
    "boolean": ["t", "f", None],
    "float8": ["0.1", "NaN", "-Infinity"],
}


@pytest.mark.parametrize("chunk_tokens", [None, 8])
@pytest.mark.parametrize("key", KEYS)
def test_key_types(
    scratch: Connection, scratch_worker: SqlWorker, key: str, chunk_tokens: int | None
) -> None:
    scratch.execute(SETUP)
    if "blind" in key:
        create_blind_collation(scratch)
    scratch.execute(f"CREATE TABLE docs (id {key} PRIMARY KEY, body text)".encode())
    first, second, third = KEYS[key]
    given = f"%s::{key.partition(' COLLATE')[0]}"
    rows(scratch, "INSERT INTO docs VALUES (%s, 'before it was declared')", first)
    declare(scratch, "docs", "body", chunk_tokens=chunk_tokens)
    scratch_worker.drain()
    rows(scratch, "INSERT INTO docs VALUES (%s, 'after that')", second)
    rows(scratch, f"UPDATE docs SET body = 'changed a bit' WHERE id = {given}", first)
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    if third is not None:
        rows(scratch, f"UPDATE docs SET id = {given} WHERE id = {given}", third, first)
        scratch_worker.drain()
        assert_converged(scratch, "docs_body")
    rows(scratch, f"DELETE FROM docs WHERE id = {given}", second)
    assert_converged(scratch, "docs_body")


@pytest.mark.parametrize("chunk_tokens", [None, 8])
@pytest.mark.parametrize(
    "columns",
    [
        ["a", "b"],
        ['"Tenant Id"', "slot", "vector"],
        ["deleted", "chunks", "e", "j", "n"],
        ["c", "s", "t", "r", "o"],
        ["lease", "version", "job", "tid", '"new"', '"old"'],
        ["it's", '"%s"', '"$1"', '"@"', '"e@mail"'],
    ],
    ids=" ".join,
)
def test_composite_keys_of_any_name(
    scratch: Connection,
    scratch_worker: SqlWorker,
    columns: list[str],
    chunk_tokens: int | None,
) -> None:
    quoted = ['"' + column.strip('"') + '"' for column in columns]
    definitions = ", ".join(f"{column} int" for column in quoted)
    listed = ", ".join(reversed(quoted))
    scratch.execute(
        f"CREATE TABLE docs ({definitions}, body text, PRIMARY KEY ({listed}))".encode()
    )
    declare(scratch, "docs", "body", chunk_tokens=chunk_tokens, on_change="clear")
    zeros = ", ".join("0" for _ in columns)
    ones = ", ".join("1" for _ in columns)
    scratch.execute(f"INSERT INTO docs VALUES ({zeros}, 'x'), ({ones}, 'y')".encode())
    scratch_worker.drain()
    scratch.execute(f"UPDATE docs SET {quoted[0]} = 2 WHERE body = 'y'".encode())
    scratch.execute("UPDATE docs SET body = 'z' WHERE body = 'x'")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    scratch.execute("DELETE FROM docs WHERE body = 'y'")
    assert_converged(scratch, "docs_body")


def test_identity_and_included_columns(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    scratch.execute(
        "CREATE TABLE docs (body text, id bigint GENERATED ALWAYS AS IDENTITY, "
        "PRIMARY KEY (id) INCLUDE (body))"
    )
    declare(scratch, "docs", "body")
    scratch.execute("INSERT INTO docs (body) VALUES ('x'), ('y')")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def test_key_that_changes_only_for_the_eye(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    scratch.execute(SETUP)
    scratch.execute("CREATE TABLE docs (id citext PRIMARY KEY, body text)")
    declare(scratch, "docs", "body")
    scratch.execute("INSERT INTO docs VALUES ('a', 'x')")
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET id = 'A', body = 'y'")
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET body = 'z'")
    scratch_worker.drain()
    (vectors,) = rows(scratch, "SELECT count(*) FROM docs WHERE body_embedding IS NULL")
    assert vectors == (0,)
    scratch.execute("DELETE FROM docs")
    assert_converged(scratch, "docs_body")
