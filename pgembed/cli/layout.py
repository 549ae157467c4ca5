"""pgembed layout build, show, drop."""

from __future__ import annotations

import click

from pgembed.cli import options, output
from pgembed.postgres.connection import connect


@click.group()
def layout() -> None:
    """Build what makes batches fast: a partitioned copy of an embedding."""


@layout.command()
@click.argument("embedding")
@options.dsn
@options.as_json
@click.option("--workload", help="Table of queries like those to come.")
@click.option(
    "--list-rows",
    type=int,
    default=1000,
    show_default=True,
    help="Rows per posting list.",
)
@click.option("--least-rows", type=int, help="Rows a leaf has at least.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the copy. float16 takes half the room; distances stay those of the table.",
)
@click.option(
    "--memory", default="512MB", show_default=True, help="Beyond mapped files."
)
def build(
    embedding: str,
    dsn: str | None,
    as_json: bool,
    workload: str | None,
    list_rows: int,
    least_rows: int | None,
    precision: str,
    memory: str,
) -> None:
    """Build the layout of EMBEDDING on this host, in place of the one before.

    With --workload, rows are cut by the conditions of its queries, so that a query
    skips the leaves in which no row meets its own. Where vectors show that only queries
    of one region ask for something, only the rows of that region are cut by it.
    """
    from pgembed.batch.job import read_workload
    from pgembed.batch.layout import build_layout

    with connect(options.settings(dsn=dsn).dsn, purpose="layout") as connection:
        built = build_layout(
            connection,
            embedding,
            workload=read_workload(connection, embedding, workload)
            if workload
            else None,
            list_rows=list_rows,
            least_rows=least_rows,
            precision=precision,
            memory=memory,
        )
    row = {
        "rows": built.rows,
        "leaves": built.leaves,
        "lists": built.lists,
        "precision": precision,
        "bytes": built.bytes,
        "seconds": round(sum(built.seconds.values()), 2),
    }
    output.show([row], as_json=as_json)


@layout.command()
@click.argument("embedding", required=False)
@options.dsn
@options.as_json
@click.option(
    "--leaves", is_flag=True, help="Show the leaves: rows, and what holds there."
)
def show(embedding: str | None, dsn: str | None, as_json: bool, leaves: bool) -> None:
    """Show the layouts, or that of EMBEDDING, and when a rebuild pays.

    In a leaf of which "centroid = 7" holds, all rows are nearest to that one of the
    coarse centroids that the build found: they are in one region of the space.
    """
    with connect(options.settings(dsn=dsn).dsn, purpose="layout") as connection:
        if embedding is not None:
            connection.execute("SELECT pgembed._find_embedding(%s)", [embedding])
        if leaves:
            rows = output.query(
                connection,
                "SELECT l.embedding, leaf.* FROM pgembed.layouts AS l, "
                "jsonb_to_recordset(l.description -> 'leaves') "
                "AS leaf (rows bigint, holds jsonb, fails jsonb) "
                "WHERE %(name)s::text IS NULL OR l.embedding = %(name)s",
                {"name": embedding},
            )
        else:
            rows = output.query(
                connection,
                "SELECT embedding, rows, leaves, lists, "
                "coalesce(description ->> 'precision', 'float32') AS precision, "
                "bytes, build_seconds, built_at, changed, staleness, advice "
                "FROM pgembed.layouts "
                "WHERE %(name)s::text IS NULL OR embedding = %(name)s",
                {"name": embedding},
            )
    output.show(rows, as_json=as_json, empty="no layouts yet")


@layout.command()
@click.argument("embedding")
@options.dsn
def drop(embedding: str, dsn: str | None) -> None:
    """Delete the layout of EMBEDDING; batches read the table again."""
    from pgembed.batch.layout import drop_layout

    with connect(options.settings(dsn=dsn).dsn, purpose="layout") as connection:
        there = drop_layout(connection, embedding)
    click.echo(f"dropped the layout of {embedding}" if there else "there was none")
