"""Batches on an embedding that no longer fits its table: the error says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pgembed
from pgembed.batch.layout import build_layout
from pgembed.errors import EmbeddingError
from tests.harness.models import register_model
from tests.integration.batch.posting import ended, post
from tests.integration.search.support import Connection, adopt, create_items, unsafe
from tests.integration.worker.running import answering

Batch = Callable[[Connection, str, Path], Any]
BATCHES: dict[str, Batch] = {
    "search": lambda c, name, root: pgembed.search_batch(
        c, name, [[1, 2, 3]], few_by_sql=False, layouts=root
    ),
    "few": lambda c, name, root: pgembed.search_batch(
        c, name, [[1, 2, 3]], layouts=root
    ),
    "join": lambda c, name, root: pgembed.knn_join(c, name, layouts=root),
    "asking": lambda c, name, root: pgembed.knn_join(
        c, "others_v", asking=name, layouts=root
    ),
    "layout": lambda c, name, root: build_layout(c, name, root=root),
}


@pytest.fixture
def items(connection: Connection) -> str:
    """Create tables items and others; return the name of the first's embedding."""
    for name in ("others", "items"):
        create_items(connection, name, np.eye(3, dtype=np.float32) + 1)
        adopt(connection, name)
    return "items_v"


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("RENAME v TO vectors", "column v of table"),
        ("RENAME id TO number", "column id of table"),
        ("DROP id", "column id of table"),
    ],
)
def test_columns_that_are_gone(
    connection: Connection,
    items: str,
    tmp_path: Path,
    change: str,
    reason: str,
    batch: str,
    laid_out: bool,
) -> None:
    if laid_out:
        build_layout(connection, items, root=tmp_path)
    connection.execute(unsafe(f"ALTER TABLE items {change}"))
    message = rf"'items_v' no longer fits its table: {reason} (.|\n)*Undo that"
    with pytest.raises(EmbeddingError, match=message):
        BATCHES[batch](connection, items, tmp_path)
    assert connection.info.transaction_status.name == "IDLE"


def test_a_key_that_is_no_primary_key_any_more(
    connection: Connection, items: str, tmp_path: Path
) -> None:
    """Batches do without, as searches do."""
    connection.execute("ALTER TABLE items DROP CONSTRAINT items_pkey")
    for batch in BATCHES.values():
        batch(connection, items, tmp_path)


def test_a_chunk_table_that_is_gone(connection: Connection, tmp_path: Path) -> None:
    register_model(connection)
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8)"
    )
    connection.execute("DROP TABLE docs_body_chunk")
    with pytest.raises(EmbeddingError, match="the chunk table docs_body_chunk was"):
        BATCHES["search"](connection, "docs_body", tmp_path)


def test_a_posted_batch(dsn: str, connection: Connection, items: str) -> None:
    connection.execute("ALTER TABLE items RENAME id TO number")
    with answering(dsn):
        row = ended(connection, post(connection, "knn_join('items_v', 'r')"))
    assert "column id of table" in row["error"]
