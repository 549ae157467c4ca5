"""Whatever the criteria are, a search returns the k nearest rows that pass."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import pytest
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    REAL,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    text,
    true,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import (
    BIT,
    INT4MULTIRANGE,
    INT4RANGE,
    JSONB,
    Range,
    array,
)
from sqlalchemy.orm import Session, aliased, joinedload, with_loader_criteria
from sqlalchemy.types import String, Text, TypeDecorator

from pgembed.sqlalchemy import search, search_batch
from tests.integration.sqlalchemy.models import Article, Author, State, Tag

QUERY = [0.3, -0.5, 0.9]
Change = Callable[[Any], Any]


class Lowered(TypeDecorator[str]):
    """A type that writes a function around its parameters."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        """Return the parameter in lower case."""
        return func.lower(bindvalue)


other = aliased(Article)
parent = aliased(Article, name="p%")
recent = select(Article.id).where(Article.year > 2015).cte("recent")
reply = aliased(Article, name="reply")
german = with_loader_criteria(Author, Author.country == "de", include_aliases=True)
first_word = (
    select(Tag.word)
    .where(Tag.article_id == Article.id)
    .order_by(Tag.word)
    .limit(1)
    .lateral()
)
letters = func.string_to_table(Tag.word, "e").table_valued("letter").render_derived()
counted = (
    select(Tag.article_id, func.count().label("n")).group_by(Tag.article_id).subquery()
)

CRITERIA: dict[str, Change] = {
    "nothing": lambda s: s,
    "comparison": lambda s: s.where(Article.year >= 2020),
    "filter_by of a join": lambda s: s.join(Article.author).filter_by(country="de"),
    "two calls": lambda s: s.where(Article.year >= 2000).where(Article.year < 2010),
    "impossible": lambda s: s.where(Article.year > 3000),
    "rare": lambda s: s.where(Article.id.in_([3, 150, 299, 29, 5000])),
    "empty list": lambda s: s.where(Article.id.in_([])),
    "not in": lambda s: s.where(Article.id.not_in(list(range(1, 290)))),
    "not in nothing": lambda s: s.where(Article.id.not_in([])),
    "tuples": lambda s: s.where(
        tuple_(Article.id, Article.title).in_([(1, "plain"), (2, "it's"), (3, "x")])
    ),
    "percent": lambda s: s.where(Article.title == "50% off"),
    "like": lambda s: s.where(Article.title.like("%0\\%%")),
    "startswith": lambda s: s.where(Article.title.startswith("50%", autoescape=True)),
    "quote": lambda s: s.where(Article.title == "it's"),
    "backslash": lambda s: s.where(Article.title == "back\\slash"),
    "unicode": lambda s: s.where(Article.title.in_(["ünï", "'; DROP TABLE tag; --"])),
    "modulo": lambda s: s.where(Article.id % 7 == 3),
    "or": lambda s: s.where(or_(Article.year < 1992, not_(Article.id > 40))),
    "null": lambda s: s.where(Article.author_id.is_(None)),
    "null value": lambda s: s.where(Article.author_id.is_not_distinct_from(null())),
    "numeric keeps its digits": lambda s: s.where(
        Article.price < decimal.Decimal("50.004")
    ),
    "enum": lambda s: s.where(Article.state == State.DRAFT),
    "enum list": lambda s: s.where(Article.state.in_([State.DRAFT])),
    "array": lambda s: s.where(Article.labels.contains(["c,d", 'e"f'])),
    "array overlap": lambda s: s.where(Article.labels.overlap(array(["a"]))),
    "timestamp": lambda s: s.where(
        Article.written.between(
            datetime.datetime(2020, 6, 1, 1, 2, 3, 4), datetime.datetime(2022, 1, 1)
        )
    ),
    "interval": lambda s: s.where(
        Article.written + datetime.timedelta(days=9) > datetime.datetime(2022, 1, 1)
    ),
    "interval and interval": lambda s: s.where(
        literal(datetime.timedelta(days=10)) > literal(datetime.timedelta(days=9)),
        func.age(Article.written, datetime.datetime(2020, 1, 1))
        > datetime.timedelta(days=800),
    ),
    "integer and float": lambda s: s.where(Article.year > 2010.5, Article.id > 99.0),
    "real and float": lambda s: s.where(cast(Article.id * 0.1, REAL) > literal(2.7)),
    "numbers among themselves": lambda s: s.where(
        func.greatest(decimal.Decimal(10), decimal.Decimal(9)) > decimal.Decimal("9.5"),
        literal(10.0) > literal(9.0),
    ),
    "bytes": lambda s: s.where(func.length(literal(b"\\'\0")) == 3),
    "jsonb": lambda s: s.where(
        func.jsonb_build_object("year", Article.year, type_=JSONB).contains(
            {"year": 2001}
        )
    ),
    "range": lambda s: s.where(
        func.int4range(Article.year, null(), type_=INT4RANGE).overlaps(
            Range(1990, 2000)
        )
    ),
    "multirange": lambda s: s.where(
        literal([Range(1990, 1995), Range(2000, 2010)], INT4MULTIRANGE).contains(
            Article.year
        )
    ),
    "bits": lambda s: s.where(cast(Article.id, BIT(3)) == literal("101", BIT(3))),
    "array slice": lambda s: s.where(Article.labels[1:2].contains(["a"])),
    "function": lambda s: s.where(func.length(Article.title) == 4),
    "function of a parameter": lambda s: s.where(
        Article.title == func.concat("pl", "ain")
    ),
    "type with an expression": lambda s: s.where(
        type_coerce(Article.title, Lowered) == "PLAIN",
        type_coerce(Article.title, Lowered).in_(["PLAIN", "IT'S"]),
    ),
    "cast": lambda s: s.where(cast(Article.year, Text).like("19%")),
    "text": lambda s: s.where(text("article.year > :y").bindparams(y=2010)),
    "literal": lambda s: s.where(literal_column("article.id % 2") == 1),
    "relationship": lambda s: s.where(Article.author.has(name="author 3 %s")),
    "many": lambda s: s.where(Article.tags.any(Tag.word.in_(["red", "it's"]))),
    "exists": lambda s: s.where(
        exists().where(Tag.article_id == Article.id, Tag.word == "blue")
    ),
    "scalar subquery": lambda s: s.where(
        Article.year > select(func.avg(Author.id) + 2000).scalar_subquery()
    ),
    "its own table": lambda s: s.where(
        Article.year == select(func.max(other.year)).scalar_subquery()
    ),
    "self": lambda s: s.where(Article.parent.has(year=2000)),
    "in select": lambda s: s.where(
        Article.author_id.in_(select(Author.id).where(Author.country == "de"))
    ),
    "cte": lambda s: s.where(Article.id.in_(select(recent.c.id))),
    "cte behind a value": lambda s: s.where(
        Article.year < 2023, Article.id.in_(select(recent.c.id)), Article.id > 7
    ),
    "join": lambda s: s.join(Article.author).where(Author.country == "fr"),
    "join without criteria": lambda s: s.join(Article.author),
    "two joins": lambda s: (
        s.join(Article.author)
        .join(Article.tags)
        .where(Author.country == "fr", Tag.word == "red")
    ),
    "join onto an alias": lambda s: s.join(parent, Article.parent).where(
        parent.year < 2010
    ),
    "join of a subquery": lambda s: s.join(
        counted, counted.c.article_id == Article.id
    ).where(counted.c.n > 1),
    "join of a cte": lambda s: s.join(recent, recent.c.id == Article.id),
    "join of a lateral subquery": lambda s: s.join(first_word, true()).where(
        first_word.c.word == "green"
    ),
    "join of a function of a join": lambda s: (
        s.join(Article.tags).join(letters, true()).where(letters.c.letter == "r")
    ),
    "outer join": lambda s: s.outerjoin(Article.author).where(
        or_(Author.country.is_(None), Author.country == "de")
    ),
    "anti-join": lambda s: s.outerjoin(Article.author).where(Author.id.is_(None)),
    "idle outer join": lambda s: s.outerjoin(Article.author),
    "outer and inner": lambda s: (
        s.outerjoin(Article.parent.of_type(parent))
        .join(Author, Author.id == parent.author_id)
        .where(Author.country.is_not(None))
    ),
    "implicit join": lambda s: s.where(
        Author.id == Article.author_id, Author.country == "de"
    ),
    "loader criteria": lambda s: s.options(
        with_loader_criteria(Article, Article.year > 2012)
    ),
    "loader criteria with a slice": lambda s: s.options(
        with_loader_criteria(Article, Article.labels[1:2] == ["a"])
    ),
    "loader criteria of a relationship": lambda s: s.where(
        Article.author.has()
    ).options(german),
    "loader criteria of a subquery": lambda s: s.where(
        Article.author_id.in_(select(Author.id))
    ).options(german),
    "loader criteria of a joined subquery": lambda s: s.join(
        someone := select(Author.id).subquery(), someone.c.id == Article.author_id
    ).options(german),
    "join and a correlated subquery": lambda s: s.join(Article.author).where(
        Author.id > 3, exists().where(reply.parent_id == Article.id)
    ),
    "join and a correlated value": lambda s: s.join(Article.author).where(
        select(func.count())
        .where(reply.parent_id == Article.id, reply.author_id != Author.id)
        .scalar_subquery()
        == 1
    ),
    "jsonb position": lambda s: s.where(
        func.jsonb_build_array(Article.title, Article.year, type_=JSONB)[1].astext
        < "2000"
    ),
    "many values": lambda s: s.where(
        or_(*(and_(Article.year == 1990 + i, Article.id > i) for i in range(70)))
    ),
    "eager": lambda s: s.options(joinedload(Article.author, innerjoin=False)),
    "eager and join": lambda s: (
        s.join(Article.author)
        .where(Author.country == "de")
        .options(joinedload(Article.author), joinedload(Article.tags))
    ),
    "nested": lambda s: s.where(
        and_(True, or_(and_(Article.id > 10, Article.id < 90), Article.year == 2001))
    ),
}


def nearest(session: Session, change: Change, k: int) -> list[tuple[int, float]]:
    """Return what a search must: found by comparing every row that passes."""
    distance = Article.body_embedding.cosine_distance(QUERY).label("d")
    everything = change(select(Article, distance)).where(distance.is_not(None))
    rows = session.execute(everything).unique().all()
    ids = {article.id: number for article, number in rows}
    return sorted(ids.items(), key=lambda row: (row[1], row[0]))[:k]


@pytest.mark.parametrize("change", CRITERIA.values(), ids=CRITERIA)
def test_the_nearest_of_those_that_pass(session: Session, change: Change) -> None:
    """As many rows as there are, up to k, in order; with joins, each row once."""
    for k in (5, 40):
        found = session.execute(
            change(search(Article.body_embedding, QUERY, k=k))
        ).unique()
        rows = list(dict.fromkeys((each.id, number) for each, number in found))
        expected = nearest(session, change, k)
        assert [row[0] for row in rows] == [row[0] for row in expected]
        assert [row[1] for row in rows] == pytest.approx([row[1] for row in expected])


def test_statements_with_their_values_written_out(session: Session) -> None:
    for name in ("jsonb position", "type with an expression"):
        statement = CRITERIA[name](search(Article.body_embedding, QUERY, k=5))
        written = statement.compile(
            session.get_bind(), compile_kwargs={"literal_binds": True}
        )
        rows = session.connection().exec_driver_sql(str(written)).all()
        expected = nearest(session, CRITERIA[name], 5)
        assert [row.id for row in rows] == [row[0] for row in expected]


@pytest.mark.parametrize("name", ["comparison", "rare", "tuples", "join", "enum list"])
def test_a_cached_statement_takes_new_values(session: Session, name: str) -> None:
    """The second execution compiles nothing, and filters by its own values."""
    for year in (1995, 2024):
        chosen: Change = {
            "comparison": lambda s: s.where(Article.year >= year),  # noqa: B023
            "rare": lambda s: s.where(Article.id.in_(range(1, year - 1980))),  # noqa: B023
            "tuples": lambda s: s.where(
                tuple_(Article.id, Article.year).in_([(i, year) for i in range(99)])  # noqa: B023
            ),
            "join": lambda s: s.join(Article.author).where(Author.id > year - 2005),  # noqa: B023
            "enum list": lambda s: s.where(Article.state.in_(list(State)[year % 2 :])),  # noqa: B023
        }[name]
        found = session.execute(chosen(search(Article.body_embedding, QUERY)))
        assert [each.id for each, _ in found] == [
            number for number, _ in nearest(session, chosen, 10)
        ]


def test_a_search_among_the_criteria_of_another(session: Session) -> None:
    """With criteria, and parameters, of its own."""
    other = aliased(Article)
    inner = (
        search(other.body_embedding, [-1.0, 0.5, 0.1], k=60)
        .where(other.year > 2000, other.title.like("%50\\% off%"))
        .with_only_columns(other.id)
        .order_by(None)
    )
    wanted = set(session.scalars(inner))
    assert 2 < len(wanted) < 60
    given = [
        search(Article.body_embedding, QUERY, k=5).where(Article.id.in_(inner)),
        search(Article.body_embedding, QUERY, k=5)
        .where(Article.price > 10, Article.id.in_(inner))
        .where(Article.title != "%s"),
    ]
    joined = inner.subquery()
    given.append(
        search(Article.body_embedding, QUERY, k=5).join(
            joined, joined.c.id == Article.id
        )
    )
    for statement in given:
        found = [article.id for article, _ in session.execute(statement)]
        everything = search(Article.body_embedding, QUERY, k=300)
        expected = [
            article.id
            for article, _ in session.execute(everything)
            if article.id in wanted
            and (statement is not given[1] or article.price > 10)
        ]
        assert found == expected[:5]


def test_vectors_of_any_source(session: Session) -> None:
    """Parameters of pgvector's type, and another row's vector, are no texts."""
    plain = [a.id for a, _ in session.execute(search(Article.body_embedding, QUERY))]
    given = literal(QUERY, VECTOR(3))
    statement = search(Article.body_embedding, given)
    assert [a.id for a, _ in session.execute(statement)] == plain
    (together,) = search_batch(session, [statement])
    assert [a.id for a, _ in together] == plain
    later = search(Article.body_embedding, bindparam("q", type_=VECTOR(3)))
    found = session.execute(later, {"q": QUERY})
    assert [a.id for a, _ in found] == plain
    other = aliased(Article)
    nearest = search(Article.body_embedding, other.body_embedding, k=1).lateral()
    pairs = session.execute(
        select(other.id, nearest.c.id)
        .join(nearest, true())
        .where(other.id.in_([1, 2, 3]))
    )
    assert sorted(map(tuple, pairs)) == [(1, 1), (2, 2), (3, 3)]
