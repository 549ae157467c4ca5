"""Floats in criteria, in sessions that write them with fewer digits than they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    REAL,
    Engine,
    Float,
    Numeric,
    bindparam,
    create_engine,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
)
from sqlalchemy.types import NullType

from pgembed.sqlalchemy import search, search_batch
from tests.harness.server import Databases
from tests.integration.sqlalchemy.conftest import url

# With fifteen digits 0.3, with one digit 0.3 as well.
SUM, THIRD = 0.1 + 0.2, float(np.float32(1 / 3))


class Base(DeclarativeBase):
    """The base of measures."""


class Measure(Base):
    """A table of floats."""

    __tablename__ = "measure"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Float)
    small: Mapped[float] = mapped_column(REAL)
    many: Mapped[list[float]] = mapped_column(ARRAY(Float))
    v: Mapped[Any] = mapped_column(VECTOR(2))


other = aliased(Measure)
CRITERIA: dict[str, Callable[[], Any]] = {
    "float8": lambda: Measure.value == SUM,
    "not float8": lambda: Measure.value != 0.3,
    "float8 of NumPy": lambda: Measure.value == np.float64(SUM),
    "real": lambda: Measure.small == THIRD,
    "array": lambda: Measure.many == [SUM, None, 1.0],
    "an element": lambda: literal(SUM) == Measure.many[1],
    "in": lambda: Measure.value.in_([SUM, 7.0]),
    "not in": lambda: Measure.value.not_in([0.3, 7.0]),
    "in pairs": lambda: tuple_(Measure.id, Measure.value).in_([(1, SUM), (2, SUM)]),
    "or": lambda: or_(Measure.value == SUM, Measure.small == -THIRD),
    "between": lambda: Measure.value.between(SUM, SUM + 1e-16),
    "a text": lambda: text("measure.value = :x").bindparams(x=SUM),
    "no type": lambda: Measure.value == literal(SUM, NullType()),
    "numeric": lambda: Measure.value == literal(SUM, Numeric()),
    "a subquery": lambda: Measure.id.in_(select(other.id).where(other.value == SUM)),
    "beside NULL": lambda: or_(
        Measure.value == bindparam("none", None, type_=Float), Measure.value == SUM
    ),
}


@pytest.fixture(scope="module", params=[0, -15])
def measures(server: Databases, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Return an engine whose sessions write floats short; of four rows one is SUM."""
    with server.database(server.installed_template()) as name:
        engine = create_engine(
            url(server.dsn(name)),
            connect_args={"options": f"-c extra_float_digits={request.param}"},
        )
        Base.metadata.create_all(engine)
        rows = [(1, SUM, THIRD), (2, 0.3, 0.3), (3, 0.3, 0.3), (4, 0.3, 0.3)]
        with engine.begin() as connection:
            connection.execute(
                insert(Measure),
                [
                    {
                        "id": i,
                        "value": a,
                        "small": b,
                        "many": [a, None, 1.0],
                        "v": [1, i],
                    }
                    for i, a, b in rows
                ],
            )
            connection.execute(text("SELECT pgembed.adopt_vectors('measure', 'v')"))
        yield engine
        engine.dispose()


@pytest.mark.parametrize("criteria", CRITERIA)
def test_floats_are_compared_as_they_are(measures: Engine, criteria: str) -> None:
    statement = search(Measure.v, [1.0, 3.0], k=4).where(CRITERIA[criteria]())
    with Session(measures) as session:
        plain = session.scalars(select(Measure.id).where(CRITERIA[criteria]())).all()
        assert plain == [1]
        assert [row[0].id for row in session.execute(statement)] == plain
        (found,) = search_batch(session, [statement])
        assert [row[0].id for row in found] == plain
