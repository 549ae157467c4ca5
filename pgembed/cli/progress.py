"""Watching a backfill: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pgembed.cli import output
from pgembed.errors import EmbeddingError

_LOOK_SECONDS = 0.25
_LINE_SECONDS = 5.0


def wait_until_current(
    connection: psycopg.Connection[Any], name: str, *, index: bool = False
) -> dict[str, Any]:
    """Show progress until no row is pending; return the last status.

    With *index*, wait for the embedding's index as well. Raises EmbeddingError when
    the embedding is blocked or paused, or its index cannot be built.
    """
    console = output.console()
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} rows/s"),
        console=console,
        disable=not console.is_terminal,
    )
    next_line = 0.0
    with bar:
        task = bar.add_task(name, rate=0.0)
        while True:
            status = _status(connection, name)
            over = _is_over(status, index=index)
            if None in (status["rows"], status["pending"]):
                _check_countable(status)
                time.sleep(_LOOK_SECONDS)
                continue
            done = status["rows"] - status["pending"]
            rate = status["rows_per_second"]
            bar.update(task, total=status["rows"], completed=done, rate=rate)
            if not console.is_terminal and (over or time.monotonic() >= next_line):
                console.print(
                    f"{name}: {done} of {status['rows']} rows, {rate:.0f} rows/s"
                )
                next_line = time.monotonic() + _LINE_SECONDS
            if over:
                return status
            time.sleep(_LOOK_SECONDS)


def _status(connection: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    rows = output.query(
        connection, "SELECT * FROM pgembed.embedding_status WHERE name = %s", [name]
    )
    if not rows:
        raise EmbeddingError(f"embedding {name!r} was dropped while it was watched")
    return rows[0]


def _check_countable(status: dict[str, Any]) -> None:
    """Raise EmbeddingError unless the rows were only locked at the moment."""
    state = str(status["state"])
    if "not counted: another transaction" not in state:
        raise EmbeddingError(
            f"embedding {status['name']!r} cannot be watched: {state}; ask a role that "
            "may count its rows"
        )


def _is_over(status: dict[str, Any], *, index: bool) -> bool:
    state = str(status["state"])
    if state.startswith(("blocked", "paused", "source dropped")):
        raise EmbeddingError(f"embedding {status['name']!r} does not go on: {state}")
    if index and status["index_state"] == "failed":
        raise EmbeddingError(f"the index of {status['name']!r} failed: {state}")
    return status["pending"] == 0 and (
        not index or status["index_state"] in ("ready", "none")
    )
