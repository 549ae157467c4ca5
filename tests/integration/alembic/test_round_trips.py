"""Autogenerate, upgrade, nothing left, downgrade: the catalog is what it was."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import alembic
import pytest
from alembic.autogenerate import compare
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    func,
    text,
)
from sqlalchemy.orm import declarative_base, mapped_column

from pgembed.errors import EmbeddingError
from pgembed.sqlalchemy import Embedding
from tests.integration.alembic.project import Project

Model = Callable[[], MetaData]

CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
}


def model(schema: str | None = None, **attributes: Any) -> Model:
    """Return a model of table article, with more attributes than these."""

    def make() -> MetaData:
        base: Any = declarative_base(
            metadata=MetaData(schema=schema, naming_convention=CONVENTION)
        )
        columns = {
            "__tablename__": "article",
            "id": mapped_column(Integer, primary_key=True),
            "title": mapped_column(String(80)),
            "body": mapped_column(Text, index=True),
            **{
                name: value() if callable(value) else value
                for name, value in attributes.items()
            },
        }
        type("Article", (base,), {k: v for k, v in columns.items() if v is not None})
        metadata = base.metadata
        assert isinstance(metadata, MetaData)
        return metadata

    return make


def nothing() -> MetaData:
    """Return a model without tables."""
    return MetaData()


def embedding(**options: Any) -> Callable[[], Any]:
    """Return an embedding, made anew for each model."""
    return lambda: Embedding(**{"content": "body", "model": "tiny", **options})


def indexed(*indexes: Callable[[Any], Index]) -> Model:
    """Return a model of items with vectors of their own and these indexes."""

    def make() -> MetaData:
        metadata = MetaData(naming_convention=CONVENTION)
        from sqlalchemy import Table

        table = Table(
            "item",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("state", String),
            Column("v", VECTOR(3)),
            Column("h", HALFVEC(4)),
        )
        for index in indexes:
            index(table)
        return metadata

    return make


def hnsw(
    name: str = "ix_v",
    column: str = "v",
    ops: str = "vector_l2_ops",
    where: str | None = None,
    **options: Any,
) -> Callable[[Any], Index]:
    """Return an HNSW index of an item."""
    return lambda table: Index(
        name,
        table.c[column],
        postgresql_using="hnsw",
        postgresql_ops={column: ops},
        postgresql_with=options,
        postgresql_where=None if where is None else text(where),
    )


def ivfflat(table: Any, ops: Any = None) -> Index:
    """Return an IVFFlat index, with its default class unless another is given."""
    return Index(
        "ix_v",
        table.c.v,
        postgresql_using="ivfflat",
        postgresql_ops=ops or {},
        postgresql_with={"lists": 3},
    )


def of_expression(table: Any) -> Index:
    """Return an index of an expression."""
    return Index(
        "ix_e",
        func.subvector(table.c.v, 1, 2).cast(VECTOR(2)).label("e"),
        postgresql_using="hnsw",
        postgresql_ops={"e": "vector_cosine_ops"},
    )


ALEMBIC = tuple(map(int, alembic.__version__.split(".")[:2]))

PLAIN = model()
EMBEDDED = model(body_embedding=embedding())
CHUNKED = model(chunks=embedding(chunk_tokens=16, chunk_overlap=2))


def own(storage: str = "vector") -> Model:
    """Return a model with an index of the application's own on its vectors."""
    return model(
        body_embedding=embedding(index="none", storage=storage),
        __table_args__=lambda: (
            Index(
                "ix_own",
                "body_embedding",
                postgresql_using="hnsw",
                postgresql_ops={"body_embedding": f"{storage}_ip_ops"},
                postgresql_where=text("id > 5"),
            ),
        ),
    )


OWN = own()
LIVE = "state = 'live' AND id > 5"

CASES: dict[str, tuple[Model, Model]] = {
    "table and embedding": (nothing, EMBEDDED),
    "table and chunks": (nothing, CHUNKED),
    "embedding of a table": (PLAIN, EMBEDDED),
    "chunks of a table": (PLAIN, CHUNKED),
    "table with an index of its own on the vectors": (nothing, OWN),
    "embedding with an index of its own": (PLAIN, OWN),
    "storage with an index of its own": (OWN, own("halfvec")),
    "index of its own": (model(body_embedding=embedding(index="none")), OWN),
    "all options": (
        PLAIN,
        model(
            one=embedding(
                content="{title}: 100% {body} 'x'",
                name="it's",
                target_column='The "vector"',
                storage="halfvec",
                index="ivfflat",
                on_change="clear",
            ),
            two=embedding(content="title", storage="bit", index="none", name="two"),
        ),
    ),
    "several at once": (
        EMBEDDED,
        model(
            title_embedding=embedding(content="title"),
            chunks=embedding(chunk_tokens=9, name="parts"),
        ),
    ),
    "vectors of the application's own": (
        model(body_embedding=lambda: mapped_column(VECTOR(3))), EMBEDDED,
    ),
    "index that includes the vectors": (
        PLAIN,
        model(
            body_embedding=embedding(index="none"),
            __table_args__=lambda: (
                Index("ix_own", "title", postgresql_include=["id", "body_embedding"]),
            ),
        ),
    ),
    "index of the rows with vectors": (
        PLAIN,
        model(
            body_embedding=embedding(index="none"),
            __table_args__=lambda: (
                Index(
                    "ix_own", "title", postgresql_where=text("body_embedding IS NULL")
                ),
            ),
        ),
    ),
    "index": (EMBEDDED, model(body_embedding=embedding(index="none"))),
    "index of another kind": (
        EMBEDDED, model(body_embedding=embedding(index="ivfflat")),
    ),
    "on_change": (EMBEDDED, model(body_embedding=embedding(on_change="clear"))),
    "content": (
        EMBEDDED,
        model(body_embedding=embedding(content="{title} {body}", name="article_body")),
    ),
    "content of chunks": (
        CHUNKED,
        model(
            chunks=embedding(
                content="title", name="article_body", chunk_tokens=16, chunk_overlap=2
            )
        ),
    ),
    "model": (EMBEDDED, model(body_embedding=embedding(model="wide"))),
    "storage": (EMBEDDED, model(body_embedding=embedding(storage="halfvec"))),
    "size of chunks": (CHUNKED, model(chunks=embedding(chunk_tokens=32))),
    "from a vector to chunks": (EMBEDDED, CHUNKED),
    "another column": (EMBEDDED, model(vector=embedding())),
    "another name": (EMBEDDED, model(body_embedding=embedding(name="other"))),
    "content that goes": (
        EMBEDDED,
        model(
            body=None,
            text=lambda: mapped_column(Text),
            body_embedding=embedding(content="text", name="article_body"),
        ),
    ),
    "another schema": (model("app"), model("app", body_embedding=embedding())),
    "chunks in another schema": (
        model("app"), model("app", parts=embedding(chunk_tokens=8)),
    ),
    "schema by name": (model("public"), model("public", body_embedding=embedding())),
    "table that goes, in another schema": (
        model("app", body_embedding=embedding(), parts=embedding(
            chunk_tokens=8, name="parts")),
        nothing,
    ),
    "vector index": (indexed(), indexed(hnsw(m=8, ef_construction=32, where=LIVE))),
    "index of halfvec": (indexed(), indexed(hnsw("ix_h", "h", "halfvec_ip_ops"))),
    "index of an expression": (indexed(), indexed(of_expression)),
    "ivfflat": (indexed(), indexed(ivfflat)),
    "operator class": (indexed(hnsw()), indexed(hnsw(ops="vector_cosine_ops"))),
    "with": (indexed(hnsw(m=8)), indexed(hnsw(m=9))),
    "with nothing": (indexed(hnsw(m=8, where=LIVE)), indexed(hnsw(where=LIVE))),
    "where": (indexed(hnsw()), indexed(hnsw(where="state IN ('live', 'new')"))),
    "another where": (indexed(hnsw(where="id > 5")), indexed(hnsw(where="id < 5"))),
    "default class by its name": (
        indexed(), indexed(functools.partial(ivfflat, ops={"v": "vector_l2_ops"})),
    ),
    "where, as it is not written back": (
        indexed(hnsw()), indexed(hnsw(where="state != 'a' AND id > -5 AND id <> -1.5")),
    ),
    "method": (indexed(hnsw()), indexed(ivfflat)),
    "all of an index": (
        indexed(hnsw(m=8, where="id BETWEEN 1 AND 2 AND state IS NOT NULL")),
        indexed(hnsw(ops="vector_ip_ops", m=5, ef_construction=10, where=LIVE)),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _more(project: Project) -> None:
    """Add a schema, and a model of other dimensions."""
    with project.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA app"))
        connection.execute(
            text(
                """
                INSERT INTO pgembed.model
                    (name, hash, source, dimensions, distance, max_tokens, options)
                SELECT 'wide', sha256('wide'), source, 5, 'l2', max_tokens, options
                FROM pgembed.model
                """
            )
        )


@pytest.mark.parametrize("backwards", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_round_trip(
    project: Project, case: tuple[Model, Model], backwards: bool
) -> None:
    """From one model to another, either way, and back, and again."""
    if case is CASES["index of an expression"] and ALEMBIC < (1, 20):
        pytest.skip("Alembic before 1.20 loses the operator class of an expression")
    before, after = reversed(case) if backwards else case
    project.revise(before(), 1)
    project.upgrade()
    assert project.differences(before()) == []
    first = project.catalog()
    written = project.revise(after(), 2)
    assert "pass" not in written.partition("def upgrade")[2]
    project.upgrade()
    assert project.differences(after()) == []
    second = project.catalog()
    project.downgrade("0001")
    assert project.differences(before()) == []
    assert project.catalog() == first
    project.upgrade()
    assert project.catalog() == second
    project.downgrade("base")
    assert project.differences(nothing()) == []


def test_vectors_outlive_their_embedding(project: Project) -> None:
    """A column that the model keeps, or has made an embedding of, keeps its values."""
    plain = model(body_embedding=lambda: mapped_column(VECTOR(3)))
    project.revise(plain(), 1)
    project.upgrade()
    with project.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO article (id, body_embedding) VALUES (1, '[1,2,3]')")
        )
    for number, after in ((2, EMBEDDED), (3, plain)):
        project.revise(after(), number)
        project.upgrade()
    project.downgrade("0001")
    project.upgrade()
    with project.engine.connect() as connection:
        kept = connection.scalar(text("SELECT body_embedding::text FROM article"))
    assert kept == "[1,2,3]"


def test_what_pgembed_made_is_not_called_removed(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither columns and tables nor indexes that workers build."""
    if ALEMBIC < (1, 18):
        pytest.skip("Alembic before 1.18 compares before anything can be hidden")
    made = model(vector=embedding(), chunks=embedding(name="c", chunk_tokens=8))
    project.revise(made(), 1)
    project.upgrade()
    query = """
        SELECT s.statement FROM pgembed.embedding AS e,
            pgembed._index_statements(e.id) AS s
    """
    with project.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        for (statement,) in connection.execute(text(query)).all():
            connection.exec_driver_sql(statement)
    caplog.set_level(logging.INFO, "alembic.autogenerate")
    assert project.differences(made()) == []
    assert "Detected" not in caplog.text


def test_filters_that_another_plugin_asks(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its items are none of SQLAlchemy's: they have no table."""
    comparators = compare.comparators.branch()
    monkeypatch.setattr(compare, "comparators", comparators)
    included: list[bool] = []

    @comparators.dispatch_for("schema")
    def ask(context: Any, *_: object) -> None:
        for kind in ("function", "extension"):
            kept = context.run_object_filters(object(), "f", kind, True, None)
            included.append(kept)

    assert project.differences(nothing()) == []
    assert included == [True, True]


def test_one_name_in_two_schemas(project: Project) -> None:
    """Names of embeddings are unique in a database: one would be lost."""
    metadata = MetaData()
    for schema in ("app", "app2"):
        with project.engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
        for table in model(schema, body_embedding=embedding())().tables.values():
            table.to_metadata(metadata)
    with pytest.raises(EmbeddingError, match=r"app\.article .*app2\.article .*name="):
        project.revise(metadata, 1)


def test_dimensions_that_the_model_has_not(project: Project) -> None:
    """The type of the mapped column would be another than that of the vectors."""
    with pytest.raises(EmbeddingError, match=r"says dimensions=99, .* has 3"):
        project.differences(model(body_embedding=embedding(dimensions=99))())


def test_one_name_for_two(project: Project) -> None:
    """A vector and chunks of one column have one default name."""
    both = model(vector=embedding(), chunks=embedding(chunk_tokens=8))
    with pytest.raises(EmbeddingError, match=r"article \(vector\) and .*\(chunks\)"):
        project.revise(both(), 1)


def test_indexes_that_the_application_excludes(project: Project) -> None:
    """They are compared as Alembic compares, with include_object."""
    project.revise(indexed(hnsw())(), 1)
    project.upgrade()
    changed = indexed(hnsw(ops="vector_ip_ops"))()
    assert [each[0] for each in project.differences(changed)] == [
        "remove_index",
        "add_index",
    ]
    seen = []

    def include(item: Any, name: str, kind: str, reflected: bool, other: Any) -> bool:
        if kind == "index":
            seen.append((name, reflected, other.name))
        return kind != "index"

    project.options["include_object"] = include
    assert project.differences(changed) == []
    assert seen == [("ix_v", False, "ix_v")]
