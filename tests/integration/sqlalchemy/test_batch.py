"""A batch of searches answers as each of them does by itself."""

from __future__ import annotations

import asyncio
import datetime
import gc
import random
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import (
    Connection,
    Engine,
    Float,
    create_engine,
    event,
    func,
    inspect,
    literal,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    Session,
    aliased,
    contains_eager,
    joinedload,
    raiseload,
    scoped_session,
    selectinload,
    sessionmaker,
    with_loader_criteria,
)

from pgembed.errors import (
    EmbeddingError,
    FilterError,
    PgembedError,
    SettingError,
    VectorError,
)
from pgembed.sqlalchemy import hybrid_search, search, search_batch
from tests.integration.sqlalchemy.conftest import fill, url
from tests.integration.sqlalchemy.models import Article, Author, Base, Tag
from tests.integration.sqlalchemy.test_search import CRITERIA, QUERY, Change

draw = random.Random(3)
ENDLESS: dict[str, Any] = {"year": 1}
ENDLESS["and"] = [ENDLESS]
DEEP: dict[str, Any] = {}
for _ in range(100_000):
    DEEP = {"not": DEEP}
QUERIES = [[draw.gauss(0, 1) for _ in range(3)] for _ in range(12)]


def pairs(rows: Any) -> list[tuple[int, Any]]:
    """Return ids and distances, each row once."""
    return list({each.id: (each.id, far) for each, far in rows}.values())


def singly(session: Session, statement: Any) -> list[tuple[int, Any]]:
    """Return what a statement finds by itself, within what float32 tells apart."""
    found = pairs(session.execute(statement).unique())
    return [(number, pytest.approx(far, abs=1e-6)) for number, far in found]


@pytest.mark.parametrize("change", CRITERIA.values(), ids=CRITERIA)
def test_every_kind_of_criteria(session: Session, change: Change) -> None:
    """Whatever a search can say."""
    statements = [change(search(Article.body_embedding, q, k=7)) for q in QUERIES]
    found = search_batch(session, statements)
    assert [pairs(rows) for rows in found] == [singly(session, s) for s in statements]


def test_all_kinds_together(session: Session) -> None:
    """Shapes, values, k, limits and bounds, in one batch."""
    statements: list[Any] = []
    for number, change in enumerate(CRITERIA.values()):
        for query in QUERIES[:3]:
            statement = change(search(Article.body_embedding, query, k=number % 9 + 1))
            statements.append(statement.where(Article.id != number))
    for year in range(1990, 2026):
        plain = search(Article.body_embedding, QUERY, filter={"year": {"gt": year}})
        distance = plain.selected_columns.distance
        statements += [
            plain.limit(4).offset(2),
            plain.where(distance <= 0.8, Article.id > year - 1900),
            search(Article.body_embedding, QUERY, mode="exact").limit(year - 1989),
        ]
    draw.shuffle(statements)
    found = search_batch(session, statements)
    assert [pairs(rows) for rows in found] == [singly(session, s) for s in statements]
    assert search_batch(session, []) == []


def test_each_filter_is_evaluated_once(session: Session) -> None:
    """The embedding's name, the filters, the rows: as many statements, not searches."""
    seen: list[str] = []
    statements = [
        search(Article.body_embedding, q).where(Article.year > year)
        for q in QUERIES * 20
        for year in (2000, 2010)
    ]
    assert session.bind is not None
    listening = (session.bind, "before_cursor_execute", lambda *a: seen.append(a[2]))
    event.listen(*listening)
    try:
        search_batch(session, statements)
    finally:
        event.remove(*listening)
    assert len(seen) == 1 + 2 + 1


def test_rows_are_pairs_of_entity_and_distance(session: Session) -> None:
    """The very objects of the session, nearest first."""
    known = session.get(Article, 5)
    statements = [
        search(Article.body_embedding, QUERY, k=300),
        search(Article.body_embedding, QUERY, k=3).where(Article.id == 5),
    ]
    everything, (row,) = search_batch(session, statements)
    assert row.Article is known
    assert row.distance == row[1]
    assert row in everything
    assert [r.distance for r in everything] == sorted(r.distance for r in everything)
    article, distance = everything[0]
    assert "body_embedding" in inspect(article).unloaded
    assert distance < everything[-1].distance


@pytest.mark.parametrize("load", [joinedload, selectinload])
def test_loader_options(session: Session, load: Any) -> None:
    """Relationships come along, and nothing else is loaded later."""
    options = [load(Article.tags), load(Article.author), raiseload("*")]
    statements = [
        search(Article.body_embedding, q).where(Article.year > 2000).options(*options)
        for q in QUERIES
    ]
    for rows in search_batch(session, statements):
        assert len(rows) == 10
        for article, _ in rows:
            assert all(tag.article_id == article.id for tag in article.tags)
            assert article.author is None or article.author.id == article.author_id


@pytest.mark.parametrize("load", [joinedload, selectinload])
def test_loader_options_with_limit(session: Session, load: Any) -> None:
    """A collection that comes along multiplies no entities."""
    plain = search(Article.body_embedding, QUERY).options(load(Article.tags))
    statements = [plain.limit(3), plain.limit(4).offset(2), plain]
    for rows, statement in zip(
        search_batch(session, statements), statements, strict=True
    ):
        alone = session.execute(statement).unique().all()
        assert [article.id for article, _ in rows] == [a.id for a, _ in alone]


def test_loader_criteria_with_values(session: Session) -> None:
    """They decide which rows pass, by the values of each statement."""
    statements = [
        search(Article.body_embedding, q).options(
            with_loader_criteria(Article, Article.year > year)
        )
        for q in QUERIES[:3]
        for year in (1995, 2020)
    ]
    found = search_batch(session, statements)
    assert [pairs(rows) for rows in found] == [singly(session, s) for s in statements]


def test_events_of_the_session_take_part(articles: Engine) -> None:
    """A tenant's criteria, say, that the application adds to all statements."""
    maker = sessionmaker(articles)

    @event.listens_for(maker, "do_orm_execute")
    def restrict(state: Any) -> None:
        state.statement = state.statement.options(
            with_loader_criteria(Article, Article.year >= 2010)
        )

    statements = [search(Article.body_embedding, q, k=20) for q in QUERIES]
    with maker() as session:
        found = search_batch(session, statements)
        again = [singly(session, s) for s in statements]
    assert [pairs(rows) for rows in found] == again
    assert all(len(rows) == 20 for rows in found)


def test_an_event_that_answers_itself(articles: Engine) -> None:
    """Nothing is known then of what the statement would be."""
    with Session(articles) as session:
        event.listen(
            session,
            "do_orm_execute",
            lambda state: session.connection().execute(text("SELECT 1")),
        )
        with pytest.raises(PgembedError, match="execute it by itself"):
            search_batch(session, [search(Article.body_embedding, QUERY)])


def test_aliases(session: Session) -> None:
    """Of the entity, and of its table."""
    alias = aliased(Article, name="needs quotes %")
    statements = [
        search(alias.body_embedding, q).where(alias.author.has(Author.country == "de"))
        for q in QUERIES
    ]
    found = search_batch(session, statements)
    assert [pairs(rows) for rows in found] == [singly(session, s) for s in statements]
    assert isinstance(found[0][0][0], Article)


def test_core(articles: Engine) -> None:
    """A Connection returns the columns of the table, and the distance."""
    table: Any = Article.__table__
    alias = table.alias("x")
    statements = [
        search(table.c.body_embedding, QUERY).where(table.c.year > 2000),
        search(alias.c.body_embedding, QUERY, k=4).where(alias.c.year > 2010),
        search(Article.body_embedding, QUERY).where(Article.year > 2015),
    ]
    with articles.connect() as connection:
        found = search_batch(connection, statements)
        for rows, statement in zip(found, statements, strict=True):
            again = connection.execute(statement).all()
            assert [row.id for row in rows] == [row.id for row in again]
            assert [row.title for row in rows] == [row.title for row in again]
            assert rows[0].distance == pytest.approx(again[0].distance, abs=1e-6)
    with Session(articles) as session:
        same = search_batch(session, statements[:2])
    assert same == found[:2]


def test_scoped_sessions(articles: Engine) -> None:
    """The session behind the proxy."""
    registry = scoped_session(sessionmaker(articles))
    ((row,),) = search_batch(registry, [search(Article.body_embedding, QUERY, k=1)])
    assert row.Article in registry
    registry.remove()


def test_async_sessions(articles_dsn: str) -> None:
    """The event loop goes on while the batch runs."""
    statements = [
        search(Article.body_embedding, q)
        .where(Article.year > 2000)
        .options(selectinload(Article.tags))
        for q in QUERIES
    ]

    async def run() -> None:
        engine = create_async_engine(url(articles_dsn))
        async with AsyncSession(engine) as session:
            found = await search_batch(session, statements)
            assert all(article.tags is not None for r in found for article, _ in r)
            again = await session.run_sync(
                lambda blocking: [singly(blocking, s) for s in statements]
            )
            assert [pairs(rows) for rows in found] == again
            # And within the transaction that is open now.
            assert await search_batch(session, statements) == found
        async with engine.connect() as connection:
            rows = await search_batch(connection, statements)
            assert [row.id for row in rows[0]] == [number for number, _ in again[0]]
        await engine.dispose()

    asyncio.run(run())


def test_a_batch_that_is_cancelled(articles_dsn: str) -> None:
    """Its thread has ended before the connection goes back to the pool."""
    statements = [search(Article.body_embedding, q) for q in QUERIES]
    given_up: list[bool] = []

    async def run() -> None:
        engine = create_async_engine(url(articles_dsn), pool_size=1, max_overflow=0)
        loop = asyncio.get_running_loop()

        def progress(stage: str, share: float) -> None:
            loop.call_soon_threadsafe(task.cancel)
            # Time enough for the task to end, if it does not wait for this thread.
            turns = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.3), loop)
            turns.result()
            given_up.append(task.done())

        async def batch() -> None:
            async with AsyncSession(engine) as session:
                await search_batch(session, statements, progress=progress)

        task = asyncio.create_task(batch())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert given_up
        assert not any(given_up)
        async with AsyncSession(engine) as session:
            found = await search_batch(session, statements)
            assert [len(rows) for rows in found] == [10] * len(QUERIES)
        await engine.dispose()

    asyncio.run(run())


def test_a_batch_that_times_out(
    articles_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its statement is cancelled, and the connection serves again."""
    slow = search(Article.body_embedding, QUERY).where(text("pg_sleep(0.1) IS NULL"))

    async def run() -> None:
        engine = create_async_engine(url(articles_dsn), pool_size=1, max_overflow=0)
        async with AsyncSession(engine) as session:
            start = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(search_batch(session, [slow]), 1)
            assert time.monotonic() - start < 10
        async with AsyncSession(engine) as session:
            found = await search_batch(session, [search(Article.body_embedding, QUERY)])
            assert len(found[0]) == 10
        await engine.dispose()

    asyncio.run(run())
    gc.collect()
    assert not caplog.records


def test_pending_changes_are_flushed(session: Session) -> None:
    """And what the open transaction has done is seen, as by any statement."""
    statement = search(Article.body_embedding, QUERY, k=1)
    ((before,),) = search_batch(session, [statement])
    before.Article.body_embedding = None
    ((after,),) = search_batch(session, [statement])
    assert after.Article is not before.Article
    before.Article.body_embedding = QUERY
    with session.no_autoflush:
        assert search_batch(session, [statement]) == [[after]]
    ((again,),) = search_batch(session, [statement])
    assert again.Article is before.Article
    assert again.distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_isolation_levels(articles: Engine, isolation: Any) -> None:
    """Of the engine."""
    engine = articles.execution_options(isolation_level=isolation)
    statements = [search(Article.body_embedding, q) for q in QUERIES]
    with Session(engine) as session:
        first = search_batch(session, statements)
        assert search_batch(session, statements) == first
        assert [pairs(r) for r in first] == [singly(session, s) for s in statements]


def test_the_transaction_of_the_session_goes_on(session: Session) -> None:
    """It can write afterwards, and a savepoint can be undone."""
    statement = search(Article.body_embedding, QUERY, k=1)
    ((row,),) = search_batch(session, [statement])
    with session.begin_nested() as savepoint:
        row.Article.title = "changed"
        ((again,),) = search_batch(session, [statement])
        assert again.Article.title == "changed"
        savepoint.rollback()
    assert row.Article.title != "changed"
    with pytest.raises(FilterError, match=r"(?s)division.*zero"):
        search_batch(session, [statement.where(1 / func.length("") == Article.id)])
    assert search_batch(session, [statement])[0][0].Article is row.Article


@pytest.fixture
def mine(engine: Engine) -> Engine:
    """Return an engine for a database with articles that a test may change."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        fill(session)
        session.execute(text("DELETE FROM tag"))
        session.execute(text("UPDATE article SET parent_id = NULL"))
        session.commit()
    return engine


@pytest.fixture
def other(mine: Engine) -> Iterator[Connection]:
    """Return another connection to it, which commits at once."""
    engine = create_engine(mine.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


CHANGES = {
    "delete": "DELETE FROM article WHERE id = :id",
    "update": "UPDATE article SET year = 1 WHERE id = :id",
    "another vector": "UPDATE article SET body_embedding = '[-3,5,-9]' WHERE id = :id",
    "insert": """
        INSERT INTO article (id, title, body, year, price, state, labels, written,
            body_embedding)
        SELECT 1000 + id, title, body, year, price, state, labels, written,
            '[3,-5,9]' FROM article WHERE id = :id
    """,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("stage", ["reading", "comparing"])
def test_changes_by_others_while_it_runs(
    mine: Engine, other: Connection, change: str, stage: str
) -> None:
    """READ COMMITTED: all that was found is true of one moment."""
    statements = [
        search(Article.body_embedding, q).where(Article.year > 2)
        for q in [QUERY, *QUERIES]
    ]
    made: list[int] = []
    with Session(mine) as session:
        nearest = session.execute(statements[0]).first()
        assert nearest is not None
        number = nearest.Article.id

        def progress(current: str, share: float) -> None:
            if current == stage and not made:
                made.append(other.execute(text(change), {"id": number}).rowcount)

        found = search_batch(session, statements, progress=progress)
        assert made == [1]
        session.expire_all()
        again = [singly(session, s) for s in statements]
    assert [pairs(rows) for rows in found] == again
    assert found[0][0].Article.id != number


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("begun", [True, False])
def test_rows_that_do_not_stop_changing(
    mine: Engine, other: Connection, isolation: Any, begun: bool
) -> None:
    """A snapshot does not mind; without one there is an error that names it."""
    statement = search(Article.body_embedding, QUERY)

    def change(*_: Any) -> None:
        other.execute(text("UPDATE article SET year = year + 1"))

    with Session(mine.execution_options(isolation_level=isolation)) as session:
        expected = singly(session, statement)
        if not begun:
            session.commit()
        if begun and isolation == "READ COMMITTED":
            with pytest.raises(PgembedError, match="REPEATABLE READ"):
                search_batch(session, [statement], progress=change)
        else:
            (rows,) = search_batch(session, [statement], progress=change)
            assert pairs(rows) == expected
        assert singly(session, statement) == expected


def test_rows_that_go_before_they_are_loaded(mine: Engine, other: Connection) -> None:
    """They are left out, as they would be by a search that came later."""
    statement = search(Article.body_embedding, QUERY, k=3)
    with Session(mine) as session:
        nearest = [row.Article.id for row in session.execute(statement)]

        @event.listens_for(mine, "before_cursor_execute")
        def delete(*arguments: Any) -> None:
            if "unnest" in arguments[2]:
                other.execute(text(CHANGES["delete"]), {"id": nearest[1]})

        (rows,) = search_batch(session, [statement])
    assert [row.Article.id for row in rows] == [nearest[0], nearest[2]]


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (select(Article), "no search of its own"),
        ("SELECT", "not a SELECT"),
        (hybrid_search(Article.body_embedding, "x"), "hybrid_search"),
        (search(Article.body_embedding, QUERY).distinct(), "DISTINCT"),
        (search(Article.body_embedding, QUERY).group_by(Article.id), "GROUP BY"),
        (search(Article.body_embedding, QUERY).with_for_update(), "FOR UPDATE"),
        (search(Article.body_embedding, QUERY).fetch(3), "FETCH"),
        (search(Article.body_embedding, QUERY).order_by(None), "order of its own"),
        (
            search(Article.body_embedding, QUERY).order_by(None).order_by(Article.year),
            "order of its own",
        ),
        (
            search(Article.body_embedding, QUERY).with_only_columns(Article.id),
            "other columns",
        ),
        (
            search(Article.body_embedding, QUERY).add_columns(Article.id),
            "other columns",
        ),
        (search(Article.body_embedding, QUERY).join(Tag).limit(2), "LIMIT"),
        (
            search(
                Article.body_embedding,
                select(Article.body_embedding).limit(1).scalar_subquery(),
            ),
            "SQL expression",
        ),
        (
            search(Article.body_embedding, QUERY)
            .join(Article.author)
            .options(contains_eager(Article.author)),
            "contains_eager",
        ),
        (
            search(Article.body_embedding, QUERY)
            .join(search(Article.body_embedding, QUERY).subquery(), Article.id > 0)
            .order_by(Article.id)
            .limit(func.length("x")),
            "LIMIT|not a value",
        ),
    ],
)
def test_what_a_batch_cannot_answer(session: Session, statement: Any, why: str) -> None:
    """Is an error that says which statement, and why."""
    plain = search(Article.body_embedding, QUERY)
    with pytest.raises(FilterError, match=f"(?s)statement 1.*({why}).*by itself"):
        search_batch(session, [plain, statement])


def test_arguments_that_make_no_sense(session: Session) -> None:
    """The errors of a search, and of a batch."""
    plain = search(Article.body_embedding, QUERY)
    for wrong, error, why in (
        (search(Article.body_embedding, QUERY, mode="index"), SettingError, "mode"),
        (search(Article.body_embedding, QUERY, k=0), SettingError, "k is 0"),
        (search(Article.body_embedding, QUERY, recall=2), SettingError, "recall"),
        (
            search(Article.body_embedding, QUERY, recall=2, mode="exact"),
            SettingError,
            "recall is 2",
        ),
        (
            search(Article.body_embedding, QUERY, mode="bogus"),
            SettingError,
            "mode is 'bogus', but must be 'auto' or 'exact'",
        ),
        (plain.limit(-1), SettingError, "LIMIT is -1, but must be"),
        (plain.offset(-1), SettingError, "OFFSET is -1, but must be"),
        (
            plain.where(plain.selected_columns.distance < literal("far")),
            FilterError,
            "compares the distance with 'far'",
        ),
        (plain.where(Article.id < 2**70), FilterError, "integer out of range"),
        (plain.where(Article.year < 2**40), FilterError, "integer out of range"),
        (search(Article.body_embedding, [1, 2]), VectorError, "2, 3 dimensions"),
    ):
        with pytest.raises(error, match=why):
            search_batch(session, [plain, wrong])
    with pytest.raises(SettingError, match="memory"):
        search_batch(session, [plain], memory="1kB")
    for threads in (0, -1, "x", 1.0):
        with pytest.raises(SettingError, match=r"threads is .* at least 1"):
            search_batch(session, [plain], threads=threads)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingError, match="no embedding 'nothing'"):
        search_batch(session, [search(Article.body_embedding, QUERY, name="nothing")])


@pytest.mark.parametrize("bound", [None, float("nan"), float("inf"), -1.0])
def test_bounds_without_an_order(session: Session, bound: float | None) -> None:
    """PostgreSQL calls NULL unknown, and NaN greater than all numbers."""
    plain = search(Article.body_embedding, QUERY)
    distance = plain.selected_columns.distance
    statements = [
        plain.where(distance < literal(bound, Float)),
        plain.where(distance <= literal(bound, Float)),
    ]
    found = search_batch(session, statements)
    assert [pairs(rows) for rows in found] == [singly(session, s) for s in statements]


def test_arguments_that_only_look_right(session: Session, engine: Engine) -> None:
    """An engine for a session, and a statement for a list of them."""
    plain = search(Article.body_embedding, QUERY)
    with pytest.raises(SettingError, match=r"pass \[statement\]"):
        search_batch(session, plain)  # type: ignore[call-overload]
    with pytest.raises(SettingError, match=r"Engine\(.* with Session\(engine\)"):
        search_batch(engine, [plain])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"year": {"gt": Decimal("1.10")}}, r"year.gt with Decimal\('1.10'\)"),
        ({"or": [{"id": 1}, {"year": [datetime.date(2020, 1, 1)]}]}, "or.year with"),
        ({"year": float("nan")}, "year with nan"),
        ({"year": {1, 2}}, r"year with \{1, 2\}"),
        ({("year",): 1}, "is no JSON: keys must be"),
        ({"id": 10**5000}, r"compares id with \(int\), .* pass it as text"),
        ({10**5000: 1}, r"filter \(dict\) is no JSON"),
        (ENDLESS, "is no JSON: Circular"),
        (DEEP, r"filter \(dict\) is no JSON: maximum recursion"),
    ],
)
def test_filters_with_values_that_json_has_not(given: Any, why: str) -> None:
    with pytest.raises(FilterError, match=why):
        search(Article.body_embedding, QUERY, filter=given)


def test_a_filter_with_a_number_as_text(session: Session) -> None:
    """As the error of a Decimal advises."""
    text_, number = (
        search(Article.body_embedding, QUERY, filter={"year": {"gt": value}})
        for value in (str(Decimal(2000)), 2000)
    )
    assert pairs(session.execute(text_)) == pairs(session.execute(number)) != []
    found = search_batch(session, [text_, number])
    assert pairs(found[0]) == pairs(found[1])


def test_errors_of_the_driver(session: Session) -> None:
    """They come as those of a statement do."""
    slow = search(Article.body_embedding, QUERY).where(text("pg_sleep(.1) IS NOT NULL"))
    session.execute(text("SET LOCAL statement_timeout = 500"))
    with pytest.raises(DBAPIError, match="timeout") as raised:
        search_batch(session, [slow])
    assert isinstance(raised.value.orig, psycopg.errors.QueryCanceled)
    assert not raised.value.connection_invalidated
    session.rollback()
    assert session.scalar(select(1)) == 1


def test_a_connection_that_is_lost(articles: Engine) -> None:
    """The session has another one after a rollback."""
    statements = [search(Article.body_embedding, QUERY)]
    with articles.connect() as other:

        def lose(number: Any) -> None:
            end = text("SELECT pg_terminate_backend(:number, 5000)")
            other.execute(end, {"number": number})

        with Session(articles) as session:
            number = session.scalar(select(func.pg_backend_pid()))
            with pytest.raises(OperationalError) as raised:
                search_batch(session, statements, progress=lambda *_: lose(number))
            assert raised.value.connection_invalidated
            session.rollback()
            assert session.scalar(select(1)) == 1

        async def run() -> None:
            engine = create_async_engine(articles.url)
            async with AsyncSession(engine) as session:
                number = await session.scalar(select(func.pg_backend_pid()))
                with pytest.raises(OperationalError) as raised:
                    await search_batch(
                        session, statements, progress=lambda *_: lose(number)
                    )
                assert raised.value.connection_invalidated
                await session.rollback()
                assert await session.scalar(select(1)) == 1
            await engine.dispose()

        asyncio.run(run())


def test_other_drivers() -> None:
    """A batch reads in psycopg's own ways."""
    engine = create_engine("sqlite://")
    with Session(engine) as session, pytest.raises(PgembedError, match=r"\+psycopg"):
        search_batch(session, [search(Article.body_embedding, QUERY)])
    engine.dispose()
