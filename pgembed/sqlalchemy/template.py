"""SQL text with holes: compiled conditions whose parameters the server puts in."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BindParameter,
    Boolean,
    ColumnElement,
    Date,
    DateTime,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    Select,
    String,
    Table,
    Time,
    TupleType,
    TypeDecorator,
    Uuid,
    literal_column,
)
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.sql.compiler import SQLCompiler

from pgembed.errors import FilterError

# What the driver says that values are for which SQLAlchemy writes no cast: as plain
# literals they would be of the type of what they are compared with. Numeric may be
# a base of Float.
_SENT_AS = (
    (Float, "DOUBLE PRECISION"),
    (Numeric, "NUMERIC"),
    (Interval | INTERVAL, "INTERVAL"),
    (LargeBinary, "BYTEA"),
)

# Of others, extra_float_digits may decide how many digits their text has.
_WITHOUT_FLOATS = (Boolean, Date, DateTime, Integer, JSON, String, Time, Uuid)

# PostgreSQL's limit is 100, the template among them.
_MOST_ARGUMENTS = 99

_HOLE = "\x00{}\x00"


class Template:
    """A condition as text, and the parameters that belong into it."""

    def __init__(self, text: str, parameters: Sequence[BindParameter[Any]]) -> None:
        self._text = text
        self._parameters = parameters

    @classmethod
    def of_condition(
        cls, condition: ColumnElement[Any], source: Table, compiler: SQLCompiler
    ) -> Template | None:
        """Return the template of a condition on *source*; None if it needs a WITH."""
        writer = _writer(compiler)
        writer.stack.append({"correlate_froms": {source}, "asfrom_froms": {source}})
        text = writer.process(condition)
        return None if writer.ctes else cls(text, writer.parameters)

    @classmethod
    def of_keys(
        cls,
        keys: Sequence[ColumnElement[Any]],
        query: Select[Any],
        compiler: SQLCompiler,
    ) -> Template:
        """Return the template of ``(keys) IN (query)``."""
        writer = _writer(compiler)
        names = ", ".join(writer.process(key) for key in keys)
        return cls(f"({names}) IN ({writer.process(query)})", writer.parameters)

    def expression(self, compiler: SQLCompiler, options: Mapping[str, Any]) -> str:
        """Return SQL that makes the finished text on the server."""
        text = self._text.replace(_percent(compiler), "%")
        if not self._parameters:
            return str(compiler.render_literal_value(text, String()))
        text = text.replace("%", "%%")
        # What a type writes around its parameters is in the text already.
        options = {**options, "skip_bind_expression": True}
        literal = "literal_binds" in options
        values = []
        for number, parameter in enumerate(self._parameters):
            value = compiler.process(parameter, **options)
            cast = _cast(parameter, compiler)
            typed = cast or _sent_as(parameter, compiler)
            # By number: a WITH stands before what was compiled earlier.
            text = text.replace(_HOLE.format(number), f"%{number + 1}$L{typed}")
            if not cast:
                value = compiler.process(_twin(parameter, compiler), **options)
            if not literal and _may_hold_floats(parameter.type, compiler.dialect):
                value = f"pgembed._exact_text({value})"
            elif not cast:
                value = f"CAST({value} AS TEXT)"
            values.append(value)
        template = compiler.render_literal_value(text, String())
        if len(values) > _MOST_ARGUMENTS:
            texts = ", ".join(f"CAST({value} AS TEXT)" for value in values)
            return f"pg_catalog.format({template}, VARIADIC ARRAY[{texts}])"
        return f"pg_catalog.format({template}, {', '.join(values)})"


def _percent(compiler: Any) -> str:
    """Return how a percent sign stands in a statement, for drivers that double it."""
    return str(compiler.escape_literal_column("%"))


def _cast(parameter: BindParameter[Any], compiler: SQLCompiler) -> str:
    """Return the cast that SQLAlchemy writes behind the parameter, if it does."""
    type_: Any = parameter.type._unwrapped_dialect_impl(compiler.dialect)
    written = compiler.dialect.bind_typing is BindTyping.RENDER_CASTS
    if not written or not type_.render_bind_cast:
        return ""
    render: Any = compiler.render_bind_cast
    return str(render(parameter.type, type_, ""))


def _sent_as(parameter: BindParameter[Any], compiler: SQLCompiler) -> str:
    """Return the cast to the type with which the driver sends the parameter."""
    type_ = parameter.type._unwrapped_dialect_impl(compiler.dialect)
    names = (name for kind, name in _SENT_AS if isinstance(type_, kind))
    name = next(names, None)
    return "" if name is None else f"::{name}"


def _may_hold_floats(type_: Any, dialect: Any) -> bool:
    type_ = type_._unwrapped_dialect_impl(dialect)
    if isinstance(type_, ARRAY):
        return _may_hold_floats(type_.item_type, dialect)
    return not isinstance(type_, _WITHOUT_FLOATS)


def _twin(parameter: BindParameter[Any], compiler: SQLCompiler) -> BindParameter[Any]:
    """Return a parameter of the same value that is sent apart.

    Sent once, it could not be of type text here and of a column's type elsewhere.
    """
    made: BindParameter[Any] = parameter._clone()
    if not parameter.unique:
        compiler.bind_names[made] = f"{parameter.key}_text"
    return made


class _Writer(SQLCompiler):
    """Writes holes for parameters, and arrays for lists."""

    parameters: list[BindParameter[Any]]

    def visit_bindparam(  # type: ignore[override]
        self,
        bindparam: BindParameter[Any],
        skip_bind_expression: bool = False,
        **_: Any,
    ) -> str:
        type_ = bindparam.type.dialect_impl(self.dialect)
        if type_._has_bind_expression and not skip_bind_expression:
            around: Any = type_.bind_expression(bindparam)
            return str(self.process(around, skip_bind_expression=True))
        if bindparam.expanding:
            raise FilterError(
                f"parameter {bindparam.key!r} is a list outside of IN, which a search "
                "cannot filter by: pass an array"
            )
        self.parameters.append(bindparam)
        return _HOLE.format(len(self.parameters) - 1)

    def visit_in_op_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        return self._membership(binary, "IN", "= ANY", options)

    def visit_not_in_op_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        return self._membership(binary, "NOT IN", "<> ALL", options)

    def _membership(
        self, binary: Any, words: str, operator: str, options: dict[str, Any]
    ) -> str:
        left = self.process(binary.left, **options)
        right = binary.right
        if not isinstance(right, BindParameter) or not right.expanding:
            return f"({left} {words} {self.process(right, **options)})"
        if isinstance(right.type, TupleType):
            columns = [
                self._array(right, type_, position)
                for position, type_ in enumerate(right.type.types)
            ]
            rows = f"SELECT * FROM unnest({', '.join(columns)})"  # noqa: S608 - compiled
            return f"({left} {words} ({rows}))"
        values = self._array(right, right.type)
        type_ = right.type.dialect_impl(self.dialect)
        if type_._has_bind_expression:
            each: Any = literal_column("u.value", right.type)
            around: Any = type_.bind_expression(each)
            rows = f"SELECT {self.process(around)} FROM unnest({values}) AS u (value)"  # noqa: S608
            return f"({left} {words} ({rows}))"
        return f"({left} {operator} ({values}))"

    def _array(
        self, parameter: BindParameter[Any], type_: Any, position: int | None = None
    ) -> str:
        if isinstance(type_._unwrapped_dialect_impl(self.dialect), ARRAY):
            raise FilterError(
                "a search cannot filter by in_() with a list of arrays: compare with "
                "each of them, or_(column == [1, 2], column == [3])"
            )
        return str(self.process(_as_array(parameter, type_, position)))


def _as_array(
    parameter: BindParameter[Any], type_: Any, position: int | None = None
) -> BindParameter[Any]:
    """Return a parameter that takes the same list, and sends it as an array.

    As a clone it gets the values of later executions, too.
    """
    if not parameter.unique:
        raise FilterError(
            f"the named parameter {parameter.key!r} is a list, which a search cannot "
            "filter by: pass the list itself to in_()"
        )
    made: BindParameter[Any] = parameter._clone()
    made.expanding = False
    made.expand_op = None
    made.type = ARRAY(type_) if position is None else _Position(type_, position)
    return made


class _Position(TypeDecorator[Any]):
    """The array of what stands at one position of each tuple in a list."""

    impl = ARRAY
    cache_ok = True

    def __init__(self, item_type: Any, position: int) -> None:
        super().__init__(item_type)
        self.position = position

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else [each[self.position] for each in value]


@functools.cache
def _writer_class(base: Any) -> type[Any]:
    return type("PredicateWriter", (_Writer, base), {})


def _writer(compiler: SQLCompiler) -> Any:
    kind: Any = type(compiler)
    if not issubclass(kind, _Writer):
        kind = _writer_class(kind)
    writer = kind(
        compiler.dialect, None, schema_translate_map=compiler.schema_translate_map
    )
    writer.parameters = []
    # Where SQLAlchemy notes with_loader_criteria(), for the subqueries.
    writer._global_attributes = compiler._global_attributes
    return writer
