"""The example: three migrations, articles that are embedded, a page that finds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, update
from sqlalchemy.orm import Session

from pgembed.models.session import Model
from pgembed.postgres.connection import connect
from pgembed.sqlalchemy import search
from tests.examples.articles.app import application
from tests.examples.articles.models import Article, Author
from tests.harness import tiny_models
from tests.integration.sqlalchemy.conftest import url
from tests.integration.sqlalchemy.support import catalog
from tests.integration.worker.running import add_tiny, answering, embed_all

TEXTS = ["a red cat sleeps", "the blue dog eats", "the man eats food", "a man sleeps"]


@pytest.fixture
def model(dsn: str, tmp_path: Path) -> Model:
    """Return the model minilm: here a tiny one."""
    with connect(dsn, purpose="test") as connection:
        folder = tiny_models.good_model(tmp_path / "tiny")
        return add_tiny(connection, folder, "minilm")


@pytest.fixture
def config(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return the example's Alembic."""
    monkeypatch.setenv("PGEMBED_EXAMPLE_URL", url(dsn))
    return Config(Path(__file__).parent / "articles" / "alembic.ini")


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    """Return an engine for the example's database."""
    made = create_engine(url(dsn))
    yield made
    made.dispose()


def get(engine: Engine, query: str) -> Any:
    """Return what the page answers."""
    status: list[str] = []
    body = application(engine)(
        {"QUERY_STRING": query}, lambda line, headers: status.append(line)
    )
    assert status == ["200 OK"]
    return json.loads(b"".join(body))


@pytest.mark.usefixtures("model")
def test_the_example(dsn: str, config: Config, engine: Engine) -> None:
    """From the first migration to the page, and a text that changes."""
    command.upgrade(config, "head")
    command.check(config)
    with Session(engine) as session:
        author = Author(name="Ada")
        for number, text in enumerate(TEXTS):
            session.add(
                Article(title=text, body=text, year=2019 + number, author=author)
            )
        session.commit()
    embed_all(dsn)
    with answering(dsn):
        found = get(engine, "q=a+red+cat+sleeps:+a+red+cat+sleeps")
        assert found[0]["title"] == TEXTS[0]
        assert found[0]["author"] == "Ada"
        since = get(engine, "q=a+red+cat+sleeps&since=2021")
        assert sorted(each["year"] for each in since) == [2021, 2022]
        with Session(engine) as session:
            session.execute(
                update(Article).where(Article.year == 2022).values(title=TEXTS[0])
            )
            session.commit()
            embed_all(dsn)
            again = search(Article.embedding, f"{TEXTS[0]}: {TEXTS[3]}", k=1)
            assert session.execute(again).one().distance < 1e-5
            passages = search(Article.passages, TEXTS[1], k=1)
            (article,) = session.scalars(passages)
            assert article.title == TEXTS[1]
            assert [piece.content for piece in article.passages] == [TEXTS[1]]


@pytest.mark.usefixtures("model")
def test_the_migrations_go_back(config: Config, engine: Engine) -> None:
    """Each to the catalog before it."""
    command.stamp(config, "base")
    before = []
    for revision in ("0001", "0002", "0003"):
        with engine.connect() as connection:
            before.append(catalog(connection))
        command.upgrade(config, revision)
    for _ in range(3):
        command.downgrade(config, "-1")
        with engine.connect() as connection:
            assert catalog(connection) == before.pop()
