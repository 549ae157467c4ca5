"""Keys of types that Python has no values for, or that are not equal to themselves."""

from __future__ import annotations

import datetime
import ipaddress

import numpy as np
import pytest

from pgembed.batch.execute import Options
from pgembed.batch.job import run_batch, run_join
from pgembed.batch.search import knn_join, search_batch
from pgembed.errors import PgembedError
from tests.harness.models import register_model
from tests.integration.search.support import Connection, adopt, unsafe

KEYS = {
    "timestamptz": ("infinity", "2020-01-01"),
    "date": ("20000-01-01", "2020-01-01"),
    "time": ("24:00", "12:00"),
}
CHUNKED = {
    "mood": ("c", "a", "b"),
    "float8": ("1", "NaN", "3"),
    "numeric": ("1", "NaN", "3"),
    "int": ("1", "2", "3"),
}
UNREAD = {
    "macaddr": "08:00:2b:01:02:03",
    "macaddr8": "08:00:2b:01:02:03:04:05",
    "money": "$1.00",
    "bit(3)": "101",
    "varbit": "11",
    "pg_lsn": "0/1",
    "xid8": "7",
    "tsvector": "'a'",
    "mood": "a",
    "moods": "a",
    "few_moods": "a",
}


def create(connection: Connection, kind: str) -> str:
    """Create a table whose first key column has values that Python cannot hold."""
    connection.execute(
        unsafe(f"CREATE TABLE t (a {kind}, b int, v vector(2), PRIMARY KEY (a, b))")
    )
    for number, value in enumerate(KEYS[kind]):
        connection.execute(
            unsafe(f"INSERT INTO t VALUES ('{value}', 1, '[1,{number}]')")
        )
    return adopt(connection, "t")


@pytest.mark.parametrize("kind", sorted(KEYS))
@pytest.mark.parametrize("few_by_sql", [False, True])
def test_keys_that_python_cannot_hold_are_written(
    connection: Connection, kind: str, few_by_sql: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgembed.batch.singly.is_cheaper", lambda *_, **__: few_by_sql)
    embedding = create(connection, kind)
    connection.execute("CREATE TABLE q AS SELECT 1 AS id, '[1,0]'::vector AS embedding")
    options = Options(1.0, 64 << 20, 1)
    rows, report = run_batch(connection, embedding, "q", "r", options=options)
    assert rows == 2
    assert (report.strategy == "one by one") == few_by_sql
    first, second = KEYS[kind]
    found = connection.execute(
        unsafe(
            f"SELECT a = '{first}'::{kind}, a = '{second}'::{kind} FROM r ORDER BY rank"
        )
    ).fetchall()
    assert found == [(True, False), (False, True)]
    rows, _ = run_join(connection, embedding, "j", options=options)
    assert rows == 2
    own = connection.execute("SELECT count(*) FROM j WHERE a = related_a")
    assert own.fetchone() == (0,)
    message = r"a key of public.t \(a, b\) has no value in Python.*pgembed batch"
    with pytest.raises(PgembedError, match=message):
        search_batch(connection, embedding, np.ones((1, 2)))
    with pytest.raises(PgembedError, match=message):
        knn_join(connection, embedding)
    assert connection.info.transaction_status.name == "IDLE"


@pytest.mark.parametrize("kind", sorted(CHUNKED))
def test_no_row_with_chunks_is_related_to_itself(
    connection: Connection, kind: str
) -> None:
    register_model(connection, "tiny", dimensions=2)
    connection.execute("CREATE TYPE mood AS ENUM ('c', 'b', 'a')")
    connection.execute(unsafe(f"CREATE TABLE t (id {kind} PRIMARY KEY, body text)"))
    values = CHUNKED[kind]
    for value in values:
        connection.execute(unsafe(f"INSERT INTO t VALUES ('{value}', 'x')"))
    connection.execute(
        "SELECT pgembed.create_embedding('t', 'body', 'tiny', chunk_tokens => 8)"
    )
    for number, value in enumerate(values):
        for chunk in range(2):
            connection.execute(
                unsafe(
                    f"INSERT INTO t_body_chunk VALUES ('{value}', {chunk}, 'x', "
                    f"'[{number}, {chunk + 1}]')"
                )
            )
    found = knn_join(connection, "t_body", k=5)
    keys = [str(key) for key in found.keys.tolist()]
    assert sorted(key.removesuffix(".0").lower() for key in keys) == sorted(
        value.lower() for value in values
    )
    for number, key in enumerate(keys):
        related = {str(other) for other, _ in found.related[number]}
        assert related == set(keys) - {key}
    connection.execute("ALTER TABLE t ADD v vector(2)")
    connection.execute("UPDATE t SET v = '[1,1]'")
    found = knn_join(connection, "t_body", asking=adopt(connection, "t"), k=5)
    for number, key in enumerate(found.keys.tolist()):
        related = {str(other) for other, _ in found.related[number]}
        assert related == set(keys) - {str(key)}
    run_join(connection, "t_body", "r", k=5, options=Options(1.0, 64 << 20, 1))
    pairs = connection.execute("SELECT id::text, related_id::text FROM r").fetchall()
    assert set(pairs) == {(a, b) for a in values for b in values if a != b}


def first_key(connection: Connection, kind: str, value: str) -> object:
    """Return what a batch gives for a row whose key is *value*."""
    connection.execute("CREATE TYPE mood AS ENUM ('c', 'b', 'a')")
    connection.execute("CREATE DOMAIN moods AS mood")
    connection.execute("CREATE DOMAIN few_moods AS moods NOT NULL")
    connection.execute("CREATE DOMAIN words AS text")
    connection.execute(unsafe(f"CREATE TABLE t (id {kind} PRIMARY KEY, v vector(2))"))
    connection.execute(unsafe(f"INSERT INTO t VALUES (%s::{kind}, '[1,1]')"), [value])
    found = search_batch(connection, adopt(connection, "t"), np.ones((1, 2)))
    return found.keys[0, 0]


@pytest.mark.parametrize("kind", sorted(UNREAD))
def test_keys_that_psycopg_does_not_know_are_text(
    connection: Connection, kind: str
) -> None:
    connection.execute("SET lc_monetary = 'C'")
    assert first_key(connection, kind, UNREAD[kind]) == UNREAD[kind]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("date", datetime.date(2020, 1, 2)),
        ("words", "word"),
        ("cidr", ipaddress.IPv4Network("10.0.0.0/8")),
        ("int[]", [1, 2]),
    ],
)
def test_keys_that_psycopg_knows_are_values(
    connection: Connection, kind: str, value: object
) -> None:
    text = "{1,2}" if isinstance(value, list) else str(value)
    assert first_key(connection, kind, text) == value


def test_keys_of_those_who_ask_are_text_as_elsewhere(connection: Connection) -> None:
    connection.execute("CREATE TYPE mood AS ENUM ('c', 'b', 'a')")
    connection.execute("CREATE TABLE t (id mood PRIMARY KEY, v vector(2))")
    connection.execute("INSERT INTO t VALUES ('a', '[1,0]'), ('c', '[0,1]')")
    found = knn_join(connection, adopt(connection, "t"), k=1)
    answers = {found.keys[i]: found.related[i][0][0] for i in range(2)}
    assert answers == {"a": "c", "c": "a"}
