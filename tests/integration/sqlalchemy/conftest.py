"""Engines for pgembed databases, and one with articles in it."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, insert
from sqlalchemy.orm import Session

from pgembed.postgres.connection import connect
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import DIMENSIONS
from tests.integration.sqlalchemy.models import Article, Author, Base, State, Tag

ROWS = 300


def url(dsn: str) -> str:
    """Return a DSN as SQLAlchemy writes it."""
    return dsn.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    """Return an engine for a new database with pgembed and model tiny."""
    with connect(dsn, purpose="test") as connection:
        register_model(connection)
    made = create_engine(url(dsn))
    yield made
    made.dispose()


@pytest.fixture(scope="module")
def articles_dsn(server: Databases) -> Iterator[str]:
    """Return the DSN of a database with 300 articles that have vectors."""
    with server.database(server.installed_template()) as name:
        dsn = server.dsn(name)
        with connect(dsn, purpose="test") as connection:
            register_model(connection)
        made = create_engine(url(dsn))
        Base.metadata.create_all(made)
        with Session(made) as session:
            fill(session)
            session.commit()
        made.dispose()
        yield dsn


@pytest.fixture(scope="module")
def articles(articles_dsn: str) -> Iterator[Engine]:
    """Return an engine for that database."""
    made = create_engine(url(articles_dsn))
    yield made
    made.dispose()


@pytest.fixture
def session(articles: Engine) -> Iterator[Session]:
    """Return a session with articles; what it changes is rolled back."""
    with Session(articles) as made:
        yield made


def fill(session: Session) -> None:
    """Insert authors, articles and tags: the same ones every time."""
    draw = random.Random(7)
    authors = [
        {"id": i, "name": f"author {i % 7} %s", "country": [None, "de", "fr"][i % 3]}
        for i in range(1, 21)
    ]
    session.execute(insert(Author), authors)
    session.execute(insert(Article), [_article(i, draw) for i in range(1, ROWS + 1)])
    tags = [
        {"article_id": i, "word": word}
        for i in range(1, ROWS + 1)
        for word in draw.sample(["red", "green", "blue", "it's"], draw.randint(0, 3))
    ]
    session.execute(insert(Tag), tags)


def _article(number: int, draw: random.Random) -> dict[str, object]:
    start = datetime.datetime(2020, 1, 1)
    return {
        "id": number,
        "title": draw.choice(["50% off", "back\\slash", "it's", "plain", "ünï"]),
        "body": f"body {number}",
        "year": draw.randint(1990, 2026),
        "price": f"{draw.randint(0, 10_000) / 100:.2f}",
        "state": draw.choice(list(State)),
        "labels": draw.sample(["a", "b", "c,d", 'e"f'], draw.randint(0, 3)),
        "written": start + datetime.timedelta(seconds=draw.randint(0, 10**8)),
        "author_id": draw.choice([None, *range(1, 21)]),
        "parent_id": draw.randint(1, number - 1) if number % 3 == 0 else None,
        "body_embedding": None
        if number % 29 == 0
        else [draw.gauss(0, 1) for _ in range(DIMENSIONS)],
    }
