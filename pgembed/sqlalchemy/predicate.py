"""The WHERE clause of a statement, and its joins, as the predicate of a search.

A predicate is SQL text, and text cannot hold parameters. So it is composed on the
server: ``format('article.year >= %L::INTEGER', $1)``, where PostgreSQL quotes what the
driver bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import (
    ColumnClause,
    ColumnElement,
    FromClause,
    Select,
    Table,
    TableValuedAlias,
    and_,
    exists,
    select,
)
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression
from sqlalchemy.sql.selectable import Alias, AliasedReturnsRows, Join, Lateral

from pgembed.errors import FilterError
from pgembed.sqlalchemy.template import Template

_KEEPS_THE_NEAREST = {
    "distance": (operators.lt, operators.le),
    "score": (operators.gt, operators.ge),
}


def predicate(
    source: Table, compiler: SQLCompiler, options: Mapping[str, Any]
) -> str | None:
    """Return the SQL of the predicate for the search that is being compiled.

    It is an expression of type text, in the language of *compiler*; None when every
    row of *source* passes. Raises FilterError for criteria that cannot take part.
    """
    statement = _Statement.around(source, compiler)
    template = statement.template(compiler)
    return None if template is None else template.expression(compiler, options)


@dataclasses.dataclass(frozen=True)
class _Statement:
    """The SELECT around a search, without the search itself."""

    source: Table
    place: FromClause
    """The source, or the alias of it, whose rows are searched."""
    froms: list[FromClause]
    criteria: list[ColumnElement[Any]]

    @classmethod
    def around(cls, source: Table, compiler: SQLCompiler) -> _Statement:
        entry: Any = compiler.stack[-1] if compiler.stack else {}
        if "compile_state" not in entry:
            raise FilterError("a search is part of a SELECT: build it with search()")
        froms = entry["compile_state"].froms
        joins = [join for each in froms for join in _search_joins(each)]
        if not joins:
            raise FilterError(
                "a search is not joined to its table: a column such as its distance "
                "comes from another statement, take selected_columns of this one"
            )
        if len(joins) != 1:
            raise FilterError(
                f"a statement has {len(joins)} searches beside each other, but "
                "can have one: make the others subqueries, with .subquery()"
            )
        outside = [each for each in froms if each not in entry["asfrom_froms"]]
        if outside:
            raise FilterError(
                f"criteria of a search name {_names(outside)} of the statement around "
                "it, and a search finds k rows once, not for each row of another "
                "table: execute a search for each, search_batch() many at once, or "
                "use the SQL function pgembed.knn_join"
            )
        rows = joins[0].right
        return cls(
            source,
            _searched(joins[0]),
            [_without(each, rows) for each in froms],
            [c for c in entry["selectable"]._where_criteria if not _on_rows(c, rows)],
        )

    def template(self, compiler: SQLCompiler) -> Template | None:
        tables, conditions = self._flat()
        if tables is None:
            return self._by_keys(compiler)
        others = [each for each in tables if each != self.place]
        if not others and not conditions:
            return None
        if self._repeats_source([*others, *conditions]):
            return self._by_keys(compiler)
        if others and self._correlates(conditions):
            # In the EXISTS, it would have a source of its own.
            return self._by_keys(compiler)
        condition = self._to_source(and_(True, *conditions))
        if others:
            condition = (
                exists().select_from(*others).where(condition).correlate(self.source)
            )
        template = Template.of_condition(condition, self.source, compiler)
        return self._by_keys(compiler) if template is None else template

    def _flat(self) -> tuple[list[FromClause] | None, list[ColumnElement[Any]]]:
        """The tables and conditions of inner joins; None when there are others."""
        wanted = tables_of(self.criteria)
        tables: list[FromClause] = []
        conditions = list(self.criteria)
        waiting = list(self.froms)
        while waiting:
            each = waiting.pop()
            if isinstance(each, Lateral):
                # It names tables beside it, which are around it in an EXISTS.
                return None, []
            if not isinstance(each, Join):
                tables.append(each)
            elif each.full or (each.isouter and wanted & tables_of([each.right])):
                return None, []
            elif each.isouter:
                waiting.append(each.left)
            else:
                waiting += [each.left, each.right]
                if each.onclause is None:
                    return None, []
                conditions.append(each.onclause)
                if tables_of([each.onclause]) & _optional(self.froms):
                    return None, []
        # As they stood: a function names tables before it.
        return tables[::-1], conditions

    def _repeats_source(self, clauses: Iterable[Any]) -> bool:
        """Whether the name of the source means another row in these clauses."""
        return self.place != self.source and self.source in tables_of(clauses)

    def _correlates(self, clauses: Iterable[Any]) -> bool:
        """Whether a subquery names the source, and leaves it to SQLAlchemy which.

        That looks at the SELECT right around the subquery, and no further.
        """
        return any(
            isinstance(element, Select)
            and element._auto_correlate
            and self.place in tables_of([element])
            for clause in clauses
            for element in visitors.iterate(clause)
        )

    def _to_source(self, condition: ColumnElement[Any]) -> ColumnElement[Any]:
        if self.place == self.source:
            return condition

        def replace(element: Any, **_: Any) -> Any:
            if getattr(element, "table", None) == self.place:
                return self.source.c[element.key]
            return None

        replaced: ColumnElement[Any] = visitors.replacement_traverse(
            condition, {}, replace
        )
        return replaced

    def _by_keys(self, compiler: SQLCompiler) -> Template:
        """The keys of the rows that the statement would return."""
        keys = [_column(self.place, each.key) for each in self.source.primary_key]
        query = (
            select(*keys).select_from(*self.froms).where(*self.criteria).correlate(None)
        )
        return Template.of_keys(list(self.source.primary_key), query, compiler)


def search_join(froms: Iterable[FromClause]) -> Join | None:
    """Return the join of a search in a statement's FROM clause, if there is one."""
    joins = [join for each in froms for join in _search_joins(each)]
    return joins[0] if len(joins) == 1 else None


def _names(froms: Iterable[FromClause]) -> str:
    return ", ".join(sorted(str(each.description) for each in froms))


def _column(place: FromClause, key: str) -> ColumnElement[Any]:
    return place.c[key]


def _is_search(clause: Any) -> bool:
    from pgembed.sqlalchemy.call import SearchCall

    return isinstance(clause, TableValuedAlias) and isinstance(
        clause.element, SearchCall
    )


def _search_joins(clause: FromClause) -> list[Join]:
    if not isinstance(clause, Join):
        return []
    inner = _search_joins(clause.left) + _search_joins(clause.right)
    return [clause, *inner] if _is_search(clause.right) else inner


def _searched(join: Join) -> FromClause:
    """The table whose key the search is joined to."""
    for element in visitors.iterate(join.onclause):
        place = getattr(element, "table", None)
        if place is not None and place != join.right:
            assert isinstance(place, Table | Alias)  # noqa: S101 - search() saw to it
            return place
    raise AssertionError(join)


def _without(clause: FromClause, rows: FromClause) -> FromClause:
    if not isinstance(clause, Join):
        return clause
    if clause.right == rows:
        return clause.left
    left, right = _without(clause.left, rows), _without(clause.right, rows)
    return Join(left, right, clause.onclause, clause.isouter, clause.full)


def _on_rows(criterion: ColumnElement[Any], rows: Any) -> bool:
    """Whether a criterion bounds distance or score so that the nearest rows stay."""
    if rows not in tables_of([criterion]):
        return False
    result = rows.element.signature.result
    if (
        isinstance(criterion, BinaryExpression)
        and criterion.operator in _KEEPS_THE_NEAREST[result]
        and getattr(criterion.left, "table", None) == rows
    ):
        return True
    example = "distance < 0.5" if result == "distance" else "score > 0.01"
    raise FilterError(
        f"in a search, the {result} can only be compared as in '{example}': "
        "for another condition on it make the search a subquery, with .subquery()"
    )


def tables_of(clauses: Iterable[Any]) -> set[FromClause]:
    """The FROM clauses that clauses name, their subqueries included."""
    found: set[FromClause] = set()
    waiting = list(clauses)
    while waiting:
        element = waiting.pop()
        place = getattr(element, "table", element)
        if isinstance(place, FromClause):
            found.add(place)
        if not isinstance(element, AliasedReturnsRows | ColumnClause):
            waiting += element.get_children()
    return found


def _optional(froms: Iterable[FromClause]) -> set[FromClause]:
    """The tables on the optional side of outer joins."""
    joins = (e for each in froms for e in visitors.iterate(each) if isinstance(e, Join))
    return tables_of([join.right for join in joins if join.isouter])
