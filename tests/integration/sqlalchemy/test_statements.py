"""A search is a SELECT: what one does with a SELECT works."""

from __future__ import annotations

import asyncio
import decimal
from typing import Any

import numpy as np
import pytest
from pgvector import Bit, Vector
from pgvector.psycopg import register_vector
from pgvector.sqlalchemy import BIT, HALFVEC
from sqlalchemy import (
    Engine,
    bindparam,
    cast,
    create_engine,
    delete,
    event,
    func,
    inspect,
    lambda_stmt,
    literal,
    select,
    text,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import BIT as PLAIN_BIT
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    Session,
    aliased,
    contains_eager,
    joinedload,
    raiseload,
    selectinload,
    subqueryload,
    undefer,
)

from pgembed.errors import EmbeddingError, FilterError, VectorError
from pgembed.sqlalchemy import hybrid_search, search, search_batch
from pgembed.sqlalchemy.call import SearchedBy
from tests.integration.sqlalchemy.conftest import url
from tests.integration.sqlalchemy.models import Article, Author, Tag
from tests.integration.sqlalchemy.test_search import QUERY, nearest

YEAR = 2005


def expected(session: Session, k: int = 10) -> list[int]:
    """Return the ids of the nearest articles since 2005."""
    found = nearest(session, lambda s: s.where(Article.year >= YEAR), k)
    return [number for number, _ in found]


def since(k: int = 10) -> Any:
    """Return the search that all tests here start with."""
    return search(Article.body_embedding, QUERY, k=k).where(Article.year >= YEAR)


def test_rows_are_pairs_of_entity_and_distance(session: Session) -> None:
    """The vector is not loaded with them, unless it is asked for."""
    row: Any = session.execute(since()).first()
    assert isinstance(row.Article, Article)
    assert row.distance == row[1]
    assert "body_embedding" in inspect(row.Article).unloaded
    session.expire_all()
    statement = since().options(undefer(Article.body_embedding))
    loaded: Any = session.execute(statement).first()
    assert "body_embedding" not in inspect(loaded.Article).unloaded
    assert len(loaded.Article.body_embedding) == len(QUERY)


def test_limit_and_offset_take_from_the_k_nearest(session: Session) -> None:
    """LIMIT beyond k does not make more of them."""
    found = expected(session)
    assert [a.id for a in session.scalars(since().limit(3))] == found[:3]
    assert [a.id for a in session.scalars(since().limit(3).offset(4))] == found[4:7]
    assert [a.id for a in session.scalars(since(4).limit(50))] == found[:4]


def test_columns(session: Session) -> None:
    """Columns instead of entities; the distance among them."""
    statement = since()
    distance = statement.selected_columns.distance
    rows = session.execute(
        statement.with_only_columns(Article.id, (1 - distance).label("likeness"))
    ).all()
    assert [row.id for row in rows] == expected(session)
    assert rows[0].likeness > rows[-1].likeness


def test_upper_bound_of_the_distance(session: Session) -> None:
    """Which leaves the nearest, and fewer of them."""
    statement = since()
    distance = statement.selected_columns.distance
    bound = session.execute(statement).all()[4].distance
    rows = session.execute(statement.where(distance < bound)).all()
    assert [row.Article.id for row in rows] == expected(session)[:4]
    with pytest.raises(FilterError, match=r"subquery\(\)"):
        session.execute(statement.where(distance > bound))


def test_other_orders(session: Session) -> None:
    """The k nearest, by year."""
    rows = session.scalars(since().order_by(None).order_by(Article.year, Article.id))
    found = [(a.year, a.id) for a in rows]
    assert found == sorted(found)
    assert {number for _, number in found} == set(expected(session))


def test_subqueries_and_aggregates(session: Session) -> None:
    """What is counted are the k nearest that pass."""
    nearby = since().subquery()
    assert session.scalar(select(func.count()).select_from(nearby)) == 10
    found = session.scalars(
        select(Tag.word).join(nearby, nearby.c.id == Tag.article_id).distinct()
    )
    assert set(found) == set(
        session.scalars(select(Tag.word).where(Tag.article_id.in_(expected(session))))
    )
    alias = aliased(Article, nearby)
    again = session.execute(select(alias, nearby.c.distance).order_by("distance"))
    assert [row[0].id for row in again] == expected(session)
    cte = since().cte()
    assert session.scalar(select(func.count()).select_from(cte)) == 10
    grouped = since().order_by(None).with_only_columns(func.min(Article.year))
    assert session.scalar(grouped) >= YEAR


def test_unions(session: Session) -> None:
    """Two searches in one statement, each with its own criteria."""
    old = search(Article.body_embedding, QUERY, k=3).where(Article.year < YEAR)
    both = union_all(select(since(3).subquery().c.id), select(old.subquery().c.id))
    older = nearest(session, lambda s: s.where(Article.year < YEAR), 3)
    assert sorted(session.scalars(both)) == sorted(
        [*expected(session, 3), *(number for number, _ in older)]
    )


@pytest.mark.parametrize("load", [joinedload, selectinload, subqueryload])
@pytest.mark.parametrize("limit", [None, 4])
def test_eager_loading(session: Session, load: Any, limit: int | None) -> None:
    """Related objects come along, with and without LIMIT, of collections, too."""
    options = [load(Article.tags), load(Article.author), raiseload("*")]
    rows = session.execute(since().limit(limit).options(*options)).unique().all()
    assert [row.Article.id for row in rows] == expected(session, limit or 10)
    for article, _ in rows:
        assert all(tag.article_id == article.id for tag in article.tags)
        assert article.author is None or article.author.id == article.author_id


def test_contains_eager(session: Session) -> None:
    """A join of the statement fills the relationship."""
    statement = since().join(Article.author).options(contains_eager(Article.author))
    for article, _ in session.execute(statement):
        assert "author" not in inspect(article).unloaded


def test_locking_the_rows(session: Session) -> None:
    """FOR UPDATE OF the table."""
    rows = session.scalars(since().with_for_update(of=Article))
    assert [a.id for a in rows] == expected(session)


def test_criteria_by_name(session: Session) -> None:
    """Those of filter_by(), of the entity that is searched."""
    for entity in (Article, aliased(Article)):
        statement = search(entity.body_embedding, QUERY)
        found = session.scalars(statement.filter_by(year=YEAR)).all()
        assert found == session.scalars(statement.where(entity.year == YEAR)).all()
        assert found


@pytest.mark.parametrize("name", [None, "a", "needs quotes %"])
def test_aliases(session: Session, name: str | None) -> None:
    """The criteria are those of the alias; the table may join it."""
    a = aliased(Article, name=name)
    plain = search(a.body_embedding, QUERY).where(a.year >= YEAR)
    assert [each.id for each in session.scalars(plain)] == expected(session)
    has_author = plain.where(a.author.has(Author.country == "de"))
    joined = (
        search(a.body_embedding, QUERY)
        .join(Article, Article.id == a.parent_id)
        .where(a.year >= YEAR, Article.year < YEAR)
    )
    by_author = nearest(
        session,
        lambda s: s.where(Article.year >= YEAR, Article.author.has(country="de")),
        10,
    )
    assert [each.id for each in session.scalars(has_author)] == [
        i for i, _ in by_author
    ]
    by_parent = nearest(
        session,
        lambda s: s.where(
            Article.year >= YEAR, Article.parent.has(Article.year < YEAR)
        ),
        10,
    )
    found = session.scalars(joined)
    assert [each.id for each in found] == [number for number, _ in by_parent]


def test_core(articles: Engine) -> None:
    """A Core connection, ORM statements and tables alike."""
    table = Article.__table__
    statement = search(table.c.body_embedding, QUERY).where(table.c.year >= YEAR)
    alias = table.alias("x")
    aliased_search = search(alias.c.body_embedding, QUERY).where(alias.c.year >= YEAR)
    with articles.connect() as connection, Session(connection) as session:
        for each in (since(), statement, aliased_search):
            rows = connection.execute(each).all()
            assert [row.id for row in rows] == expected(session)
            assert rows[0].distance is not None


def test_async_sessions(articles: Engine, articles_dsn: str) -> None:
    """psycopg's asynchronous connections."""

    async def run() -> list[int]:
        engine = create_async_engine(url(articles_dsn))
        async with AsyncSession(engine) as session:
            rows = await session.execute(
                since().options(selectinload(Article.tags)).limit(7)
            )
            found = [article.id for article, _ in rows if article.tags is not None]
        await engine.dispose()
        return found

    with Session(articles) as session:
        assert asyncio.run(run()) == expected(session, 7)


def test_inside_of_other_statements(session: Session) -> None:
    """The condition of an UPDATE or DELETE; a lambda; from_statement()."""
    ids = since(4).with_only_columns(Article.id)
    found = expected(session, 4)
    changed = update(Article).where(Article.id.in_(ids)).values(title="near")
    session.execute(changed, execution_options={"synchronize_session": False})
    near = select(Article.id).where(Article.title == "near")
    assert sorted(session.scalars(near)) == sorted(found)
    by_lambda: Any = lambda_stmt(lambda: since(4))
    assert [a.id for a in session.scalars(by_lambda)] == found
    entities = session.scalars(select(Article).from_statement(since(4)))
    assert [a.id for a in entities] == found
    session.execute(delete(Tag).where(Tag.article_id.in_(ids)))
    left = select(func.count()).select_from(Tag).where(Tag.article_id.in_(found))
    assert session.scalar(left) == 0


def test_hybrid_searches_are_statements(session: Session, articles_dsn: str) -> None:
    """As those of search(): the best by score, whatever is done with them."""

    def hybrid(entity: Any = Article) -> Any:
        return hybrid_search(
            entity.body_embedding, "body 7", k=8, embedder=lambda text: QUERY
        ).where(entity.year >= YEAR)

    rows = session.execute(hybrid()).all()
    ids = [article.id for article, _ in rows]
    assert len(ids) == 8
    assert all(article.year >= YEAR for article, _ in rows)
    scores = [row.score for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [a.id for a in session.scalars(hybrid(aliased(Article)))] == ids
    assert [a.id for a in session.scalars(hybrid().limit(2).offset(1))] == ids[1:3]
    columns = hybrid().with_only_columns(
        Article.id, hybrid().selected_columns.score.label("s")
    )
    with pytest.raises(FilterError, match="from another statement"):
        session.execute(columns)
    one = hybrid()
    score = one.selected_columns.score
    assert session.execute(one.with_only_columns(Article.id, score)).all() == [
        (number, points) for number, points in zip(ids, scores, strict=True)
    ]
    nearby = hybrid().subquery()
    assert session.scalar(select(func.count()).select_from(nearby)) == 8
    eager = hybrid().options(joinedload(Article.tags), raiseload("*"))
    assert [row[0].id for row in session.execute(eager).unique()] == ids
    session.expunge_all()
    by_author = hybrid().join(Article.author).where(Author.country == "de")
    assert {a.author.country for a in session.scalars(by_author)} == {"de"}
    assert [row.id for row in session.connection().execute(hybrid())] == ids
    best = [a.id for a in session.scalars(one.where(score > scores[3]))]
    assert best == [
        i for i, points in zip(ids, scores, strict=True) if points > scores[3]
    ]
    assert [a.id for a in session.scalars(one.where(score >= scores[3]))] == [
        i for i, points in zip(ids, scores, strict=True) if points >= scores[3]
    ]
    for other in (score < scores[3], score != 0):
        with pytest.raises(
            FilterError, match=r"the score can .*'score > .*subquery\(\)"
        ):
            session.execute(one.where(other))

    async def run() -> list[int]:
        engine = create_async_engine(url(articles_dsn))
        async with AsyncSession(engine) as other:
            found = [article.id for article in await other.scalars(hybrid())]
        await engine.dispose()
        return found

    assert asyncio.run(run()) == ids


def test_the_same_search_as_in_sql(articles: Engine) -> None:
    """The same strategy, index and rows, because it is the same call."""
    call = """
        FROM pgembed.search(NULL::article, '[0.3,-0.5,0.9]'::vector, k => 10,
            predicate => 'article.year >= 2005', mode => :mode)
    """
    predicate = select(SearchedBy(since()))
    with articles.begin() as connection, Session(connection) as session:
        index = "USING hnsw (body_embedding vector_cosine_ops)"
        connection.execute(text(f"CREATE INDEX nearby ON article {index}"))
        made = session.scalar(predicate)
        assert made == "article.year >= '2005'::INTEGER"
        for mode in ("auto", "exact", "index"):
            rows = session.execute(
                text(f"SELECT (item).id, distance {call}"), {"mode": mode}
            ).all()
            statement = search(Article.body_embedding, QUERY, mode=mode)
            found = session.execute(statement.where(Article.year >= YEAR)).all()
            assert [(a.id, far) for a, far in found] == [tuple(row) for row in rows]
            plans = [
                session.scalar(
                    text(
                        "SELECT pgembed.explain_search(NULL::article, CAST(:v AS "
                        "vector), k => 10, predicate => :p, mode => :mode)"
                    ),
                    {"v": str(QUERY), "p": p, "mode": mode},
                )
                for p in (made, "article.year >= 2005")
            ]
            assert plans[0]["strategy"] == plans[1]["strategy"]
            assert plans[0]["estimated_rows"] == plans[1]["estimated_rows"]
        connection.rollback()


@pytest.mark.parametrize("registered", [False, True])
def test_the_types_are_those_of_pgvector(articles: Engine, registered: bool) -> None:
    """Whatever a vector is to the application, and to its driver, it is a query."""
    engine = create_engine(articles.url)
    if registered:
        event.listen(engine, "connect", lambda driver, _: register_vector(driver))
    with Session(engine) as session:
        stored = session.scalars(
            select(Article.body_embedding).where(Article.id == 1)
        ).one()
        values = [float(each) for each in stored]
        assert len(values) == len(QUERY)
        given = (stored, values, np.array(values), Vector(values))
        statements = [search(Article.body_embedding, v, k=3) for v in given]
        found = [session.execute(s).all() for s in statements]
        batch = search_batch(session, statements)
        for rows in (*found, *batch):
            assert rows[0].Article.id == 1
            assert rows[0].distance == pytest.approx(0, abs=1e-6)
            assert [r.Article for r in rows] == [r.Article for r in found[0]]
        ordered = select(Article.id).order_by(
            Article.body_embedding.cosine_distance(values), Article.id
        )
        nearest = session.scalars(ordered.limit(3)).all()
        assert nearest == [row.Article.id for row in found[0]]
    engine.dispose()


def test_streams(session: Session) -> None:
    """yield_per and partitions."""
    rows = session.execute(since(), execution_options={"yield_per": 3})
    assert [a.id for part in rows.partitions() for a, _ in part] == expected(session)


def test_named_parameters(session: Session) -> None:
    """They are bound at the execution."""
    statement = search(Article.body_embedding, QUERY).where(
        Article.year >= bindparam("since")
    )
    for year in (YEAR, 2020):
        found = nearest(session, lambda s: s.where(Article.year >= year), 10)  # noqa: B023
        rows = session.execute(statement, {"since": year})
        assert [a.id for a, _ in rows] == [number for number, _ in found]


def test_named_parameters_without_a_type(session: Session) -> None:
    """Also where SQLAlchemy leaves the type to the server."""
    statement = search(Article.body_embedding, QUERY).where(
        Article.price < bindparam("most")
    )
    for price in (50, decimal.Decimal("12.5")):
        found = nearest(session, lambda s: s.where(Article.price < price), 10)  # noqa: B023
        rows = session.execute(statement, {"most": price})
        assert [a.id for a, _ in rows] == [number for number, _ in found]


def test_json_filters(session: Session) -> None:
    """The filter of a user, and criteria of the application."""
    statement = search(Article.body_embedding, QUERY, filter={"year": {"gte": YEAR}})
    assert [a.id for a in session.scalars(statement)] == expected(session)
    both = statement.where(Article.year < 2010)
    found = nearest(
        session, lambda s: s.where(Article.year >= YEAR, Article.year < 2010), 10
    )
    assert [a.id for a in session.scalars(both)] == [number for number, _ in found]


def test_literal_rendering(session: Session) -> None:
    """A statement can be printed, with its parameters and without."""
    statement = since().where(Article.id.in_([1, 2]), Article.title == "it's 50%")
    assert "pgembed.search" in str(statement)
    assert session.bind is not None
    text = str(statement.compile(session.bind, compile_kwargs={"literal_binds": True}))
    assert session.connection().exec_driver_sql(text).all() == []


def test_vectors_as_expressions(session: Session) -> None:
    """The vector of another row, as a subquery."""
    one = select(Article.body_embedding).where(Article.id == 1).scalar_subquery()
    for query in (one, cast(one, HALFVEC(3))):
        assert next(session.execute(search(Article.body_embedding, query)))[0].id == 1


def test_bits_as_queries(session: Session) -> None:
    """A value does for a vector; an expression, and text that is one, are refused."""
    statement = search(Article.body_embedding, Bit("110"), k=1)
    same = search(Article.body_embedding, [1, 1, 0], k=1)
    assert session.execute(statement).all() == session.execute(same).all()
    for bits in (
        func.binary_quantize(Article.body_embedding, type_=BIT(3)),
        literal("110", PLAIN_BIT(3)),
        "01" * 64,
    ):
        with pytest.raises(VectorError, match=r"of type bit.*pgvector\.Bit"):
            search(Article.body_embedding, bits)


def test_what_is_refused(session: Session) -> None:
    """Each error says what to do."""
    with pytest.raises(InvalidRequestError, match=r"(?s)property \"yaer\"|search\(\)"):
        since().filter_by(yaer=2020)
    two = since().join(search(Article.body_embedding, QUERY).subquery(), Article.id > 0)
    session.execute(two).all()
    with pytest.raises(EmbeddingError, match=r"search\(Model\.body_embedding"):
        search(Article, QUERY)
    for vector in ([], [[1.0]], [float("nan"), 1], None, ["a"]):
        with pytest.raises(VectorError, match="no query: pass a text"):
            search(Article.body_embedding, vector)
    with pytest.raises(EmbeddingError, match=r"title is String.*Model\.body_embedding"):
        search(Article.title, QUERY)
    label = Article.body_embedding.label("x")
    for given in ("body", Article.author, Article.is_old, label):
        with pytest.raises(EmbeddingError, match="not an embedding"):
            search(given, QUERY)
    with pytest.raises(FilterError, match=r"is a text: pass json\.loads"):
        search(Article.body_embedding, QUERY, filter='{"year": 2000}')
    # The best of each author would be the best of all, as far as they are his.
    correlated = since().where(Article.author_id == Author.id)
    lateral = correlated.lateral()
    for each in (
        select(Author.id, lateral.c.id).join(lateral, true()),
        select(Author.id, correlated.with_only_columns(Article.id).scalar_subquery()),
    ):
        with pytest.raises(FilterError, match=r"name author of the .* search_batch"):
            session.execute(each)
    with pytest.raises(FilterError, match=r"pass the list itself to in_\(\)"):
        session.execute(
            since().where(Article.id.in_(bindparam("ids", expanding=True))),
            {"ids": [1]},
        )


@pytest.mark.parametrize("in_", ["in_", "not_in"])
def test_lists_of_arrays_are_refused(session: Session, in_: str) -> None:
    """By themselves, and in tuples; the error says what to write instead."""
    nested = [["a"], ["b", "c,d"]]
    for criterion in (
        getattr(Article.labels, in_)(nested),
        getattr(tuple_(Article.id, Article.labels), in_)([(1, ["a"])]),
    ):
        statement = search(Article.body_embedding, QUERY, k=2).where(criterion)
        with pytest.raises(FilterError, match=r"list of arrays: .* each of them"):
            session.execute(statement)
        with pytest.raises(FilterError, match=r"list of arrays: .* each of them"):
            search_batch(session, [statement])
