"""The entities that a batch found, loaded by key."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    FromClause,
    Row,
    Select,
    and_,
    bindparam,
    cast,
    column,
    func,
    inspect,
    select,
)
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import Session
from sqlalchemy.types import UserDefinedType

from pgembed.sqlalchemy.asked import Asked, Nearest
from pgembed.sqlalchemy.executor import Executor
from pgembed.sqlalchemy.shape import Shape

_BLOCK = 20_000


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows by key, without their distances; keys of several columns are tuples."""

    names: list[str]
    rows: dict[Any, list[Any]]

    @classmethod
    def load(cls, execute: Executor, asked: Asked, keys: Iterable[Any]) -> Rows:
        """Load rows the way the statement *asked* does: with its options."""
        wanted = list(keys)
        rows: dict[Any, list[Any]] = {}
        names: list[str] = []
        entity: list[Any]
        for start in range(0, max(1, len(wanted)), _BLOCK):
            part = wanted[start : start + _BLOCK]
            result = execute.entities(_by_key(asked.shape, asked.statement, part))
            names = list(result.keys())[:-1]
            for *entity, place in result:
                rows[part[place - 1]] = entity
        if isinstance(execute.session, Session):
            names = _names(asked.statement) or names
        return cls([*names, asked.shape.signature.result], rows)

    def of(self, found: Iterable[Nearest]) -> list[list[Row[Any, float]]]:
        """Return rows with distances; one that is not there any more is left out."""
        known = self.rows
        parts = [
            [
                (*known[key], distance)
                for key, distance in zip(keys, distances, strict=True)
                if key in known
            ]
            for keys, distances in found
        ]
        together = itertools.chain.from_iterable(parts)
        names = SimpleResultMetaData(self.names)
        made: IteratorResult[Any, float] = IteratorResult(names, together)
        rows = iter(made)
        return [list(itertools.islice(rows, len(part))) for part in parts]


def _names(statement: Select[Any]) -> list[str]:
    """The name of the entity in a row; nothing for a table's columns."""
    described = statement.column_descriptions[0]
    if described.get("entity") is None:
        return []
    return [described["name"] or inspect(described["entity"]).mapper.class_.__name__]


def _by_key(shape: Shape, statement: Select[Any], keys: Sequence[Any]) -> Select[Any]:
    places = _places(shape, keys)
    match = and_(
        *(
            key == places.c[name]
            for key, name in zip(shape.keys, shape.signature.keys, strict=True)
        )
    )
    options = dict(statement.get_execution_options())
    options.pop("yield_per", None)
    return (
        select(shape.entity, places.c.place)
        .join_from(shape.entity, places, match)
        .options(*statement._with_options)
        .execution_options(**options)
    )


def _places(shape: Shape, keys: Sequence[Any]) -> FromClause:
    """The keys as a table, with their places, counted from 1."""
    parts = list(map(list, zip(*keys, strict=True))) if len(shape.keys) > 1 else [keys]
    names = list(shape.signature.keys)
    return (
        func.unnest(
            *(
                _array(key, parts[i] if parts else [])
                for i, key in enumerate(shape.keys)
            )
        )
        .table_valued(
            *(
                column(name, key.type)
                for name, key in zip(names, shape.keys, strict=True)
            ),
            with_ordinality="place",
        )
        .render_derived()
    )


class _AsGiven(UserDefinedType[Any]):
    """What came from the driver and goes back to it."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT[]"


def _array(key: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[Any]:
    parameter = bindparam(None, list(values), _AsGiven(), unique=True)
    return cast(parameter, ARRAY(key.type))
