"""What the ORM costs on top of a search: ``python -m tests.benchmarks.orm``.

search() through a Session that reads entities, against the very SQL it makes, as text
through psycopg. Milliseconds, medians over queries that are asked both ways in turn.
And search_batch() of many statements, against executing them one by one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import psycopg
from sqlalchemy import Engine, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed.postgres.connection import connect
from pgembed.sqlalchemy import Embedding, search, search_batch
from tests.harness.models import register_model
from tests.harness.server import running_server

DIMENSIONS = 384


class Base(DeclarativeBase):
    """The base of the model."""


class Doc(Base):
    """A row with a vector."""

    __tablename__ = "doc"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str]
    year: Mapped[int] = mapped_column(index=True)
    body_embedding = Embedding("body", model="tiny", index="none")


def main() -> None:
    """Fill a table, measure three filters, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--batch", type=int, default=5000, help="statements")
    arguments = parser.parse_args()
    with (
        running_server() as databases,
        databases.database(databases.installed_template()) as name,
    ):
        dsn = databases.dsn(name)
        fill(dsn, arguments.rows)
        print(f"{arguments.rows} rows, {DIMENSIONS} dimensions, k = 10")
        print(f"{'filter':24}{'psycopg':>10}{'ORM':>10}{'more':>8}")
        measure(dsn, arguments.queries)
        measure_batch(dsn, arguments.batch)


def engine_of(dsn: str) -> Engine:
    """Return an engine for a DSN."""
    return create_engine(dsn.replace("postgresql://", "postgresql+psycopg://", 1))


def fill(dsn: str, rows: int) -> None:
    """Make the table, with random vectors and an HNSW index."""
    with connect(dsn, purpose="benchmark") as connection:
        register_model(connection, dimensions=DIMENSIONS)
    engine = engine_of(dsn)
    Base.metadata.create_all(engine)
    draw = np.random.default_rng(0)
    with Session(engine) as session:
        for first in range(0, rows, 1000):
            vectors = draw.standard_normal((1000, DIMENSIONS)).astype(np.float32)
            session.execute(
                insert(Doc),
                [
                    {
                        "id": first + i,
                        "title": f"title {first + i}",
                        "body": "words " * 20,
                        "year": (first + i) % 100,
                        "body_embedding": vector,
                    }
                    for i, vector in enumerate(vectors)
                ],
            )
        session.commit()
        session.execute(
            text("CREATE INDEX ON doc USING hnsw (body_embedding vector_cosine_ops)")
        )
        session.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE doc"))
    engine.dispose()


def measure(dsn: str, queries: int) -> None:
    """Ask each query both ways, in turn, and print the medians."""
    engine = engine_of(dsn)
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((queries, DIMENSIONS)).astype(np.float32)
    filters: dict[str, Callable[[Any], Any]] = {
        "none": lambda s: s,
        "year = 7 (1 %)": lambda s: s.where(Doc.year == 7),
        "year in (…) (5 %)": lambda s: s.where(Doc.year.in_([1, 2, 3, 4, 5])),
        "year < 50 (50 %)": lambda s: s.where(Doc.year < 50),
    }
    with Session(engine) as session, psycopg.connect(dsn) as raw:
        for name, change in filters.items():
            # One at a time: an application does not keep them, either.
            statements = (
                change(search(Doc.body_embedding, v.tolist())) for v in vectors
            )
            orm, plain = compare(session, raw, statements)
            print(f"{name:24}{plain:10.2f}{orm:10.2f}{orm / plain - 1:8.1%}")
    engine.dispose()


def compare(
    session: Session, raw: psycopg.Connection[Any], statements: Iterable[Any]
) -> tuple[float, float]:
    """Return the medians, in milliseconds, of the ORM and of the text alone."""
    assert session.bind is not None
    times: dict[str, list[float]] = {"orm": [], "raw": []}
    for number, statement in enumerate(statements):
        compiled = statement.compile(
            session.bind, compile_kwargs={"render_postcompile": True}
        )
        query, values = str(compiled).encode(), bound(compiled)
        for way in ("orm", "raw") if number % 2 else ("raw", "orm"):
            start = time.perf_counter()
            if way == "orm":
                found = [article.id for article, _ in session.execute(statement)]
            else:
                again = [row[0] for row in raw.execute(query, values).fetchall()]
            times[way].append(1000 * (time.perf_counter() - start))
            session.expunge_all()
        assert found == again
    return statistics.median(times["orm"]), statistics.median(times["raw"])


def measure_batch(dsn: str, count: int) -> None:
    """Answer statements with 100 distinct filters together and singly; print both."""
    engine = engine_of(dsn)
    draw = np.random.default_rng(2)
    vectors = draw.standard_normal((count, DIMENSIONS)).astype(np.float32)
    changes: list[Callable[[Any, int], Any]] = [
        lambda s, year: s.where(Doc.year == year),
        lambda s, year: s.where(Doc.year < year),
        lambda s, year: s.where(Doc.year.in_([year, year + 1, year + 2])),
        lambda s, year: s.where(Doc.year > year, Doc.title.like("%7%")),
    ]
    statements = [
        changes[i % 4](search(Doc.body_embedding, vector, recall=1), i // 4 % 25)
        for i, vector in enumerate(vectors)
    ]
    with Session(engine) as session:
        search_batch(session, statements[:300])
        for statement in statements[:100]:
            session.execute(statement).all()
        session.expunge_all()
        start = time.perf_counter()
        together = search_batch(session, statements)
        batch = time.perf_counter() - start
        together_ids = [[doc.id for doc, _ in rows] for rows in together]
        session.expunge_all()
        start = time.perf_counter()
        singly = [
            [doc.id for doc, _ in session.execute(statement)]
            for statement in statements
        ]
        one_by_one = time.perf_counter() - start
    engine.dispose()
    same = sum(a == b for a, b in zip(singly, together_ids, strict=True))
    print(
        f"{count} statements, 100 filters: one by one {one_by_one:.2f} s, search_batch "
        f"{batch:.2f} s, {one_by_one / batch:.0f} times as fast; {same} same answers"
    )


def bound(compiled: Any) -> dict[str, Any]:
    """Return the parameters as the driver gets them."""
    processors = compiled._bind_processors
    return {
        name: processors[name](value) if name in processors else value
        for name, value in compiled.params.items()
    }


if __name__ == "__main__":
    main()
