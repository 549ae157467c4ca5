"""Searches and batches by way of PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.pool import NullPool, QueuePool

from pgembed.sqlalchemy import search, search_batch
from tests.harness import pgbouncer
from tests.harness.server import Databases
from tests.integration.sqlalchemy.conftest import url
from tests.integration.sqlalchemy.models import Article
from tests.integration.sqlalchemy.test_batch import QUERIES, pairs, singly

# A session of the server may have prepared nothing of that name, or something else.
UNPREPARED = {"prepare_threshold": None}
CLIENTS = 5  # more than PgBouncer has sessions
ROUNDS = 8  # more than psycopg waits before it prepares a statement


@pytest.fixture(scope="module")
def pooled(
    articles_dsn: str, server: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Return the URL of the database with articles by way of PgBouncer."""
    program = pgbouncer.install()
    if program is None:
        pytest.skip("pgbouncer is not installed, and apt-get could not install it")
    folder: Path = tmp_path_factory.mktemp("pgbouncer")
    user = server.folder.stat().st_uid
    with pgbouncer.pgbouncer(program, articles_dsn, folder, user) as dsn:
        yield url(dsn)


def statements(start: int) -> list[Any]:
    """Return searches, which differ from round to round."""
    return [
        search(Article.body_embedding, query, k=6).where(Article.year > 1990 + start)
        for query in QUERIES[:4]
    ]


@pytest.fixture(scope="module")
def expected(articles: Engine) -> list[Any]:
    """Return what the searches of each round find without PgBouncer."""
    with Session(articles) as session:
        return [[singly(session, s) for s in statements(i)] for i in range(ROUNDS)]


@pytest.mark.parametrize("pool", [QueuePool, NullPool])
def test_sessions(pooled: str, expected: list[Any], pool: type[Any]) -> None:
    """More of them than the server has: each transaction may meet another session."""
    arguments: dict[str, Any] = {"pool_size": CLIENTS} if pool is QueuePool else {}
    engine = create_engine(
        pooled, poolclass=pool, pool_pre_ping=True, connect_args=UNPREPARED, **arguments
    )
    sessions = [Session(engine) for _ in range(CLIENTS)]
    for number, found in enumerate(expected):
        for session in sessions:
            asked = statements(number)
            assert [singly(session, s) for s in asked] == found
            # In the transaction that is open now, and then in one of its own.
            assert [pairs(rows) for rows in search_batch(session, asked)] == found
            session.rollback()
            assert [pairs(rows) for rows in search_batch(session, asked)] == found
            session.commit()
    for session in sessions:
        session.close()
    assert left_behind(engine) == []
    engine.dispose()


def test_async_sessions(pooled: str, expected: list[Any]) -> None:
    """All at once."""
    engine = create_async_engine(
        pooled, pool_size=CLIENTS, pool_pre_ping=True, connect_args=UNPREPARED
    )

    async def work() -> None:
        async with AsyncSession(engine) as session:
            for number, found in enumerate(expected):
                asked = [
                    s.options(selectinload(Article.tags)) for s in statements(number)
                ]
                rows = await search_batch(session, asked)
                assert [pairs(each) for each in rows] == found
                await session.rollback()
                for statement, one in zip(asked, found, strict=True):
                    assert pairs(await session.execute(statement)) == one
                await session.commit()

    async def run() -> None:
        await asyncio.gather(*(work() for _ in range(CLIENTS)))
        await engine.dispose()

    asyncio.run(run())


def left_behind(engine: Engine) -> list[Any]:
    """Return settings and prepared statements that other clients would inherit."""
    query = text(
        "SELECT name, setting FROM pg_settings WHERE source = 'session' "
        "AND setting <> reset_val "
        "UNION ALL SELECT name, statement FROM pg_prepared_statements"
    )
    connections = [engine.connect() for _ in range(3)]
    # Each keeps a session of the pool for itself until all have looked.
    found = [row for each in connections for row in each.execute(query).all()]
    for each in connections:
        each.close()
    return found
