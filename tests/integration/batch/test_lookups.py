"""Many equalities on one column, looked up together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pgembed.batch.passing import Conditions
from pgembed.batch.search import search_batch
from pgembed.batch.source import describe
from pgembed.batch.workload import Condition
from pgembed.errors import FilterError
from pgembed.postgres.connection import fetch_all
from tests.conftest import Connect
from tests.harness.roles import ordinary_role
from tests.integration.embeddings.support import create_blind_collation
from tests.integration.search.support import Connection, adopt, unsafe

KINDS: dict[str, tuple[str, list[Any]]] = {
    "int4": ("int", [0, 1, 2, 3, -4]),
    "int8": ("bigint", [0, 1, 2, 3, 2**40]),
    "numeric": ("numeric", ["1", "1.0", "1.00", "0.5", "2"]),
    "float8": ("float8", [0.5, 1, 1.0, 2, 3]),
    "text": ("text", ["a", "A", "a ", "'", "ä", ""]),
    "C": ('text COLLATE "C"', ["a", "A", "b", "c"]),
    "varchar": ("varchar(9)", ["a", "A", "b", "c"]),
    "char": ("char(3)", ["a", "a ", "b", "c"]),
    "uuid": ("uuid", [f"{n:08x}-{0:04x}-0000-0000-{0:012x}" for n in range(4)]),
    "date": ("date", ["2020-01-01", "20200101", "2020-01-02", "2020-01-03"]),
    "bool": ("bool", [True, False, "on", "off"]),
}


def create(connection: Connection, kind: str, values: list[Any]) -> str:
    """Create a table whose rows have these values, and NULL, each several times."""
    connection.execute(
        unsafe(f'CREATE TABLE t (id serial PRIMARY KEY, "a b" {kind}, v vector(2))')
    )
    with connection.cursor() as cursor:
        for value in [*values, None] * 3:
            given = value if value is None else str(value)
            cursor.execute(
                unsafe(f"INSERT INTO t (\"a b\", v) VALUES (%s::{kind}, '[1,2]')"),
                [given],
            )
    return adopt(connection, "t")


def filters_of(values: list[Any]) -> list[str]:
    """Return a filter for each value; numerics as numbers, digit for digit."""
    as_is = [
        v if kind_of_number(v) else json.dumps(v, ensure_ascii=False) for v in values
    ]
    return [f'{{"a b": {value}}}' for value in as_is]


def kind_of_number(value: Any) -> bool:
    """Whether a text is a number."""
    return isinstance(value, str) and value.replace(".", "", 1).isdigit()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_rows_are_those_of_each_equality(connection: Connection, name: str) -> None:
    kind, values = KINDS[name]
    embedding = create(connection, kind, values)
    filters = filters_of(values)
    source = describe(connection, embedding)
    given = [Condition(text) for text in dict.fromkeys(filters)]
    (part,) = Conditions(connection, source, given).rounds(100, 1 << 29)
    assert part.packing.joins().count("LEFT JOIN") == 1
    found = search_batch(
        connection, embedding, np.ones((len(values), 2)), filters=filters, k=100
    )
    for number, value in enumerate(values):
        expected = fetch_all(
            connection,
            unsafe(f'SELECT id FROM t WHERE "a b" = %s::{kind.split()[0]} ORDER BY id'),
            [str(value)],
        )
        assert [(key,) for key, _ in found[number]] == expected, value
        assert expected


@pytest.mark.parametrize("kind", ["xid", "cid"])
def test_values_without_an_order_are_compared_singly(
    connection: Connection, kind: str
) -> None:
    embedding = create(connection, kind, [1, 2, 3, 4, 5])
    filters = [{"a b": str(i)} for i in range(1, 6)]
    found = search_batch(
        connection,
        embedding,
        np.ones((5, 2)),
        filters=filters,
        k=9,
        few_by_sql=False,
    )
    for number in range(5):
        keys = [key for key, _ in found[number]]
        assert keys == [number + 1, number + 7, number + 13]


@pytest.mark.parametrize("count", [5, 70, 200])
def test_more_than_a_word_holds(connection: Connection, count: int) -> None:
    connection.execute(
        "CREATE TABLE t AS SELECT i AS id, i %% %s AS a, i %% 7 AS b, "
        "'[1,2]'::vector AS v FROM generate_series(1, 2000) AS i",
        [count],
    )
    connection.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
    embedding = adopt(connection, "t")
    filters: list[dict[str, Any]] = [{"a": i % count, "b": i % 7} for i in range(250)]
    filters += [{"a": i % count, "id": {"lt": 1000}} for i in range(250)]
    filters += [{"a": count + 1}, {"a": 1}]
    found = search_batch(
        connection, embedding, np.ones((len(filters), 2)), filters=filters, k=2000
    )
    rows = [(i, i % count, i % 7) for i in range(1, 2001)]
    for number, asked in enumerate(filters):
        expected = [
            i
            for i, a, b in rows
            if a == asked["a"]
            and b == asked.get("b", b)
            and ("id" not in asked or i < 1000)
        ]
        assert [key for key, _ in found[number]] == expected, asked


def test_two_values_at_once(connection: Connection) -> None:
    """The last of a name counts in JSON."""
    embedding = create(connection, "int", [1, 2, 3, 4])
    filters = [f'{{"a b": {i}}}' for i in range(1, 5)]
    both = '{"and": [{"a b": 1}, {"a b": 2}]}'
    found = search_batch(
        connection, embedding, np.ones((5, 2)), filters=[*filters, both], k=9
    )
    assert found.counts.tolist() == [3, 3, 3, 3, 0]


def test_a_value_of_no_sense_is_named(connection: Connection) -> None:
    embedding = create(connection, "int", [1, 2, 3, 4])
    filters: list[dict[str, Any]] = [{"a b": i} for i in range(8)]
    with pytest.raises(FilterError, match=r'\{"a b": "x"\}: .*"x" is no value'):
        search_batch(
            connection,
            embedding,
            np.ones((9, 2)),
            filters=[*filters, {"a b": "x"}],
        )


def test_a_column_that_the_caller_may_not_read(
    connection: Connection, dsn: str, connect: Connect
) -> None:
    """The error names a filter, however many there are."""
    embedding = create(connection, "int", [1, 2, 3, 4])
    with ordinary_role(dsn, may_create=False) as role:
        name = role.split("//")[1].split("@")[0]
        connection.execute(unsafe(f"GRANT SELECT (id, v) ON t TO {name}"))
        connection.execute(unsafe(f"SELECT pgembed.grant_search('{name}')"))
        connection.execute(unsafe(f"SELECT pgembed.grant_batch('{name}')"))
        for count in (8, 100):
            filters = [{"a b": i} for i in range(count)]
            with pytest.raises(FilterError, match=r'\{"a b": 0\}: permission denied'):
                search_batch(
                    connect(role), embedding, np.ones((count, 2)), filters=filters
                )
        connection.execute(unsafe(f"SELECT pgembed.revoke_all('{name}')"))


def test_an_index_is_left_alone_for_many(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE t AS SELECT i AS id, i % 5000 AS a, '[1,2]'::vector AS v "
        "FROM generate_series(1, 50000) AS i"
    )
    connection.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
    connection.execute("CREATE INDEX ON t (a)")
    connection.execute("ANALYZE t")
    source = describe(connection, adopt(connection, "t"))
    for count, together in ((1, 0), (500, 500)):
        given = [Condition(f'{{"a": {i}}}') for i in range(count)]
        (part,) = Conditions(connection, source, given).rounds(50000, 1 << 29)
        assert len(part.shared) == together


def test_words_that_differ_only_elsewhere(connection: Connection) -> None:
    """A collation decides what is equal: then each value is compared by itself."""
    create_blind_collation(connection)
    values = ["a", "A", "b", "B"]
    embedding = create(connection, "text COLLATE blind", values)
    source = describe(connection, embedding)
    given = [Condition(text) for text in filters_of(values)]
    (part,) = Conditions(connection, source, given).rounds(100, 1 << 29)
    assert not part.packing.joins()
    found = search_batch(
        connection, embedding, np.ones((4, 2)), filters=filters_of(values), k=9
    )
    assert found.counts.tolist() == [6, 6, 6, 6]
