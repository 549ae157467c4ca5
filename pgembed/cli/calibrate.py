"""pgembed calibrate."""

from __future__ import annotations

import click

from pgembed.cli import options, output
from pgembed.postgres.connection import connect


@click.command()
@click.argument("embedding")
@options.dsn
@options.as_json
@click.option("--dry-run", is_flag=True, help="Measure, and store nothing.")
def calibrate(embedding: str, dsn: str | None, as_json: bool, dry_run: bool) -> None:
    """Measure what searches cost on this server, for the planner to use.

    EMBEDDING should have a big table with an HNSW index. The constants, in
    microseconds, are stored as settings of the database, which its owner may do; new
    sessions plan with them.
    """
    with connect(options.settings(dsn=dsn).dsn, purpose="calibrate") as connection:
        rows = output.query(
            connection,
            "SELECT name, value FROM pgembed.calibrate(%s, store => %s)",
            (embedding, not dry_run),
        )
    output.show(rows, as_json=as_json)
