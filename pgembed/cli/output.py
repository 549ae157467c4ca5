"""Tables for people, JSON for programs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import psycopg
from psycopg.abc import QueryNoTemplate
from psycopg.rows import dict_row
from rich.console import Console
from rich.table import Table

# Wide enough that nothing is cut when the output goes to a file or a pipe.
_PIPE_WIDTH = 500


def console() -> Console:
    """Return a console on standard output, wide when that is not a terminal."""
    plain = Console(highlight=False)
    if plain.is_terminal:
        return plain
    return Console(highlight=False, width=_PIPE_WIDTH, soft_wrap=True)


def query(
    connection: psycopg.Connection[Any],
    statement: QueryNoTemplate,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of a query, column → value."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, parameters).fetchall()


def show(
    rows: Iterable[Mapping[str, Any]], *, as_json: bool, empty: str = "(none)"
) -> None:
    """Print rows as a table, or as a JSON array of objects."""
    rows = list(rows)
    if as_json:
        click.echo(json.dumps([dict(row) for row in rows], default=_jsonable, indent=2))
    elif not rows:
        click.echo(empty)
    else:
        console().print(_table(rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, value in rows[0].items():
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, datetime.timedelta):
        return f"{value.total_seconds():.1f} s"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, default=_jsonable)
    return str(value).replace("[", r"\[")


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
