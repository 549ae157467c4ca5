"""What a declaration means, and query vectors as text."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from pgvector import HalfVector, Vector
from sqlalchemy import Column, Integer, MetaData, Table, Text, inspect
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
)

from pgembed.alembic.vector_indexes import _same_predicate
from pgembed.errors import EmbeddingError
from pgembed.sqlalchemy import Embedding
from pgembed.sqlalchemy.declaration import Declaration, template_columns
from pgembed.sqlalchemy.vectors import query_vector


def page() -> Table:
    """Return a table."""
    return Table(
        "page",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("body", Text),
    )


def test_what_is_usual_is_not_said() -> None:
    """Only what differs from the defaults of create_embedding is written."""
    usual = Declaration("body", "m").spec(page(), "body_embedding")
    assert usual.options() == {}
    template = Declaration("{id}: {body}", "m", index="none").spec(page(), "vector")
    assert template.name == "page_content"
    assert template.options() == {"target_column": "vector", "index": "none"}
    assert template.content_columns() == {"id", "body"}
    chunks = Declaration("body", "m", "{table}_parts", 8, 2).spec(page(), None)
    assert chunks.options() == {
        "name": "page_parts", "chunk_tokens": 8, "chunk_overlap": 2,
    }  # fmt: skip


def test_templates() -> None:
    """Doubled braces are braces."""
    assert template_columns("{a}: {{x}} {b c}") == ["a", "b c"]
    with pytest.raises(EmbeddingError, match=r"needs column b c, x, which table page"):
        Declaration("{body} {b c} {x}", "m").spec(page(), "v")


def test_options_that_contradict_each_other() -> None:
    """They are refused where they are written."""
    with pytest.raises(EmbeddingError, match="choose one of vector, halfvec, bit"):
        Embedding("body", model="m", storage="float")
    with pytest.raises(EmbeddingError, match="without chunk_tokens"):
        Embedding("body", model="m", chunk_overlap=3)
    with pytest.raises(EmbeddingError, match="leave target_column out"):
        Embedding("body", model="m", chunk_tokens=9, target_column="v")


class Base(DeclarativeBase):
    """The base of the model."""


class Paper(Base):
    """A model with chunks."""

    __tablename__ = "paper"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    parts = Embedding("body", model="m", chunk_tokens=8, name="paper_part")


def test_chunks_are_pickled() -> None:
    """Their class is found below the class of the rows, as it says."""
    Paper.registry.configure()
    part = inspect(Paper).relationships["parts"].mapper.class_
    assert part.__qualname__ == "Paper.PaperPartChunk"
    written = pickle.dumps(part(id=1, chunk=0, content="x"))
    chunk = pickle.loads(written)  # noqa: S301 - its own
    assert (type(chunk), chunk.id, chunk.content) == (part, 1, "x")


@pytest.mark.parametrize(
    "vector",
    [
        [1, 0.5, -2e-7],
        (1, 0.5, -2e-7),
        np.array([1, 0.5, -2e-7]),
        np.array([1, 0.5, -2e-7], np.float32),
        Vector([1, 0.5, -2e-7]),
    ],
)
def test_vectors_of_any_kind(vector: object) -> None:
    """Lists, arrays, pgvector's own."""
    assert str(query_vector(vector)) == "[1,0.5,-2.00000002e-07]"
    assert str(query_vector(HalfVector([1, 0.5]))) == "[1,0.5]"


def test_text_of_a_vector_is_exact() -> None:
    """float32 survives it."""
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    again = np.array(str(query_vector(values))[1:-1].split(","), np.float64)
    np.testing.assert_array_equal(again.astype(np.float32), values)


@pytest.mark.parametrize(
    ("written", "stored", "same"),
    [
        ("id > 5", "(id > 5)", True),
        ("id > 5", "(id < 5)", False),
        ("id > 5", "(id > 6)", False),
        ("item.state = 'a'", "((state)::text = 'a'::text)", True),
        ("state = 'a'", "((state)::text = 'b'::text)", False),
        ("id IN (1, 2)", "(id = ANY (ARRAY[1, 2]))", True),
        ("id IN (1, 3)", "(id = ANY (ARRAY[1, 2]))", False),
        ("id BETWEEN 1 AND 2", "((id >= 1) AND (id <= 2))", True),
        ("not deleted", "(NOT deleted)", True),
        ("state != 'a'", "((state)::text <> 'a'::text)", True),
        ("id > -5", "(id > '-5'::integer)", True),
        ("id > -5", "(id > 5)", False),
        ("id <> -1.5", "((id)::numeric <> '-1.5'::numeric)", True),
        (None, "(id > 5)", False),
        (None, None, True),
    ],
)
def test_predicates_as_postgresql_writes_them(
    written: str | None, stored: str | None, same: bool
) -> None:
    """What is the same is no difference."""
    assert _same_predicate(written, stored) == same
