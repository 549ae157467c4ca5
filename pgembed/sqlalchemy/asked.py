"""The statements of a batch, read."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
from sqlalchemy import BindParameter, Select, select
from sqlalchemy.sql import visitors
from sqlalchemy.sql.cache_key import HasCacheKey

from pgembed.batch.limits import check_recall
from pgembed.errors import FilterError, SettingError
from pgembed.sqlalchemy.made import identify
from pgembed.sqlalchemy.search import MODE, RECALL
from pgembed.sqlalchemy.shape import Shape, final_froms, refused

Nearest = tuple[list[Any], list[float]]
"""Keys and distances, nearest first."""

# Python calls values of these equal that PostgreSQL gets as different texts: times of
# two offsets, 1.10 and 1.1, 0.0 and -0.0.
_EQUAL_BUT_DIFFERENT = (datetime.datetime, datetime.time, Decimal, float)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A statement: its shape, and its values."""

    statement: Select[Any]
    shape: Shape
    values: Sequence[Any]
    criteria: Hashable
    """The same for statements with the same criteria."""
    loaded_with: Hashable
    """The same for statements whose entities are loaded in the same way."""

    @property
    def query(self) -> Any:
        """A text or a QueryVector."""
        return self.shape.query.of(self.values)

    def argument(self, name: str) -> Any:
        """Return an argument of search()."""
        found = self.shape.arguments.get(name)
        return None if found is None else found.of(self.values)

    @property
    def recall(self) -> float:
        """The share of the true nearest rows to find."""
        mode, recall = self.argument("mode"), self.argument("recall")
        if mode == "index":
            raise SettingError(
                "a batch cannot search with mode='index', because it chooses its own "
                "way: leave mode out, or say 'exact'"
            )
        if mode not in (None, MODE, "exact"):
            raise SettingError(f"mode is {mode!r}, but must be 'auto' or 'exact'")
        if isinstance(recall, Decimal):
            recall = float(recall)
        recall = check_recall(RECALL if recall is None else recall)
        return 1.0 if mode == "exact" else recall

    def check(self) -> None:
        """Raise an error for values of LIMIT, OFFSET or bounds that make no sense."""
        shape, values = self.shape, self.values
        for name, argument in (("LIMIT", shape.limit), ("OFFSET", shape.offset)):
            rows = argument.of(values)
            if rows is not None and (not isinstance(rows, Integral) or rows < 0):
                raise SettingError(
                    f"{name} is {rows!r}, but must be a whole number of at least 0"
                )
        for _, argument in shape.bounds:
            bound = argument.of(values)
            if not isinstance(bound, Real | Decimal | None):
                raise refused(f"it compares the distance with {bound!r}, no number")

    def chosen(self, found: Nearest) -> Nearest:
        """Return what bounds on the distance, OFFSET and LIMIT leave of *found*."""
        shape, values = self.shape, self.values
        keys, distances = found
        end = len(keys)
        for compare, bound in shape.bounds:
            end = min(end, _passing(distances, compare, bound.of(values)))
        start = shape.offset.of(values) or 0
        limit = shape.limit.of(values)
        if limit is not None:
            end = min(end, start + limit)
        return keys[start:end], distances[start:end]


def _passing(
    distances: Sequence[float], compare: Callable[[Any, Any], bool], bound: Any
) -> int:
    """Return how many distances PostgreSQL finds below a bound."""
    if bound is None:
        return 0
    if math.isnan(bound):  # above everything
        return len(distances)
    return sum(compare(each, bound) for each in distances)


def read(statements: Sequence[Any]) -> list[Asked]:
    """Read statements.

    Raises FilterError, which counts from 0, for one that a batch cannot answer, and
    SettingError for a LIMIT or OFFSET that makes no sense.
    """
    reader = _Reader()
    found = []
    for number, statement in enumerate(statements):
        try:
            found.append(reader.read(statement))
        except FilterError as error:
            raise FilterError(f"statement {number}: {error}") from None
    return found


class _Reader:
    """Reads statements; those of one shape quickly, after the first."""

    def __init__(self) -> None:
        self._shapes: dict[Hashable, tuple[Shape, Hashable]] = {}

    def read(self, statement: Any) -> Asked:
        if not isinstance(statement, Select):
            raise refused("it is not a SELECT made by search()")
        statement = _with_values(statement)
        name, parameters = identify(statement)
        known = self._shapes.get(name)
        if known is None:
            shape = Shape.of(statement, parameters)
            known = self._shapes[name] = (shape, _loaded_with(statement, shape))
        shape, loaded = known
        values = [_value(each) for each in parameters]
        beside = _beside(statement)
        criteria = tuple(_hashable(values[i]) for i in shape.passing)
        searched = shape.arguments.get("embedding")
        named = None if searched is None else searched.of(values)
        criteria = (id(shape), named, beside, *criteria)
        together = criteria if loaded is None else (loaded, beside)
        asked = Asked(statement, shape, values, criteria, together)
        asked.check()
        return asked


def _with_values(statement: Select[Any]) -> Select[Any]:
    """Put what params() was given, which SQLAlchemy 2.1 keeps apart, into its place."""
    given = getattr(statement, "_params", None)
    if not given:
        return statement

    def visit(parameter: BindParameter[Any]) -> None:
        if parameter.key in given:
            parameter.value, parameter.required = given[parameter.key], False

    made: Select[Any] = visitors.cloned_traverse(
        statement,
        {"maintain_key": True, "detect_subquery_cols": True},
        {"bindparam": visit},
    )
    vars(made).pop("_params")
    return made


def _value(parameter: BindParameter[Any]) -> Any:
    if parameter.required:
        raise refused(f"its parameter {parameter.key!r} has no value, see params()")
    return parameter.effective_value


def _beside(statement: Select[Any]) -> Hashable:
    """What may tell statements apart beside their cache keys: options of the user."""
    options = statement.get_execution_options()
    # Alive as long as the statement is.
    own = [id(o) for o in statement._with_options if not isinstance(o, HasCacheKey)]
    if not options and not own:
        return None
    given = sorted(options.items())
    return tuple((name, _hashable(value)) for name, value in given), tuple(own)


def _loaded_with(statement: Select[Any], shape: Shape) -> Hashable:
    """What tells how entities are loaded; None when values take part in it."""
    plain: Select[Any] = select(shape.entity).options(*statement._with_options)
    if len(final_froms(plain)) > 1:
        raise refused(
            "its contains_eager() needs its joins (joinedload and selectinload do not)"
        )
    key = plain._generate_cache_key()
    if key is None or key.bindparams:
        return None
    return key.key


def _hashable(value: Any) -> Hashable:
    """Return what is the same for equal values of one type, and for no others."""
    if isinstance(value, _EQUAL_BUT_DIFFERENT):
        return type(value), str(value), getattr(value, "fold", None)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, _hashable(value.tolist())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_hashable, value))
    if isinstance(value, dict):
        return dict, tuple((_hashable(k), _hashable(v)) for k, v in value.items())
    try:
        hash(value)
    except TypeError:
        return type(value), id(value)
    return type(value), value
