"""pgembed advise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click

from pgembed.cli import options, output
from pgembed.postgres.connection import Connection, connect
from pgembed.search import advice
from pgembed.terminal import visible


@click.command()
@click.argument("embedding")
@options.dsn
@options.as_json
@click.option("--workload", help="Table with a column filter; default: the record.")
@click.option(
    "--budget", "budget_mb", type=float, help="MB; default: a full index's size."
)
@click.option("--apply", "apply_it", is_flag=True, help="Create the indexes.")
@click.option("--drop-unused", is_flag=True, help="Drop those that serve no search.")
def advise(
    embedding: str,
    dsn: str | None,
    as_json: bool,
    workload: str | None,
    budget_mb: float | None,
    apply_it: bool,
    drop_unused: bool,
) -> None:
    """Propose indexes for the filters that searches use.

    For filters that recur, partial vector indexes; for columns that many filters name,
    covering indexes: they include the vectors, and make exact searches fast.

    The filters are those of a table, or those that searches recorded: ALTER DATABASE
    ... SET pgembed.record_filters = 0.01 records one search in a hundred (its filter,
    not its text). Indexes are created and dropped CONCURRENTLY; the effect on a sample
    of searches is measured before and after: those of the workload, if it has a column
    embedding, else vectors of the table. A partial index through which searches find
    too few of the nearest rows, as they may where vectors repeat, is dropped again; the
    next --apply proposes and measures it again.
    """
    with connect(options.settings(dsn=dsn).dsn, purpose="advise") as connection:
        if drop_unused:
            dropped = advice.drop_unused(connection, embedding, workload=workload)
            output.show(
                map(dataclasses.asdict, dropped),
                as_json=as_json,
                empty="every advised index serves a search",
            )
            return
        found = advice.advise(
            connection, embedding, budget_mb=budget_mb, workload=workload
        )
        output.show(
            map(dataclasses.asdict, found),
            as_json=as_json,
            empty="no index would pay. Are there filters? ALTER DATABASE ... SET "
            "pgembed.record_filters = 0.01 records some, --workload names a table",
        )
        if apply_it and found:
            _apply(connection, embedding, workload, found, quiet=as_json)


def _apply(
    connection: Connection,
    embedding: str,
    workload: str | None,
    found: Sequence[advice.Advice],
    *,
    quiet: bool,
) -> None:
    filters = advice.sample_filters(connection, embedding, workload=workload)
    before = advice.measure(connection, embedding, filters, workload=workload)
    for each in found:
        name = visible(each.index_name)
        if not each.present:
            click.echo(f"creating {name}", err=True)
        recall = advice.apply(connection, each, workload=workload)
        if recall is not None:
            click.echo(
                f"dropped {name} again: searches through it had a recall of "
                f"{recall:.3f}, under {advice.LEAST_RECALL}. That happens where "
                "vectors repeat, or nearly do, which defeats an HNSW index",
                err=True,
            )
    after = advice.measure(connection, embedding, filters, workload=workload)
    if not quiet:
        for word, (recall, ms) in (("before", before), ("after", after)):
            click.echo(f"{word}: {ms:.2f} ms a search, recall {recall:.3f}")
