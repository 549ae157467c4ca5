"""create_all() makes the embeddings that models declare, drop_all() takes them away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    mapped_column,
    selectinload,
    with_polymorphic,
)
from sqlalchemy.schema import CreateSchema

from pgembed.errors import EmbeddingError
from pgembed.postgres.connection import connect
from pgembed.sqlalchemy import Chunk, Embedding, search
from tests.harness.sql_worker import SqlWorker, vector_of
from tests.integration.sqlalchemy.support import catalog, embeddings


def created(engine: Engine, base: type[DeclarativeBase]) -> dict[str, Any]:
    """Create the tables, twice; return the embeddings."""
    base.metadata.create_all(engine)
    base.metadata.create_all(engine)
    return embeddings(engine)


def embed(engine: Engine) -> None:
    """Let a worker embed all rows; its vectors are those of vector_of."""
    dsn = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with connect(dsn, purpose="test") as connection:
        SqlWorker(connection).drain()


@pytest.fixture
def unchanged(engine: Engine) -> Iterator[None]:
    """Check that the catalog is the same after the test."""
    with engine.connect() as connection:
        before = catalog(connection)
    yield
    with engine.connect() as connection:
        assert catalog(connection) == before


@pytest.mark.usefixtures("unchanged")
def test_all_options(engine: Engine) -> None:
    """Every argument of create_embedding; columns, template, chunks; a schema."""

    class Base(DeclarativeBase):
        metadata = MetaData(
            schema="My app",
            naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s"},
        )

    class Note(Base):
        __tablename__ = "Note"
        __table_args__ = (Index(None, "title"), {"comment": "a tuple"})

        owner: Mapped[str] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column("no.", primary_key=True)
        title: Mapped[str]
        body: Mapped[str] = mapped_column("Body text")

        title_embedding = Embedding("title", model="tiny", dimensions=3)
        whole: Mapped[Any] = Embedding(
            "{title}: 100% {{{Body text}}}",
            model="tiny",
            name="the whole",
            target_column="Whole 'thing'",
            storage="halfvec",
            index="ivfflat",
            on_change="clear",
        )
        bits = Embedding(
            "title", model="tiny", name="bits", storage="bit", index="none"
        )
        chunks = Embedding(
            "Body text", model="tiny", chunk_tokens=16, chunk_overlap=4, name="Note's"
        )

    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "My app"'))
    found = created(engine, Base)
    whole = found["the whole"]
    assert whole.content == "{title}: 100% {{{Body text}}}"
    assert (whole.target_column, whole.storage) == ("Whole 'thing'", "halfvec")
    assert (whole.on_change, whole.index_method) == ("clear", "ivfflat")
    assert found["Note_title"].target_column == "title_embedding"
    assert found["bits"].target_column == "bits"
    assert (found["Note's"].chunk_tokens, found["Note's"].chunk_overlap) == (16, 4)

    with Session(engine) as session:
        for number in range(9):
            session.add(
                Note(owner="o", number=number, title=f"t{number}", body="a b c")
            )
        session.commit()
        embed(engine)
        query = vector_of("t3").tolist()
        for attribute in (Note.title_embedding, Note.whole, Note.bits):
            statement = search(attribute, query, k=3).where(Note.title != "t5")
            assert len(session.execute(statement).all()) == 3
        nearest = session.execute(search(Note.title_embedding, query)).first()
        assert nearest is not None
        assert nearest.Note.number == 3
        assert nearest.distance == pytest.approx(0, abs=1e-6)
        chunked = search(Note.chunks, vector_of("c").tolist(), k=4).where(
            Note.body == "a b c", Note.number.in_([1, 2, 3])
        )
        notes = session.scalars(chunked.options(selectinload(Note.chunks))).all()
        assert sorted(note.number for note in notes) == [1, 2, 3]
        pieces = notes[0].chunks
        assert all(isinstance(piece, Chunk) for piece in pieces)
        assert [(p.chunk, p.content) for p in pieces] == [(0, "a b"), (1, "c")]
        assert list(pieces[1].embedding) == pytest.approx(vector_of("c").tolist())
        piece = type(pieces[0])
        joined = select(Note.number).join(Note.chunks).where(piece.content == "c")
        assert len(session.scalars(joined).all()) == 9
        alias = aliased(Note)
        again = search(alias.chunks, query, k=2).where(alias.number > 4)
        assert all(note.number > 4 for note in session.scalars(again))
    Base.metadata.drop_all(engine)
    with engine.begin() as connection:
        connection.execute(text('DROP SCHEMA "My app"'))


@pytest.mark.usefixtures("unchanged")
def test_mixins(engine: Engine) -> None:
    """A mixin gives each of its tables embeddings of its own."""

    class Base(DeclarativeBase):
        pass

    class Described:
        description: Mapped[str]
        description_embedding = Embedding("description", model="tiny")
        pieces = Embedding(
            "description", model="tiny", chunk_tokens=8, name="{table}_pieces"
        )

    class Cat(Described, Base):
        __tablename__ = "cat"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Dog(Described, Base):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(primary_key=True)

    names = ["cat_description", "cat_pieces", "dog_description", "dog_pieces"]
    assert sorted(created(engine, Base)) == names
    with Session(engine) as session:
        session.add_all([Cat(description="a"), Dog(description="b c")])
        session.commit()
        embed(engine)
        query = vector_of("b c").tolist()
        for kind in (Cat, Dog):
            for attribute in (kind.description_embedding, kind.pieces):
                (found,) = session.scalars(search(attribute, query))
                assert isinstance(found, kind)
    Base.metadata.drop_all(engine)


@pytest.mark.usefixtures("unchanged")
def test_abstract_bases_and_annotations(engine: Engine) -> None:
    """What is declared once; the types that mypy is told."""

    class Base(DeclarativeBase):
        pass

    class Text(Base):
        __abstract__ = True
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        body_embedding: Mapped[list[float] | None] = Embedding("body", model="tiny")
        parts: Mapped[list[Chunk]] = Embedding(
            "body", model="tiny", chunk_tokens=8, name="{table}_parts", index="none"
        )

    class Poem(Text):
        __tablename__ = "poem"

    class Essay(Text):
        __tablename__ = "essay"

    names = ["essay_body", "essay_parts", "poem_body", "poem_parts"]
    assert sorted(created(engine, Base)) == names
    with Session(engine) as session:
        session.add_all([Poem(body="a"), Essay(body="b c")])
        session.commit()
        embed(engine)
        essay = session.scalars(
            search(Essay.parts, vector_of("b c").tolist(), k=1)
        ).one()
        vector: list[float] | None = essay.body_embedding
        assert vector is not None
        assert list(vector) == pytest.approx(vector_of("b c").tolist())
        contents: list[str] = [part.content for part in essay.parts]
        assert contents == ["b c"]
    Base.metadata.drop_all(engine)


@pytest.mark.usefixtures("unchanged")
def test_single_table_inheritance(engine: Engine) -> None:
    """The discriminator takes part in the search."""

    class Base(DeclarativeBase):
        pass

    class Animal(Base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        words: Mapped[str]
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_on": "kind", "polymorphic_identity": "animal",
        }  # fmt: skip
        words_embedding = Embedding("words", model="tiny", index="none")

    class Cat(Animal):
        __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012
        purr: Mapped[str | None]
        purr_embedding = Embedding("purr", model="tiny", index="none")

    assert sorted(created(engine, Base)) == ["animal_purr", "animal_words"]
    with Session(engine) as session:
        kinds = [Animal, Cat]
        session.add_all([kinds[i % 2](id=i, words=f"w{i}") for i in range(40)])
        session.commit()
        embed(engine)
        query = vector_of("w2").tolist()
        cats = session.scalars(search(Cat.words_embedding, query, k=12)).all()
        assert len(cats) == 12
        assert {type(each) for each in cats} == {Cat}
        both = session.scalars(search(Animal.words_embedding, query, k=40)).all()
        assert {type(each) for each in both} == {Animal, Cat}
        assert session.scalars(search(Cat.purr_embedding, query)).all() == []
    Base.metadata.drop_all(engine)


@pytest.mark.usefixtures("unchanged")
def test_joined_inheritance(engine: Engine) -> None:
    """Embeddings of the parent's table and of the child's."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        words: Mapped[str]
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_on": "kind", "polymorphic_identity": "item",
        }  # fmt: skip
        words_embedding = Embedding("words", model="tiny", index="none")

    class Book(Item):
        __tablename__ = "book"
        __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
        blurb: Mapped[str]
        blurb_embedding = Embedding("blurb", model="tiny", index="none")

    assert sorted(created(engine, Base)) == ["book_blurb", "item_words"]
    with Session(engine) as session:
        session.add_all([Item(id=i, words=f"w{i}") for i in range(20)])
        session.add_all(
            [Book(id=i, words=f"w{i}", blurb=f"b{i}") for i in range(20, 40)]
        )
        session.commit()
        embed(engine)
        query = vector_of("b25").tolist()
        books = session.scalars(
            search(Book.blurb_embedding, query, k=5).where(Book.words != "w30")
        ).all()
        assert (len(books), books[0].id) == (5, 25)
        inherited = search(Book.words_embedding, query, k=15).where(Book.blurb > "b25")
        found = session.scalars(inherited).all()
        assert len(found) == 14
        assert {type(each) for each in found} == {Book}
        flat = aliased(Book, flat=True)
        again = search(flat.words_embedding, query, k=15).where(flat.blurb > "b25")
        assert [b.id for b in session.scalars(again)] == [b.id for b in found]
        everything = with_polymorphic(Item, "*", flat=True)
        rows = search(everything.words_embedding, query, k=40)
        assert {type(each) for each in session.scalars(rows)} == {Item, Book}
        with pytest.raises(EmbeddingError, match=r"aliased\(…, flat=True\)"):
            search(aliased(Book).words_embedding, query)
    Base.metadata.drop_all(engine)


@pytest.mark.usefixtures("unchanged")
def test_dataclasses(engine: Engine) -> None:
    """Attributes that workers write are no arguments of __init__."""

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        __table_args__ = (ForeignKeyConstraint(["parent"], ["page.id"]),)
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        parent: Mapped[int | None] = mapped_column(default=None)
        body_embedding = Embedding("body", model="tiny")
        annotated: Mapped[Any] = Embedding(
            "body", model="tiny", name="other", init=False, repr=False, compare=False
        )
        chunks = Embedding("body", model="tiny", name="page_parts", chunk_tokens=8)

    assert sorted(created(engine, Base)) == ["other", "page_body", "page_parts"]
    with Session(engine) as session:
        session.add(Page(id=1, body="x"))
        session.commit()
        embed(engine)
        page = session.scalars(search(Page.annotated, vector_of("x").tolist())).one()
        assert repr(page).endswith("Page(id=1, body='x', parent=None)")
        assert list(page.body_embedding) == pytest.approx(vector_of("x").tolist())
    Base.metadata.drop_all(engine)


def test_chunks_are_no_field_of_a_dataclass() -> None:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    with pytest.raises(EmbeddingError, match=r"Page\.parts is annotated.*leave"):

        class Page(Base):
            __tablename__ = "page"
            id: Mapped[int] = mapped_column(primary_key=True)
            body: Mapped[str]
            parts: Mapped[list[Chunk]] = Embedding(
                "body", model="tiny", chunk_tokens=8, init=False
            )


def test_vectors_are_never_written_by_accident(engine: Engine) -> None:
    """Objects that are changed and flushed keep the vectors of their rows."""

    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        views: Mapped[int] = mapped_column(default=0)
        body_embedding = Embedding("body", model="tiny", index="none")

    created(engine, Base)
    with Session(engine, expire_on_commit=False) as session:
        page = Page(id=1, body="x")
        session.add(page)
        session.execute(insert(Page), [{"id": 2, "body": "y"}])
        session.commit()
        embed(engine)
        page.views = 7
        session.execute(update(Page).where(Page.id == 2).values(views=8))
        session.commit()
        session.refresh(page, ["body_embedding"])
        assert list(page.body_embedding) == pytest.approx(vector_of("x").tolist())
        order = Page.body_embedding.cosine_distance(vector_of("y"))
        assert session.scalars(select(Page.id).order_by(order)).all() == [2, 1]


def test_checkfirst(engine: Engine) -> None:
    """What is there is left alone; what is gone is not dropped again."""

    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        body_embedding = Embedding("body", model="tiny")

    created(engine, Base)
    with engine.begin() as connection:
        connection.execute(text("SELECT pgembed.drop_embedding('page_body', true)"))
    Base.metadata.create_all(engine)
    assert embeddings(engine) == {}
    Base.metadata.drop_all(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    assert list(embeddings(engine)) == ["page_body"]
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA pgembed CASCADE"))
    Base.metadata.drop_all(engine)
    assert inspect(engine).get_table_names() == []


@pytest.mark.usefixtures("unchanged")
def test_percent_signs_in_names(engine: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Rate(Base):
        __tablename__ = "rate%"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        body_embedding = Embedding("body", model="tiny")

    assert created(engine, Base)["rate%_body"].source == '"rate%"'
    Base.metadata.drop_all(engine)


@pytest.mark.usefixtures("unchanged")
def test_indexes_of_the_application(engine: Engine) -> None:
    """They are created when the vectors are there, by create_all() and by hand."""

    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        __table_args__ = (
            Index(
                "ix_some",
                "body_embedding",
                postgresql_using="hnsw",
                postgresql_ops={"body_embedding": "vector_l2_ops"},
                postgresql_where=text("id > 5"),
            ),
            Index("ix_covers", "body", postgresql_include=["id", "body_embedding"]),
            Index("ix_empty", "id", postgresql_where=text("body_embedding IS NULL")),
        )
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str] = mapped_column(index=True)
        body_embedding = Embedding("body", model="tiny", index="none")
        more = Embedding("body", model="tiny", index="none", name="more")

    created(engine, Base)

    def names() -> set[str | None]:
        return {index["name"] for index in inspect(engine).get_indexes("page")}

    others = {"ix_page_body", "ix_covers", "ix_empty"}
    assert names() == {"ix_some", *others}
    (index,) = (
        each for each in Base.metadata.tables["page"].indexes if each.name == "ix_some"
    )
    index.drop(engine)
    assert names() == others
    index.create(engine)
    assert names() == {"ix_some", *others}
    Base.metadata.drop_all(engine)


def test_schemas_are_translated(engine: Engine) -> None:
    """The tables of a tenant have embeddings of their own."""
    tenants = [
        (schema, page_with(name=f"{schema} body", target_column="v").metadata)
        for schema in ("one", 'it"s')
    ]
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE page (id int PRIMARY KEY, body text)"))
        for schema, _ in tenants:
            connection.execute(CreateSchema(schema))
    for schema, metadata in tenants:
        metadata.create_all(
            engine.execution_options(schema_translate_map={None: schema})
        )
    found = {name: row.source for name, row in embeddings(engine).items()}
    assert found == {"one body": "one.page", 'it"s body': '"it""s".page'}
    for schema, metadata in reversed(tenants):
        # A table of the same name in another schema takes nothing along.
        other = engine.execution_options(schema_translate_map={None: "public"})
        with other.begin() as connection:
            for each in metadata.sorted_tables:
                each.dispatch.before_drop(each, connection)
        assert f"{schema} body" in embeddings(engine)
        metadata.drop_all(engine.execution_options(schema_translate_map={None: schema}))
        assert f"{schema} body" not in embeddings(engine)


def page_with(**options: Any) -> type[DeclarativeBase]:
    """Return the base of a model with an embedding of these options."""

    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding = Embedding(**{"content": "body", "model": "tiny", **options})

    return Base


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "big"}, "'big' is not registered.*pgembed model add big"),
        ({"content": "bdy"}, r"needs column bdy, .*columns are id, body"),
        ({"content": "{id} {bdy}"}, "needs column bdy"),
        ({"dimensions": 384}, r"dimensions=384, but model 'tiny' has 3"),
        ({"index": "flat"}, r"index is 'flat'.*hnsw, ivfflat, none"),
        ({"chunk_tokens": 5000}, "chunk_tokens is from 8"),
        ({"comment": "x"}, "COMMENT ON COLUMN in a migration"),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_errors_of_create_all(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    """They say what to do; nothing is created."""
    with pytest.raises(EmbeddingError, match=f"(?s){message}"):
        page_with(**options).metadata.create_all(engine)


def test_without_pgembed(empty_dsn: str) -> None:
    """create_all says how to install it."""
    from sqlalchemy import create_engine

    from tests.integration.sqlalchemy.conftest import url

    engine = create_engine(url(empty_dsn))
    with pytest.raises(EmbeddingError, match=r"'pgembed install', or op\.install_pgem"):
        page_with().metadata.create_all(engine)
    engine.dispose()
