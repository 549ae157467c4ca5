"""Search over chunks: a row is as near as its nearest chunk, and found once."""

from __future__ import annotations

import numpy as np
import pytest

from tests.harness.models import register_model
from tests.integration.search.support import (
    Connection,
    Matrix,
    explain,
    search,
    unsafe,
    vector_text,
)

ROWS, CHUNKS, WIDTH = 120, 5, 8


@pytest.fixture
def chunks(connection: Connection) -> Matrix:
    """A table with a composite key and its chunks; their vectors (rows, chunks, d)."""
    register_model(connection, dimensions=WIDTH, distance="l2")
    connection.execute(
        'CREATE TABLE docs (lang text, "No." int, body text, year int, '
        'PRIMARY KEY (lang, "No."))'
    )
    connection.execute(
        "INSERT INTO docs "
        "SELECT CASE i %% 2 WHEN 0 THEN 'de' ELSE 'en' END, i, 'x', i %% 10 "
        "FROM generate_series(0, %s - 1) i",
        (ROWS,),
    )
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8)"
    )
    vectors = np.random.default_rng(0).standard_normal((ROWS, CHUNKS, WIDTH))
    connection.cursor().executemany(
        "INSERT INTO docs_body_chunk VALUES (%s, %s, %s, 'x', %s::text::vector)",
        [
            (("de", "en")[i % 2], i, c, vector_text(vectors[i, c]))
            for i in range(ROWS)
            for c in range(CHUNKS)
        ],
    )
    connection.execute("ANALYZE docs; ANALYZE docs_body_chunk")
    return vectors.astype(np.float32)


def nearest(vectors: Matrix, query: Matrix, rows: list[int]) -> list[tuple[int, float]]:
    """Return (row, distance of its nearest chunk), nearest first."""
    best = np.linalg.norm(vectors - query, axis=2).min(axis=1)
    return sorted(((i, float(best[i])) for i in rows), key=lambda pair: pair[1])


@pytest.mark.parametrize("mode", ["exact", "index"])
def test_a_row_is_as_near_as_its_nearest_chunk(
    connection: Connection, chunks: Matrix, mode: str
) -> None:
    connection.execute(
        "CREATE INDEX ON docs_body_chunk USING hnsw (embedding vector_l2_ops)"
    )
    query = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)
    for where, rows in [
        (None, list(range(ROWS))),
        (
            {"year": {"lt": 5}, "lang": "de"},
            [i for i in range(0, ROWS, 2) if i % 10 < 5],
        ),
        ({"No.": [3, 4, 5]}, [3, 4, 5]),
    ]:
        found = search(
            connection,
            "docs",
            query,
            key='"No."',
            k=10,
            mode=mode,
            filter=where,
            predicate="body = 'x'",
        )
        expected = nearest(chunks, query, rows)[:10]
        assert [i for i, _ in found] == [i for i, _ in expected]
        np.testing.assert_allclose(
            [d for _, d in found], [d for _, d in expected], rtol=1e-5
        )


def test_many_chunks_of_one_row_do_not_hide_the_others(
    connection: Connection, chunks: Matrix
) -> None:
    connection.execute(
        "CREATE INDEX ON docs_body_chunk USING hnsw (embedding vector_l2_ops)"
    )
    query = np.zeros(WIDTH, dtype=np.float32)
    connection.execute(
        unsafe(
            "INSERT INTO docs_body_chunk "
            "SELECT 'de', 0, 100 + i, 'x', %s::text::vector "
            "FROM generate_series(1, 500) i"
        ),
        (vector_text(query),),
    )
    report = explain(connection, "docs", query, k=10, mode="index")
    assert report["rows"] == 10
    assert report["fallback"] is True
    found = search(connection, "docs", query, key='"No."', k=10, mode="index")
    assert [i for i, _ in found] == [0] + [
        i for i, _ in nearest(chunks, query, list(range(1, ROWS)))[:9]
    ]


def test_rows_without_chunks_are_not_returned(
    connection: Connection, chunks: Matrix
) -> None:
    connection.execute('DELETE FROM docs_body_chunk WHERE "No." <> 3')
    found = search(connection, "docs", np.zeros(WIDTH), key='"No."')
    assert [i for i, _ in found] == [3]
