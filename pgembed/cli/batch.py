"""pgembed batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, Progress, TextColumn

from pgembed.cli import options, output
from pgembed.errors import SettingError
from pgembed.postgres.connection import Connection, connect, fetch_one
from pgembed.settings import memory_bytes

if TYPE_CHECKING:
    from pgembed.batch.execute import Options
    from pgembed.batch.result import Report


@click.command()
@click.argument("embedding")
@options.dsn
@options.as_json
@click.option("--queries", help="Table of queries: see above.")
@click.option("--self", "itself", is_flag=True, help="Its own rows are the queries.")
@click.option("--rows-of", help="The rows of this embedding are the queries.")
@click.option("--predicate", help="Of --self, --rows-of: SQL, {column} of the query.")
@click.option("--filter", help="Of --self, --rows-of: a JSON filter: see above.")
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
    """Answer a table of queries on EMBEDDING in one go, or relate rows to rows.

    The table --queries has a column id of any type, embedding (a vector) or content (a
    text), and optionally filter (jsonb), predicate (SQL, run with your rights) and k.
    The table --results is created if it does not exist, and added to if it does:
    query_id, rank, the key columns of the source and distance. All results appear at
    once, or none.

    With --self every row of EMBEDDING is a query (with --rows-of, every row of another
    embedding), and no row is related to itself. The results have its key columns, rank,
    those of the row found after related_, and distance. In --predicate, {column} is a
    value of the row that asks: --predicate 'category = {category} AND year > {year}'.
    In --filter, "asking" holds columns of it: --filter '{"category": {"asking":
    "category"}, "year": {"asking": {"gt": "year"}}}'. No row meets a comparison with
    NULL.
    """
    from pgembed.batch.execute import Options
    from pgembed.batch.limits import check_recall, thread_count

    _check_queries(arguments)
    with (
        connect(options.settings(dsn=dsn).dsn, purpose="batch") as connection,
        _Bar(shown=not as_json) as bar,
    ):
        given = Options(
            check_recall(arguments["recall"]),
            memory_bytes(arguments["memory"]),
            thread_count(arguments["threads"]),
            not no_layout,
            progress=bar.say,
        )
        _check_results(connection, arguments["results"])
        rows, report = _run(connection, embedding, arguments, given)
    seconds = sum(report.seconds.values())
    summary = {
        "results": rows,
        "strategy": report.strategy,
        "rows": report.rows,
        "conditions": report.conditions,
        "seconds": round(seconds, 3),
        "measured_recall": report.recall and round(report.recall, 4),
        "layout": report.layout,
    }
    output.show([summary], as_json=as_json)


def _check_queries(arguments: dict[str, Any]) -> None:
    ways = [arguments["queries"], arguments["itself"], arguments["rows_of"]]
    if sum(way not in (None, False) for way in ways) != 1:
        raise click.UsageError("give one of --queries, --self and --rows-of")
    for name in ("predicate", "filter"):
        if arguments["queries"] is not None and arguments[name]:
            raise click.UsageError(
                f"--{name} is for --self and --rows-of: queries have a column {name}"
            )


def _check_results(connection: Connection, results: str) -> None:
    (parts,) = fetch_one(connection, "SELECT pg_catalog.parse_ident(%s)", [results])
    if len(parts) > 1 and parts[0].startswith("pg_temp"):
        raise SettingError(
            f"table {results} would be temporary, and gone when this command ends: "
            "name an ordinary table for the results"
        )


def _run(
    connection: Connection, embedding: str, arguments: dict[str, Any], given: Options
) -> tuple[int, Report]:
    from pgembed.batch.job import run_batch, run_join

    if arguments["queries"] is not None:
        return run_batch(
            connection,
            embedding,
            arguments["queries"],
            arguments["results"],
            k=arguments["k"],
            options=given,
        )
    return run_join(
        connection,
        embedding,
        arguments["results"],
        asking=arguments["rows_of"],
        k=arguments["k"],
        filter=arguments["filter"],
        predicate=arguments["predicate"],
        options=given,
    )


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
