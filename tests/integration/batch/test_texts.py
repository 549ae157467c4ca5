"""Queries that are texts: embedded first, outside of the batch's transaction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pgembed.batch.execute import Options
from pgembed.batch.job import run_batch
from pgembed.models import registry
from tests.harness.tiny_models import DIMENSIONS, good_model
from tests.integration.batch.oracle import nearest
from tests.integration.search.support import Connection, adopt, create_items, unsafe

TEXTS = ["the cat", "a dog", "the cat", "ships at sea"]


def test_texts_and_vectors_in_one_table(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEMBED_CACHE_DIR", str(tmp_path / "models"))
    registry.add_model(connection, "tiny", str(good_model(tmp_path / "tiny")))
    random = np.random.default_rng(0)
    vectors = random.standard_normal((200, DIMENSIONS)).astype(np.float32)
    create_items(connection, "items", vectors)
    name = adopt(connection, "items", model="tiny")
    connection.execute(
        unsafe(
            "CREATE TABLE queries (id int, content text, "
            f"embedding vector({DIMENSIONS}))"
        )
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO queries VALUES (%s, %s, NULL)", list(enumerate(TEXTS))
        )
    connection.execute("INSERT INTO queries VALUES (7, 'ignored', %s)", [vectors[3]])
    connection.execute("INSERT INTO queries VALUES (8, NULL, NULL)")
    options = Options(recall=1.0, memory=64 << 20, threads=2)
    rows, _ = run_batch(connection, name, "queries", "results", k=4, options=options)
    assert rows == 4 * 5
    model = registry.load(connection, "tiny")
    queries = dict(enumerate(model.embed(TEXTS, "query"))) | {7: vectors[3]}
    for number, query in queries.items():
        found = connection.execute(
            "SELECT id FROM results WHERE query_id = %s ORDER BY rank", [number]
        ).fetchall()
        expected = nearest(connection, "items", query, k=4)
        assert [row[0] for row in found] == [key for key, _ in expected]
