"""Texts as queries: embedded by a worker, or in the application's own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed.models.session import Model
from pgembed.postgres.connection import connect
from pgembed.sqlalchemy import Embedding, hybrid_search, search, search_batch
from tests.integration.sqlalchemy.conftest import url
from tests.integration.worker.running import add_good, answering, embed_all

BODIES = ["a red cat sleeps", "the blue dog eats", "the man eats food", "a man sleeps"]


class Base(DeclarativeBase):
    """The base of the model."""


class Story(Base):
    """A table that a real worker embeds."""

    __tablename__ = "story"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    body_embedding = Embedding("body", model="tiny", index="none")


@pytest.fixture
def model(dsn: str, tmp_path: Path) -> Model:
    """Return a model that is registered in the database as tiny."""
    with connect(dsn, purpose="test") as connection:
        return add_good(connection, tmp_path)


@pytest.fixture
def stories(dsn: str, model: Model) -> Iterator[Engine]:
    """Return an engine for a database with stories that are embedded."""
    engine = create_engine(url(dsn))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Story(id=i, body=body) for i, body in enumerate(BODIES))
        session.commit()
    embed_all(dsn)
    yield engine
    engine.dispose()


def test_a_worker_embeds_the_text(stories: Engine, dsn: str, model: Model) -> None:
    """Or a model here: the rows are the same."""
    by_worker = search(Story.body_embedding, BODIES[2], k=3).where(Story.id > 0)
    by_model = search(Story.body_embedding, BODIES[2], k=3, embedder=model)
    with Session(stories) as session, answering(dsn):
        rows = session.execute(by_worker).all()
    assert rows[0].Story.id == 2
    assert rows[0].distance == pytest.approx(0, abs=1e-5)
    with Session(stories) as session:
        again = session.execute(by_model.where(Story.id > 0)).all()
        assert [row.Story.id for row in again] == [row.Story.id for row in rows]
        vector = model.embed([BODIES[1]], side="query")[0]
        function = search(Story.body_embedding, "x", embedder=lambda text: vector)
        assert session.scalars(function).first().id == 1  # type: ignore[union-attr]


def test_texts_of_a_batch(stories: Engine, dsn: str, model: Model) -> None:
    """A worker embeds each once, or a model here all at once; vectors may be there."""
    calls: list[int] = []

    class Counting:
        """A model that counts."""

        def embed(self, texts: Sequence[str], side: str = "document") -> Any:
            """Embed texts."""
            calls.append(len(texts))
            return model.embed(texts, side=side)

    vector = model.embed([BODIES[3]], side="query")[0]
    statements = [
        search(Story.body_embedding, query, k=2) for query in [*BODIES, *BODIES, vector]
    ]
    with Session(stories) as session, answering(dsn):
        by_worker = search_batch(session, statements)
    with Session(stories) as session:
        here = search_batch(session, statements, embedder=Counting())
        function = search_batch(session, statements[:1], embedder=lambda text: vector)
    for found in (by_worker, here):
        nearest = [rows[0].Story.id for rows in found]
        assert nearest == [0, 1, 2, 3, 0, 1, 2, 3, 3]
        assert [rows[0].distance for rows in found] == pytest.approx([0] * 9, abs=1e-5)
    assert calls == [4]
    assert function[0][0].Story.id == 3


def test_words_and_vectors(stories: Engine, model: Model) -> None:
    """hybrid_search, with criteria, best first."""
    statement = hybrid_search(
        Story.body_embedding, "red cat", k=2, embedder=model, language="english"
    )
    with Session(stories) as session:
        rows = session.execute(statement).all()
        assert rows[0].Story.id == 0
        assert rows[0].score > rows[1].score
        rest = session.execute(
            hybrid_search(
                Story.body_embedding,
                "dog",
                embedder=model,
                words="body",
                fusion="scores",
            ).where(Story.body.not_like("%cat%"), Story.id.in_([0, 1, 3]))
        ).all()
        assert [row.Story.id for row in rest] == [1, 3]


def test_errors_of_the_search_say_what_to_do(stories: Engine) -> None:
    """PostgreSQL's message and hint are in SQLAlchemy's error."""
    with Session(stories) as session:
        with pytest.raises(
            DBAPIError, match=r"(?s)3 dimensions.*has 8.*model that made"
        ):
            session.execute(search(Story.body_embedding, [1, 2, 3]))
        session.rollback()
        with pytest.raises(DBAPIError, match=r"(?s)no worker.*HINT"):
            session.execute(search(Story.body_embedding, "nobody answers"))
