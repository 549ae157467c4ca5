"""pgembed batch."""

from __future__ import annotations

from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn

from pgembed.cli import options, output
from pgembed.postgres.connection import connect


@click.command()
@click.argument("embedding")
@options.dsn
@options.as_json
@click.option("--queries", required=True, help="Table of queries: see below.")
@click.option("--results", required=True, help="Table for the answers.")
@click.option("-k", type=int, default=10, show_default=True, help="Rows per query.")
@click.option("--recall", type=float, default=0.99, show_default=True, help="1: exact.")
@click.option(
    "--memory", default="512MB", show_default=True, help="Beyond mapped files."
)
@click.option("--threads", type=int, help="Default: one per core.")
@click.option("--no-layout", is_flag=True, help="Read the table, not the layout.")
def batch(
    embedding: str, dsn: str | None, as_json: bool, no_layout: bool, **arguments: Any
) -> None:
    """Answer a table of queries on EMBEDDING in one go.

    The table --queries has a column id of any type, embedding (a vector) or content (a
    text), and optionally filter (jsonb), predicate (SQL, run with your rights) and k.
    The table --results is created if it does not exist: query_id, rank, the key columns
    of the source and distance. All results appear at once, or none.
    """
    from pgembed.batch.execute import Options
    from pgembed.batch.job import run_batch
    from pgembed.batch.search import check_recall, memory_bytes, thread_count

    with (
        connect(options.settings(dsn=dsn).dsn, purpose="batch") as connection,
        _Bar(shown=not as_json) as bar,
    ):
        rows, report = run_batch(
            connection,
            embedding,
            arguments["queries"],
            arguments["results"],
            k=arguments["k"],
            options=Options(
                check_recall(arguments["recall"]),
                memory_bytes(arguments["memory"]),
                thread_count(arguments["threads"]),
                not no_layout,
                progress=bar.say,
            ),
        )
    seconds = sum(report.seconds.values())
    summary = {
        "results": rows,
        "strategy": report.strategy,
        "rows": report.rows,
        "conditions": report.conditions,
        "seconds": round(seconds, 3),
        "measured_recall": round(report.recall, 4),
        "layout": report.layout,
    }
    output.show([summary], as_json=as_json)


class _Bar:
    """A bar with the stage of a batch, on a terminal."""

    def __init__(self, *, shown: bool) -> None:
        console = output.console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
            transient=True,
        )

    def __enter__(self) -> _Bar:
        self._progress.start()
        self._task = self._progress.add_task("starting", total=1.0)
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, stage: str, share: float) -> None:
        """Show a stage and the share of it that is done."""
        self._progress.update(self._task, description=stage, completed=share)
