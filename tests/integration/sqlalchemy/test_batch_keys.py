"""Batches over keys of several kinds, chunks, inheritance and several embeddings."""

from __future__ import annotations

import enum
import uuid
from typing import Any

import pytest
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import BIT, MACADDR
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column
from sqlalchemy.types import TypeEngine

from pgembed.errors import FilterError
from pgembed.postgres.connection import connect
from pgembed.sqlalchemy import Embedding, search, search_batch
from tests.harness.sql_worker import SqlWorker, vector_of


class Base(DeclarativeBase):
    """The base of the models, in a schema of their own."""

    metadata = MetaData(schema="My app")


class Colour(enum.Enum):
    """An enum of the database."""

    RED = "red"
    BLUE = "blue"


class Reversed(TypeDecorator[str]):
    """A type that the application reads otherwise than the database."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        """Turn it round."""
        return value and value[::-1]

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """Turn it back."""
        return value and value[::-1]


class Note(Base):
    """A composite key of three types; names that need quotes; two embeddings."""

    __tablename__ = "Note"

    owner: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    colour: Mapped[Colour] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column("the word", Reversed, primary_key=True)
    body: Mapped[str]
    kind: Mapped[str]
    body_embedding = Embedding("body", model="tiny", index="none")
    word_embedding = Embedding("the word", model="tiny", index="none", name="words")
    pieces = Embedding(
        "body", model="tiny", name="pieces", chunk_tokens=8, index="none"
    )
    __mapper_args__ = {  # noqa: RUF012 - as SQLAlchemy declares it
        "polymorphic_on": "kind",
        "polymorphic_identity": "note",
    }


class Letter(Note):
    """A note of a kind of its own, in the same table."""

    __mapper_args__ = {"polymorphic_identity": "letter"}  # noqa: RUF012


class Thing(Base):
    """The table of all things, with the embedding."""

    __tablename__ = "thing"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    kind: Mapped[str]
    body_embedding = Embedding("body", model="tiny", index="none")
    __mapper_args__ = {  # noqa: RUF012 - as SQLAlchemy declares it
        "polymorphic_on": "kind",
        "polymorphic_identity": "thing",
    }


class Book(Thing):
    """Things with a table of their own besides."""

    __tablename__ = "book"

    id: Mapped[int] = mapped_column(ForeignKey(Thing.id), primary_key=True)
    pages: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012


QUERIES = [vector_of(f"query {i}").tolist() for i in range(5)]


@pytest.fixture
def filled(engine: Engine) -> Engine:
    """Return an engine for a database with embedded notes and things."""
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "My app"'))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            [Note, Letter][i % 2](
                owner=uuid.UUID(int=i % 5),
                colour=list(Colour)[i % 2],
                word=f"ab{i}",
                body=f"body {i}",
            )
            for i in range(30)
        )
        session.add_all(Thing(id=i, body=f"thing {i}") for i in range(10))
        session.add_all(
            Book(id=i, body=f"book {i}", pages=i * 10) for i in range(10, 30)
        )
        session.commit()
    dsn = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with connect(dsn, purpose="test") as connection:
        SqlWorker(connection).drain()
    return engine


def check(session: Session, statements: list[Any]) -> None:
    """The batch finds what each statement finds by itself, in its order."""
    found = search_batch(session, statements)
    for rows, statement in zip(found, statements, strict=True):
        again = session.execute(statement).all()
        assert again
        assert [row[0] for row in rows] == [row[0] for row in again]
        assert [row.distance for row in rows] == pytest.approx(
            [row.distance for row in again], abs=1e-6
        )


def test_composite_keys_in_quotes(filled: Engine) -> None:
    """A UUID, an enum, and a type that translates."""
    with Session(filled) as session:
        check(
            session,
            [
                search(Note.body_embedding, q).where(
                    Note.colour == Colour.RED, Note.word.like("ab%")
                )
                for q in QUERIES
            ],
        )


def test_several_embeddings_of_a_table(filled: Engine) -> None:
    """Two columns and a list of chunks, in one batch."""
    with Session(filled) as session:
        check(
            session,
            [
                search(attribute, q, k=6)
                for q in QUERIES
                for attribute in (
                    Note.body_embedding,
                    Note.word_embedding,
                    Note.pieces,
                )
            ],
        )


def test_single_table_inheritance(filled: Engine) -> None:
    """The criteria of the class take part."""
    with Session(filled) as session:
        statements = [search(Letter.body_embedding, q, k=20) for q in QUERIES]
        check(session, statements)
        for rows in search_batch(session, statements):
            assert {type(row[0]) for row in rows} == {Letter}


def test_joined_table_inheritance(filled: Engine) -> None:
    """The class has columns of two tables."""
    book = aliased(Book, flat=True)
    with Session(filled) as session:
        check(
            session,
            [
                search(book.body_embedding, q, k=20).where(book.pages > 120)
                for q in QUERIES
            ],
        )
        check(session, [search(Thing.body_embedding, q, k=20) for q in QUERIES])


def test_schemas_by_translation(filled: Engine) -> None:
    """schema_translate_map decides which table is searched."""
    with filled.begin() as connection:
        connection.execute(text('ALTER SCHEMA "My app" RENAME TO tenant'))
    engine = filled.execution_options(schema_translate_map={"My app": "tenant"})
    with Session(engine) as session:
        check(
            session,
            [search(Note.body_embedding, q).where(Note.word != "x") for q in QUERIES],
        )


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (MACADDR(), ["08:00:2b:01:02:03", "08:00:2b:01:02:04"]),
        (BIT(3), ["101", "110"]),
    ],
)
def test_keys_that_psycopg_does_not_know(
    engine: Engine, type_: TypeEngine[Any], values: list[str]
) -> None:
    """They are found again as they were read."""
    table = keyed(engine, type_, values)
    with engine.connect() as connection:
        statement = search(table.c.v, [1, 0], k=2)
        (found,) = search_batch(connection, [statement])
        single = connection.execute(statement).all()
        assert [row[0] for row in found] == [row[0] for row in single] == values


def test_keys_that_are_lists_are_refused(engine: Engine) -> None:
    """The error says what to do."""
    table = keyed(engine, ARRAY(Integer), ["{1,2}", "{3}"])
    with (
        engine.connect() as connection,
        pytest.raises(FilterError, match=r"by their key: .*list.*execute it by itself"),
    ):
        search_batch(connection, [search(table.c.v, [1, 0], k=2)])


def keyed(engine: Engine, type_: TypeEngine[Any], values: list[str]) -> Table:
    """Create a table with these keys, nearest to [1, 0] first."""
    table = Table(
        "keyed",
        MetaData(),
        Column("id", type_, primary_key=True),
        Column("v", VECTOR(2)),
    )
    table.create(engine)
    kind = type_.compile(engine.dialect)
    with engine.begin() as connection:
        for number, value in enumerate(values):
            connection.execute(
                text(f"INSERT INTO keyed VALUES (CAST(:value AS {kind}), :vector)"),
                {"value": value, "vector": f"[1,{number}]"},
            )
        connection.execute(text("SELECT pgembed.adopt_vectors('keyed', 'v')"))
    return table
