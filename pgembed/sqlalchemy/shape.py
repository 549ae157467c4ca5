"""What statements that differ only in their values have in common.

SQLAlchemy's cache key of a statement says which others have the same shape, and has
their values in the same places. So a batch takes a statement apart once for each shape,
and of the others reads only the values.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    FromClause,
    Select,
    TableValuedAlias,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression
from sqlalchemy.sql.selectable import Join

from pgembed.errors import FilterError
from pgembed.sqlalchemy.call import SearchCall, Signature
from pgembed.sqlalchemy.predicate import search_join, tables_of

_DIALECT: Any = postgresql.dialect()  # type: ignore[no-untyped-call]

_BOUNDS: dict[Any, Callable[[Any, Any], bool]] = {
    operators.lt: operator.lt,
    operators.le: operator.le,
}

Values = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Argument:
    """A value of a statement: at a place among its parameters, or always the same."""

    place: int | None
    value: Any = None

    def of(self, values: Values) -> Any:
        """Return the value, given all of a statement."""
        return self.value if self.place is None else values[self.place]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of statement that a batch can answer."""

    signature: Signature
    entity: Any
    """What a row has besides the distance: an entity, or a table."""
    keys: tuple[ColumnElement[Any], ...]
    """The columns of the source's key, as the statement names them."""
    query: Argument
    arguments: dict[str, Argument]
    """The other arguments of the search, by name."""
    bounds: tuple[tuple[Callable[[Any, Any], bool], Argument], ...]
    """Upper bounds of the distance."""
    limit: Argument
    offset: Argument
    passing: tuple[int, ...]
    """Places of the parameters that decide which rows pass."""

    @classmethod
    def of(cls, statement: Any, parameters: Sequence[BindParameter[Any]]) -> Shape:
        """Take a statement apart; *parameters* are those of its cache key.

        Raises FilterError for what a batch cannot answer.
        """
        if not isinstance(statement, Select):
            raise refused("it is not a SELECT made by search()")
        # With LIMIT, what loader options join is outside of a subquery.
        froms = final_froms(statement.limit(None).offset(None))
        join = search_join(froms)
        if join is None:
            raise refused("it has no search of its own, or several")
        # Loader options join as well, but multiply no entities.
        joined = len(statement._setup_joins) > 1 or statement._from_obj
        alone = len(froms) == 1 and not joined
        return _Reader(statement, join, alone, parameters).shape()


def final_froms(statement: Select[Any]) -> Sequence[FromClause]:
    """Return the FROM clauses of a statement, those of its options among them.

    Select.get_final_froms() compiles all of it on the way, for no database, which not
    every type and operator of PostgreSQL can be.
    """
    compiler = _DIALECT.statement_compiler(_DIALECT, None)
    state: Any = statement
    found: Sequence[FromClause] = state._compile_state_factory(
        statement, compiler
    )._get_display_froms()
    return found


def refused(why: str) -> FilterError:
    """Return the error for a statement that a batch cannot answer."""
    return FilterError(
        f"a batch cannot answer this statement: {why}; execute it by itself"
    )


class _Reader:
    """Reads the parts of one statement."""

    def __init__(
        self,
        statement: Select[Any],
        join: Join,
        alone: bool,
        parameters: Sequence[Any],
    ) -> None:
        self.statement, self.join, self.alone = statement, join, alone
        self.places = {id(each): place for place, each in enumerate(parameters)}
        assert isinstance(join.right, TableValuedAlias)  # noqa: S101 - search_join
        self.rows: TableValuedAlias = join.right

    def shape(self) -> Shape:
        call = self.rows.element
        assert isinstance(call, SearchCall)  # noqa: S101 - search_join
        if call.signature.function != "search":
            raise refused(f"it is a {call.signature.function}()")
        self._require_plain()
        given = dict(zip(call.signature.arguments, call.clauses, strict=True))
        query = self._query(given.pop("query"))
        arguments = {name: self._argument(value) for name, value in given.items()}
        bounds = tuple(map(self._bound, self._bounds()))
        keys = self._keys(call.signature)
        limit = self._argument(self.statement._limit_clause)
        offset = self._argument(self.statement._offset_clause)
        apart = [query, *arguments.values(), limit, offset, *(b for _, b in bounds)]
        taken = {each.place for each in apart}
        return Shape(
            call.signature,
            self.statement._raw_columns[0],
            keys,
            query,
            arguments,
            bounds,
            limit,
            offset,
            tuple(sorted(set(self.places.values()) - taken)),
        )

    def _require_plain(self) -> None:
        statement = self.statement
        columns = list(statement._raw_columns)
        if (
            len(columns) != 2
            or not isinstance(columns[0], FromClause)
            or not self._is_number(columns[1])
        ):
            raise refused("it selects other columns than the entity and the distance")
        order = list(statement._order_by_clauses)
        if not order or not self._is_number(order[0]):
            raise refused("it has an order of its own")
        others = {
            "DISTINCT": statement._distinct,
            "GROUP BY": statement._group_by_clauses,
            "HAVING": statement._having_criteria,
            "FOR UPDATE": statement._for_update_arg is not None,
            "FETCH": statement._fetch_clause is not None,
        }
        for words, there in others.items():
            if there:
                raise refused(f"it has {words}")
        limited = statement._limit_clause, statement._offset_clause
        if any(each is not None for each in limited) and not self.alone:
            raise refused("it has LIMIT or OFFSET and joins, which multiply rows")

    def _is_number(self, clause: Any) -> bool:
        return getattr(clause, "table", None) is self.rows

    def _keys(self, signature: Signature) -> tuple[ColumnElement[Any], ...]:
        """The other sides of the conditions by which the search is joined."""
        pairs = {}
        for each in visitors.iterate(self.join.onclause):
            if isinstance(each, BinaryExpression) and self._is_number(each.right):
                pairs[each.right.key] = each.left
        keys = tuple(pairs[name] for name in signature.keys)
        selected = set(self.statement._raw_columns[0]._from_objects)
        if any(getattr(key, "table", None) not in selected for key in keys):
            raise refused("it selects another entity than the one that is searched")
        return keys

    def _query(self, clause: ColumnElement[Any]) -> Argument:
        if not isinstance(clause, BindParameter):
            raise refused("its query is an SQL expression, not a text or a vector")
        return self._argument(clause)

    def _argument(self, clause: Any) -> Argument:
        if clause is None:
            return Argument(None)
        if not isinstance(clause, BindParameter):
            raise refused(f"{clause} is not a value")
        return Argument(self.places.get(id(clause)), clause.effective_value)

    def _bounds(self) -> list[ColumnElement[Any]]:
        criteria = self.statement._where_criteria
        return [each for each in criteria if self.rows in tables_of([each])]

    def _bound(self, criterion: Any) -> tuple[Callable[[Any, Any], bool], Argument]:
        if (
            isinstance(criterion, BinaryExpression)
            and criterion.operator in _BOUNDS
            and self._is_number(criterion.left)
        ):
            return _BOUNDS[criterion.operator], self._argument(criterion.right)
        raise refused("its condition on the distance is not 'distance < a value'")
