"""Tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import click
import psycopg
from psycopg.abc import AdaptContext, Buffer, Loader, QueryNoTemplate
from psycopg.pq import Format
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader
from rich.console import Console
from rich.table import Table

from pgembed.terminal import visible

# Wider than any row: what goes to a file or a pipe is neither cut nor wrapped.
_PIPE_WIDTH = 10**9

# Types that have values which Python's have not: infinity, the year 10000, 24:00.
_WIDER_TYPES = ("date", "time", "timetz", "timestamp", "timestamptz", "interval")

# psycopg's ranges have None for an open end.
_SPANS = [
    f"{of}{kind}"
    for of in ("int4", "int8", "num", "date", "ts", "tstz")
    for kind in ("range", "multirange")
]


class _WiderLoader(psycopg.adapt.Loader):
    """Loads what Python has no value for as PostgreSQL's text."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        loader = cast("type[Loader]", psycopg.adapters.get_loader(oid, Format.TEXT))
        self._loader = loader(oid, context)

    def load(self, data: Buffer) -> Any:
        try:
            return self._loader.load(data)
        except psycopg.DataError:
            return bytes(data).decode()


def _number(text: str) -> float | str:
    """Return a number of JSON, or its text where no float has all its digits."""
    value = float(text)
    try:
        return value if Decimal(repr(value)) == Decimal(text) else text
    except InvalidOperation:  # an exponent of twenty digits
        return text


_loads = functools.partial(json.loads, parse_float=_number)


def console() -> Console:
    """Return a console on standard output, wide when that is not a terminal.

    It prints text as it is: brackets are no markup.
    """
    plain = Console(highlight=False, markup=False, emoji=False)
    if not plain.is_terminal:
        plain.width = _PIPE_WIDTH
        plain.soft_wrap = True
    return plain


def query(
    connection: psycopg.Connection[Any],
    statement: QueryNoTemplate,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of a query, column → value."""
    with (
        _plain_intervals(connection),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        for name in _WIDER_TYPES:
            cursor.adapters.register_loader(name, _WiderLoader)
        for name in _SPANS:
            cursor.adapters.register_loader(name, TextLoader)
        set_json_loads(_loads, cursor)
        return cursor.execute(statement, parameters).fetchall()


@contextlib.contextmanager
def _plain_intervals(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Have intervals written as psycopg reads them.

    Not for longer than a transaction: poolers may not keep that style for each client.
    """
    if connection.info.parameter_status("IntervalStyle") == "postgres":
        yield
        return
    with connection.transaction():
        connection.execute("SET LOCAL intervalstyle = postgres")
        yield


def show(
    rows: Iterable[Mapping[str, Any]],
    *,
    as_json: bool,
    empty: str = "(none)",
    rounded: Collection[str] | None = None,
) -> None:
    """Print rows as a table, or as a JSON array of objects.

    A table has four digits of floats in the columns *rounded*; None: in all.
    """
    rows = list(rows)
    if as_json:
        plain = [_plain(dict(row)) for row in rows]
        click.echo(json.dumps(plain, default=_jsonable, indent=2))
    elif not rows:
        click.echo(empty)
    else:
        console().print(_table(rows, rounded))


def _table(rows: Sequence[Mapping[str, Any]], rounded: Collection[str] | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, value in rows[0].items():
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        table.add_column(visible(column), justify="right" if numeric else "left")
    for row in rows:
        cells = (
            _cell(value, is_rounded=rounded is None or column in rounded)
            for column, value in row.items()
        )
        table.add_row(*map(visible, cells))
    return table


def _cell(value: Any, *, is_rounded: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if is_rounded else json.dumps(value).removesuffix(".0")
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, datetime.timedelta):
        return f"{value.total_seconds():.1f} s"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, default=_jsonable)
    return str(value)


def _plain(value: Any) -> Any:
    """Return *value* with the floats that JSON does not know as their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
