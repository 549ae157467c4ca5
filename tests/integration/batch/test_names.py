"""Names that need quotes, everywhere that names go."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pgembed.batch.execute import Options
from pgembed.batch.job import run_batch
from pgembed.batch.layout import build_layout
from pgembed.batch.search import search_batch
from tests.integration.search.support import Connection

TABLE = '"it\'s a ""schema"""."My %s Table"'


def test_names_in_quotes(connection: Connection, tmp_path: Path) -> None:
    for statement in (
        'CREATE SCHEMA "it\'s a ""schema"""',
        f'CREATE TABLE {TABLE} ("the ""Key" int, "select" text, '
        '"a""n" int, "V x" vector(3), PRIMARY KEY ("select", "the ""Key"))',
        f"INSERT INTO {TABLE} SELECT i, 't' || i % 3, i % 5, "
        "ARRAY[i % 7, 1, i % 11]::vector FROM generate_series(1, 300) AS i",
        "CREATE TABLE queries AS SELECT 1 AS id, '[1,2,3]'::vector AS embedding, "
        """'{"a\\"n": 2}'::jsonb AS filter""",
    ):
        connection.execute(statement.encode())
    row = connection.execute(
        "SELECT pgembed.adopt_vectors(%s::text::regclass, 'V x')", [TABLE]
    ).fetchone()
    assert row is not None
    name = row[0]
    build_layout(connection, name, root=tmp_path)
    expected = connection.execute(
        (
            f'SELECT "select", "the ""Key" FROM {TABLE} WHERE "a""n" = 2 '
            "ORDER BY \"V x\" <=> '[1,2,3]', 1, 2 LIMIT 10"
        ).encode()
    ).fetchall()
    for few_by_sql in (True, False):
        for layout in (True, False):
            result = search_batch(
                connection,
                name,
                np.array([[1, 2, 3]], np.float32),
                filters={'a"n': 2},
                predicates='"V x" IS NOT NULL AND "select" LIKE \'t%\'',
                recall=1.0,
                layout=layout,
                layouts=tmp_path,
                few_by_sql=few_by_sql,
            )
            assert result.keys[0].tolist() == expected
    options = Options(1.0, 64 << 20, 1, layouts=tmp_path)
    rows, _ = run_batch(connection, name, "queries", '"The ""Results"', options=options)
    found = connection.execute(
        'SELECT "select", "the ""Key" FROM "The ""Results" ORDER BY rank'
    ).fetchall()
    assert (rows, found) == (10, expected)
