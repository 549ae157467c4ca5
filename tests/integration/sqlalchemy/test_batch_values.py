"""What tells the statements of a batch apart beside their shape."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    Column,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Time,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    insert,
    literal,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    UserDefinedOption,
    mapped_column,
    sessionmaker,
    with_loader_criteria,
)
from sqlalchemy.types import TypeDecorator

from pgembed.errors import FilterError
from pgembed.postgres.connection import connect
from pgembed.sqlalchemy import Embedding, search, search_batch
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.integration.sqlalchemy.conftest import url
from tests.integration.sqlalchemy.models import Article, Author
from tests.integration.sqlalchemy.test_search import QUERY

Make = Callable[[Any], Any]


def nearest(k: int = 3) -> Any:
    """Return a search without criteria."""
    return search(Article.body_embedding, QUERY, k=k)


def ids(rows: Any) -> list[int]:
    """Return the ids of the entities."""
    return [row[0].id for row in rows]


def check(session: Session, make: Make, values: Any) -> list[list[int]]:
    """Compare a batch of statements, made anew, with each of them by itself."""
    found = [ids(rows) for rows in search_batch(session, [make(v) for v in values])]
    assert found == [ids(session.execute(make(value))) for value in values]
    assert len({tuple(each) for each in found}) > 1
    return found


class Tenant(UserDefinedOption):
    """An option for events."""


class Codes(TypeDecorator[Any]):
    """A type whose values are not hashable, and look the same."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        """Return the number."""
        return value if value is None or isinstance(value, int) else value.number


class Numbers(TypeDecorator[Any]):
    """An array of NumPy's."""

    impl = ARRAY
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        """Return a list."""
        return value.tolist()


@dataclasses.dataclass(eq=True)
class Code:
    """A value of type Codes."""

    number: int = dataclasses.field(repr=False)


def test_params(session: Session) -> None:
    """What params() gives is the statement's own."""
    asked = nearest().where(Article.year >= bindparam("y"))
    check(session, lambda v: asked.params(y=v), (1990, 2020, 2024))
    limited = nearest(5).limit(bindparam("n", type_=Integer))
    found = check(session, lambda v: limited.params(n=v), (1, 2))
    assert [len(each) for each in found] == [1, 2]
    near = nearest(20)
    distance = near.selected_columns.distance
    bounded = near.where(distance < bindparam("d", type_=Float))
    check(session, lambda v: bounded.params(d=v), (0.01, 0.9))


def test_a_parameter_without_a_value(session: Session) -> None:
    asked = nearest().limit(bindparam("n", type_=Integer))
    with pytest.raises(FilterError, match="parameter 'n' has no value"):
        search_batch(session, [asked])


@pytest.mark.parametrize(
    "make",
    [
        lambda v: nearest().execution_options(tenant=v),
        lambda v: nearest().options(Tenant(v)),
        lambda v: nearest().where(Article.id > 0).options(Tenant(v)),
    ],
)
def test_options_that_events_read(articles: Engine, make: Make) -> None:
    maker = sessionmaker(articles)

    @event.listens_for(maker, "do_orm_execute")
    def restrict(state: Any) -> None:
        options = state.user_defined_options
        tenant = state.execution_options.get("tenant")
        tenant = options[0].payload if options else tenant
        if tenant is not None:
            state.statement = state.statement.options(
                with_loader_criteria(Article, Article.author_id == tenant)
            )

    with maker() as session:
        check(session, make, (1, 2, 3))


def test_populate_existing_counts_for_each(articles: Engine) -> None:
    with Session(articles) as session:
        (first,) = ids(session.execute(nearest(1)))
        article = session.get_one(Article, first)
        for fresh in (False, True):
            article.title = "mine"
            with session.no_autoflush:
                plain = nearest(1)
                reading = nearest(1).execution_options(populate_existing=fresh)
                search_batch(session, [plain, reading])
            assert (article.title == "mine") is not fresh


def test_schemas_of_a_statement(dsn: str) -> None:
    """Each statement may have the names of its schemas translated."""
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True))
    table.append_column(Column("v", VECTOR(2)))
    with connect(dsn, purpose="test") as connection:
        for schema in ("one", "two"):
            for statement in (
                f"CREATE SCHEMA {schema}",
                f"CREATE TABLE {schema}.t (id int PRIMARY KEY, v vector(2))",
                f"INSERT INTO {schema}.t VALUES ({len(schema)}, '[1,2]')",
                f"SELECT pgembed.adopt_vectors('{schema}.t', 'v', name => '{schema}')",
            ):
                connection.execute(statement.encode())
        connection.execute("INSERT INTO two.t VALUES (7, '[1,2]')")
    engine = create_engine(url(dsn))

    def make(schema: str) -> Any:
        asked = search(table.c.v, [1, 2], name=schema)
        return asked.execution_options(schema_translate_map={None: schema})

    with engine.connect() as connected:
        found = search_batch(connected, [make("one"), make("two"), make("one")])
        assert [len(rows) for rows in found] == [1, 2, 1]
        for rows, schema in zip(found, ("one", "two", "one"), strict=True):
            alone = connected.execute(make(schema)).all()
            assert [row.id for row in rows] == [row.id for row in alone]
    engine.dispose()


def test_values_that_look_the_same(session: Session) -> None:
    """Long arrays are shortened where they are shown."""

    def shown(place: int) -> Any:
        values = np.zeros(2000)
        values[place] = 1
        return values

    check(
        session,
        lambda v: nearest().where(
            func.array_position(literal(shown(v), Numbers(Float)), literal(1.0))
            == Article.id
        ),
        (3, 1200, 40),
    )
    check(
        session,
        lambda v: nearest().where(Article.id == literal(Code(v), Codes())),
        (3, 4),
    )


_CLOCKS_GO_BACK = datetime.datetime(
    2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")
)
_ELEVEN = datetime.time(11, tzinfo=datetime.UTC)
_NOON = datetime.time(12, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (
            (_CLOCKS_GO_BACK, _CLOCKS_GO_BACK.replace(fold=1)),
            lambda v: func.date_part(
                "hour", func.timezone("UTC", literal(v, DateTime(timezone=True)))
            ),
        ),
        (
            (_ELEVEN, _NOON),
            lambda v: func.date_part("timezone_hour", literal(v, Time(timezone=True))),
        ),
        (
            (Decimal("1.1"), Decimal("1.10")),
            lambda v: func.length(cast(literal(v, Numeric), String)),
        ),
        ((0.0, -0.0), lambda v: func.length(cast(literal(v, Float), String))),
        (
            ({1: "x"}, {True: "x"}),
            lambda v: func.length(cast(literal(v, JSONB), String)),
        ),
    ],
    ids=["fold", "offset", "digits", "sign", "keys"],
)
def test_values_that_python_calls_equal(
    session: Session, values: tuple[Any, Any], read: Make
) -> None:
    assert values[0] == values[1]
    check(session, lambda v: nearest(10_000).where(Article.id > read(v)), values)


def test_keys_that_the_flush_makes(session: Session) -> None:
    session.execute(text("SELECT setval('author_id_seq', 1000)"))
    with session.no_autoflush:
        author = Author(name="new")
        session.add(author)
        session.get_one(Article, 5).author = author
    (rows,) = search_batch(session, [nearest().where(Article.author == author)])
    assert ids(rows) == [5]


def test_another_entity_is_refused(session: Session) -> None:
    asked = nearest().join(Article.author)
    other = asked.with_only_columns(Author, asked.selected_columns.distance)
    with pytest.raises(FilterError, match="another entity"):
        search_batch(session, [other])


class Base(DeclarativeBase):
    """The base of models in two databases."""


class First(Base):
    """In one of them."""

    __tablename__ = "first"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    body_embedding = Embedding("body", model="tiny", index="none")


class Second(Base):
    """In the other."""

    __tablename__ = "second"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    body_embedding = Embedding("body", model="tiny", index="none")


@pytest.fixture
def two(server: Databases) -> Iterator[Any]:
    """Return engines for two databases that have both tables, with other rows."""
    with (
        server.database(server.installed_template()) as one,
        server.database(server.installed_template()) as other,
    ):
        engines = []
        for number, name in enumerate((one, other)):
            with connect(server.dsn(name), purpose="test") as connection:
                register_model(connection)
            engine = create_engine(url(server.dsn(name)))
            Base.metadata.create_all(engine)
            with Session(engine) as session:
                for model in (First, Second):
                    rows = [
                        {"id": i + number, "body": "x", "body_embedding": [1, i, 0]}
                        for i in range(1, 9)
                    ]
                    session.execute(insert(model), rows)
                session.execute(text("ANALYZE"))
                session.commit()
            engines.append(engine)
        yield {First: engines[0], Second: engines[1]}
        for engine in engines:
            engine.dispose()


def test_each_database_of_a_session_is_asked(two: Any) -> None:
    make = functools.partial(search, query=[1.0, 5.0, 0.0], k=2)
    with Session(binds=two) as session:
        statements = [
            make(model.body_embedding) for model in (First, Second, First, Second)
        ]
        found = [ids(rows) for rows in search_batch(session, statements)]
        assert found == [ids(session.execute(each)) for each in statements]
        assert found[0] != found[1]
