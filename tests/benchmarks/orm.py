"""What the ORM costs on top of a search: ``python -m tests.benchmarks.orm``.

search() through a Session that reads entities, against the very SQL it makes: as text
through psycopg, and as text through the same Session, which reads entities from it.
What the latter takes more than psycopg is SQLAlchemy's own. Milliseconds, medians over
queries that are asked each way in turn; statements are executed as an application
does, made anew for each query, and making them is a column of its own.
And search_batch() of many statements, against executing them one by one.
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
from sqlalchemy import (
    ColumnClause,
    Engine,
    Float,
    column,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed.postgres.connection import connect
from pgembed.sqlalchemy import Embedding, search, search_batch
from tests.harness.models import register_model
from tests.harness.server import running_server

DIMENSIONS = 384
_BATCHES = 3


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
        print(f"{'filter':20}{'psycopg':>9}{'SQLAlchemy':>17}{'ORM':>17}{'made':>8}")
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
            found = Comparison(session, raw)
            for vector in vectors:
                found.ask(change, vector.tolist())
            print(f"{name:20}{found}")
    engine.dispose()


class Comparison:
    """The same searches in three ways, in turn."""

    def __init__(self, session: Session, raw: psycopg.Connection[Any]) -> None:
        assert session.bind is not None
        self.session, self.raw, self.bind = session, raw, session.bind
        self.times: dict[str, list[float]] = {
            way: [] for way in ("making", "psycopg", "SQLAlchemy", "ORM")
        }

    def __str__(self) -> str:
        """Return the medians in milliseconds, and what is more than psycopg."""
        median = {way: statistics.median(times) for way, times in self.times.items()}
        plain = median["psycopg"]
        more = [
            f"{median[way]:9.2f}{median[way] / plain - 1:8.1%}"
            for way in ("SQLAlchemy", "ORM")
        ]
        return f"{plain:9.2f}{''.join(more)}{median['making']:8.2f}"

    def ask(self, change: Callable[[Any], Any], vector: list[float]) -> None:
        """Ask one query each way; they must agree."""
        statement = self._timed(
            "making", lambda: change(search(Doc.body_embedding, vector))
        )
        compiled = statement.compile(
            self.bind, compile_kwargs={"render_postcompile": True}
        )
        query, values = str(compiled).encode(), bound(compiled)
        entities = as_text(str(compiled))
        ways: dict[str, Callable[[], list[int]]] = {
            "psycopg": lambda: [
                row[0] for row in self.raw.execute(query, values).fetchall()
            ],
            "SQLAlchemy": lambda: [
                doc.id for doc, _ in self.session.execute(entities, values)
            ],
            "ORM": lambda: [doc.id for doc, _ in self.session.execute(statement)],
        }
        first = len(self.times["making"]) % 3
        order = [*ways, *ways][first : first + 3]
        found = {tuple(self._timed(way, ways[way])) for way in order}
        assert len(found) == 1

    def _timed(self, way: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.times[way].append(1000 * (time.perf_counter() - start))
        self.session.expunge_all()
        return result


@functools.cache
def as_text(query: str) -> Any:
    """Return SQL with psycopg's placeholders as a statement that reads entities."""
    plain = query.replace("%%", "%").replace("::", r"\:\:")
    given = text(re.sub(r"%\((\w+)\)s", r":\1", plain))
    distance: ColumnClause[float] = column("distance", Float)
    columns = given.columns(Doc.id, Doc.title, Doc.body, Doc.year, distance)
    return select(Doc, distance).from_statement(columns)


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

    def made() -> list[Any]:
        return [
            changes[i % 4](search(Doc.body_embedding, vector, recall=1), i // 4 % 25)
            for i, vector in enumerate(vectors)
        ]

    times = []
    with Session(engine) as session:
        search_batch(session, made()[:300])
        for statement in made()[:100]:
            session.execute(statement).all()
        for _ in range(_BATCHES):
            statements = made()
            session.expunge_all()
            start = time.perf_counter()
            together = search_batch(session, statements)
            times.append(time.perf_counter() - start)
        together_ids = [[(doc.id, far) for doc, far in rows] for rows in together]
        session.expunge_all()
        statements = made()
        start = time.perf_counter()
        singly = [
            [(doc.id, far) for doc, far in session.execute(statement)]
            for statement in statements
        ]
        one_by_one = time.perf_counter() - start
    batch = statistics.median(times)
    engine.dispose()
    pairs = list(zip(singly, together_ids, strict=True))
    same = sum([i for i, _ in one] == [i for i, _ in other] for one, other in pairs)
    ties = sum(near(one, other) for one, other in pairs) - same
    print(
        f"{count} statements, 100 filters: one by one {one_by_one:.2f} s, search_batch "
        f"{batch:.2f} s, {one_by_one / batch:.1f} times as fast; {same} same answers, "
        f"{ties} with near ties the other way round"
    )


def near(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    """Whether two answers agree but for ties.

    pgvector adds up in float32 and a batch in float64, so that they may differ in the
    order of rows whose distances differ by less than float32 can tell.
    """
    return len(one) == len(other) and all(
        abs(a - b) < 1e-7 for (_, a), (_, b) in zip(one, other, strict=True)
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
