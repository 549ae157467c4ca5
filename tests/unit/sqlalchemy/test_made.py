"""Statements are told apart by their criteria as they are by all they consist of."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import and_, exists, literal, or_
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    defer,
    mapped_column,
    with_loader_criteria,
)
from sqlalchemy.sql.cache_key import HasCacheKey

from pgembed.sqlalchemy import Embedding, search
from pgembed.sqlalchemy.made import identify


class Base(DeclarativeBase):
    """The base of the models."""


class Doc(Base):
    """A row with two embeddings."""

    __tablename__ = "doc"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    year: Mapped[int]
    body_embedding = Embedding("body", model="tiny")
    other_embedding = Embedding("body", model="tiny", name="other")


class Note(Base):
    """Another table."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    body_embedding = Embedding("body", model="tiny")


ALIAS, OTHER = aliased(Doc), aliased(Doc)
Make = Callable[[int], Any]


def plain(**arguments: Any) -> Any:
    """Return a search without criteria."""
    return search(Doc.body_embedding, "words", **arguments)


ONLY_CRITERIA: tuple[Make, ...] = (
    lambda n: plain(k=n),
    lambda n: search(Doc.body_embedding, [n, 1]),
    lambda n: search(Doc.other_embedding, f"{n}"),
    lambda n: search(Note.body_embedding, f"{n}"),
    lambda n: search(Doc.__table__.c.body_embedding, f"{n}"),
    lambda n: plain(recall=n / 10),
    lambda n: plain(filter={"year": n}),
    lambda n: plain(mode=f"{n}"),
    lambda n: search(Doc.body_embedding, literal("words")).where(Doc.year == n),
    lambda n: plain().where(Doc.year == n),
    lambda n: plain().where(Doc.id == n),
    lambda n: plain().where(Doc.year < n),
    lambda n: plain().where(Doc.year == n, Doc.id == n),
    lambda n: plain().where(Doc.year == n).where(Doc.id == n),
    lambda n: plain().where(and_(Doc.year == n, Doc.id == n)),
    lambda n: plain().where(or_(Doc.year == n, Doc.id == n)),
    lambda n: plain().where(Doc.year.in_(range(n))),
    lambda n: plain().where(exists().where(Note.id == Doc.id, Note.id > n)),
    lambda n: plain().where(ALIAS.year == n),
    lambda n: plain().where(ALIAS.year == n, ALIAS.id == n),
    lambda n: plain().where(ALIAS.year == n, OTHER.id == n),
)
MORE: tuple[Make, ...] = (
    lambda n: plain().limit(n),
    lambda n: plain().where(Doc.year == n).limit(n),
    lambda n: plain().options(defer(Doc.body)).where(Doc.year == n),
    lambda n: plain().options(with_loader_criteria(Doc, Doc.year == n)),
    lambda n: plain().join(Note, Note.id == Doc.id).where(Note.id == n),
    lambda n: plain().order_by(Doc.year).where(Doc.year == n),
    lambda n: plain().with_for_update().where(Doc.year == n),
    lambda n: plain().add_columns(Doc.id).where(Doc.year == n),
    lambda n: search(ALIAS.body_embedding, "words").where(ALIAS.year == n),
    lambda n: search(ALIAS.body_embedding, "words").where(OTHER.year == n),
)


def whole(statement: Any) -> Any:
    """Return the cache key of a statement, which it does not keep."""
    return HasCacheKey._generate_cache_key(copy.copy(statement))


def test_the_same_are_of_one_shape() -> None:
    statements = [make(n) for make in (*ONLY_CRITERIA, *MORE) for n in (1, 2)]
    for one, other in itertools.combinations(statements, 2):
        same = whole(one).key == whole(other).key
        assert (identify(one)[0] == identify(other)[0]) == same, f"{one}\n{other}"


@pytest.mark.parametrize("make", [*ONLY_CRITERIA, *MORE])
def test_no_parameter_is_missed(make: Make) -> None:
    statement = make(3)
    _, parameters = identify(statement)
    assert set(map(id, parameters)) == set(map(id, whole(statement).bindparams))


def test_only_criteria_are_read() -> None:
    for make in ONLY_CRITERIA:
        statement = make(3)
        assert identify(statement)[0] != whole(statement).key, statement


def test_with_more_than_criteria_all_is_read() -> None:
    for make in MORE:
        statement = make(3)
        assert identify(statement)[0] == whole(statement).key, statement


def test_the_distance_as_a_criterion() -> None:
    one, other = (plain().where(plain().selected_columns.distance < n) for n in (1, 2))
    assert identify(one)[0] == identify(other)[0]
    near = plain()
    bounded = near.where(near.selected_columns.distance < 1)
    assert identify(bounded)[0] != identify(near)[0]
