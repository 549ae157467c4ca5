"""Conditions that refer to the row that asks, as only joins have one.

In a predicate ``{year}`` is its value: ``year > {year}``. In a filter ``asking`` is an
operator like others, and what it holds are names of its columns where values would be:
``{"year": {"asking": {"gt": "year"}}}``. As an operator it cannot be confused with a
document that a jsonb column is compared with.

A value of the row that asks stands in a filter as if it were written there: it is read
as a value of the column that it is compared with, and NULL among the elements of an
array is null in a list. But a comparison with NULL itself is unknown, as in SQL, and
unknown rows do not pass, negated or not. As that cannot be said of a value in a filter,
the comparison is then replaced by what has this effect: nothing passes it, or, within
an odd number of "not", everything does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pgembed.batch.predicates import refusals
from pgembed.batch.source import Source
from pgembed.errors import FilterError
from pgembed.postgres.connection import Connection, fetch_all, fetch_one

_WORD = "asking"
_OPERATORS = (
    *("eq", "ne", "lt", "lte", "gt", "gte", "in", "not_in"),
    *("like", "ilike", "contains"),
)
_MOST_LEVELS = 32  # of the filter language
_ALL, _NONE = '{"and": []}', '{"or": []}'


@dataclasses.dataclass(frozen=True)
class _Term:
    """A column compared with a column of the row that asks."""

    column: str
    operator: str
    asking: str
    negated: bool
    """Whether it is within an odd number of "not"."""


@dataclasses.dataclass(frozen=True)
class _Operand:
    """A column that a filter names."""

    expression: str
    path: list[str] | None
    json: bool
    object: bool
    """Whether to_jsonb() may make an object of it that is no JSON."""


@dataclasses.dataclass(frozen=True)
class _Number:
    """A number as it is written, which a float need not hold."""

    digits: str


# Parts of a filter: JSON, and in between the comparisons.
_Parts = list[str | _Term]


class RowTexts:
    """SQL for the texts that conditions on *source* have for a row of *asking*."""

    def __init__(self, connection: Connection, source: Source, asking: Source) -> None:
        self.connection, self.source, self.asking = connection, source, asking
        self.parameters: list[Any] = []
        """What the expressions refer to, as $1 and so on."""

    def of_filter(self, given: str | None) -> str | None:
        """Return an expression for the filter; None if it refers to no row.

        Raises FilterError for references that make no sense.
        """
        tree = None if given is None else json.loads(given, parse_float=_Number)
        if not _refers(tree):
            return None
        return _joined(
            self._term(part) if isinstance(part, _Term) else self._text(part)
            for part in _node(tree, negated=False)
        )

    def of_predicate(self, template: str | None) -> str | None:
        """Return an expression for the predicate; None when it has no braces.

        Values come as quoted literals of their type. Raises FilterError for braces
        that make no sense.
        """
        if template is None or not {"{", "}"} & set(template):
            return None
        tokens = fetch_all(
            self.connection,
            "SELECT token, column_name FROM pgembed._template_tokens(%s) "
            "ORDER BY ordinal",
            [template],
        )
        if "".join(token for token, _ in tokens) != template:
            raise FilterError(
                f"the predicate {template!r} has an unmatched brace: write {{column}} "
                "for a value of the row that asks, {{ and }} for braces"
            )
        literals = _literals(self.connection, self.asking)
        parts = []
        for token, column in tokens:
            if column is None:
                parts.append(self._text(token[0] if token in ("{{", "}}") else token))
            elif column in literals:
                parts.append(literals[column])
            else:
                raise FilterError(
                    f"the predicate {template!r} refers to {{{column}}}, but "
                    f"{self.asking.relation} has no such column: its columns are "
                    f"{', '.join(literals)}; braces that mean no column are doubled"
                )
        return _joined(parts)

    def _parameter(self, value: Any) -> str:
        self.parameters.append(value)
        return f"${len(self.parameters)}"

    def _text(self, text: str) -> str:
        return f"{self._parameter(text)}::pg_catalog.text"

    def _term(self, term: _Term) -> str:
        operand = self._operand(self.asking, term.asking, "of the row that asks: ")
        document = f"pg_catalog.to_jsonb({self._readable(operand, term)})"
        value = (
            f"pgembed._json_value({document}, "
            f"{self._parameter(operand.path or [])}::pg_catalog._text)::pg_catalog.text"
        )
        before = f"{{{json.dumps(term.column)}: {{{json.dumps(term.operator)}: "
        parts = [self._text(before), value, self._text("}}")]
        concatenated = " OPERATOR(pg_catalog.||) ".join(parts)
        unknown = self._text(_ALL if term.negated else _NONE)
        return f"coalesce({concatenated}, {unknown})"

    def _readable(self, operand: _Operand, term: _Term) -> str:
        """Return what a column of the row that asks is in JSON.

        A row, or an hstore, is an object there, as which only JSON can be compared.
        """
        if operand.object and not self._operand(self.source, term.column, "").json:
            return f"{operand.expression}::pg_catalog.text"
        return operand.expression

    def _operand(self, table: Source, column: str, where: str) -> _Operand:
        with refusals(where):
            found = fetch_one(
                self.connection,
                "SELECT o.expression, o.path, o.kind IN (114::oid, 3802::oid), "
                "t.typcategory IN ('C', 'U') AND o.kind NOT IN (114::oid, 3802::oid) "
                "FROM pgembed._filter_operand("
                "%s::pg_catalog.text::pg_catalog.regclass, %s, %s) AS o "
                "INNER JOIN pg_catalog.pg_type AS t ON t.oid = o.kind",
                [table.relation, column, table.alias],
            )
        return _Operand(*found)


def _joined(expressions: Iterator[str] | Sequence[str]) -> str:
    # Functions take a hundred arguments at most. Rows are grouped by these texts, and
    # columns may have collations that differ, or to which different texts are equal.
    return (
        f"pg_catalog.array_to_string(ARRAY[{', '.join(expressions)}]"
        "::pg_catalog._text, '') COLLATE pg_catalog.\"C\""
    )


def _refers(node: Any, level: int = 1) -> bool:
    """Whether a filter refers to the row that asks; all of it is looked at."""
    if level > _MOST_LEVELS:
        raise FilterError(f"the filter is nested deeper than {_MOST_LEVELS} levels")
    if not isinstance(node, dict):
        return False
    # Not any(), which would not look at all of it.
    found = [_entry_refers(name, value, level) for name, value in node.items()]
    return True in found


def _entry_refers(name: str, value: Any, level: int = 1) -> bool:
    if name == "not":
        return _refers(value, level + 1)
    if name in ("and", "or"):
        return isinstance(value, list) and True in [
            _refers(v, level + 1) for v in value
        ]
    return isinstance(value, dict) and _WORD in value


def _node(node: Any, *, negated: bool) -> _Parts:
    """Return the parts of an object of a filter."""
    if not _refers(node):
        return [_written(node)]
    conditions: list[_Parts] = []
    for name, value in node.items():
        conditions += _entry(name, value, negated)
    return conditions[0] if len(conditions) == 1 else _list("and", conditions)


def _entry(name: str, value: Any, negated: bool) -> list[_Parts]:
    """Return the conditions, in parts, that one entry of an object stands for."""
    if not _entry_refers(name, value):
        return [[_written({name: value})]]
    if name == "not":
        return [['{"not": ', *_node(value, negated=not negated), "}"]]
    if name in ("and", "or"):
        return [_list(name, [_node(part, negated=negated) for part in value])]
    others = {word: value[word] for word in value if word != _WORD}
    conditions: list[_Parts] = [[_written({name: others})]] if others else []
    for operator, asking in _comparisons(name, value[_WORD]):
        conditions.append([_Term(name, operator, asking, negated)])
    return conditions


def _written(node: Any) -> str:
    """Return the JSON of part of a filter, its numbers digit for digit."""
    if isinstance(node, _Number):
        return node.digits
    if isinstance(node, dict):
        entries = (f"{json.dumps(n)}: {_written(v)}" for n, v in node.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(node, list):
        return f"[{', '.join(map(_written, node))}]"
    return json.dumps(node)


def _list(word: str, conditions: list[_Parts]) -> _Parts:
    parts: _Parts = [f'{{"{word}": [']
    for number, condition in enumerate(conditions):
        parts += [", ", *condition] if number else condition
    return [*parts, "]}"]


def _comparisons(column: str, given: Any) -> Iterator[tuple[str, str]]:
    """Return what "asking" of a column says: operators and columns."""
    terms = {"eq": given} if isinstance(given, str) else given
    if not isinstance(terms, dict) or not terms:
        _refuse(column, given)
    for operator, name in terms.items():
        if operator == "between" and isinstance(name, list) and len(name) == 2:
            pairs = list(zip(("gte", "lte"), name, strict=True))
        else:
            pairs = [(operator, name)]
        for word, asking in pairs:
            if word not in _OPERATORS or not isinstance(asking, str):
                _refuse(column, given)
            yield word, asking


def _refuse(column: str, given: Any) -> NoReturn:
    raise FilterError(
        f'"{_WORD}" of {column} is {_written(given)[:100]}: name a column of the row '
        f'that asks, {{"{_WORD}": "column"}}, or an operator and a column, '
        f'{{"{_WORD}": {{"gt": "column"}}}}; the operators are '
        f"{', '.join(_OPERATORS)} and between, which takes a list of two columns"
    )


def _literals(connection: Connection, asking: Source) -> dict[str, str]:
    """Return by column: SQL for the text of a literal that has a row's value."""
    rows = fetch_all(
        connection,
        """
        SELECT a.attname, pg_catalog.quote_ident(a.attname), pg_catalog.quote_literal(
            '::' || pg_catalog.format_type(a.atttypid, -1) || ')')
        FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = %s::pg_catalog.text::pg_catalog.regclass::oid
            AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum
        """,
        [asking.relation],
    )
    return {
        name: f"'(' || coalesce(pg_catalog.quote_literal({asking.alias}.{quoted}"
        f"::pg_catalog.text), 'NULL') || {ending}"
        for name, quoted, ending in rows
    }
