"""pgembed embedding create, list, status, retry, reconcile, pause, resume, drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from pgembed.cli import options, output, progress
from pgembed.errors import EmbeddingError
from pgembed.postgres.connection import connect, fetch_one


@click.group()
def embedding() -> None:
    """Declare and look after embeddings."""


@embedding.command()
@click.argument("source")
@click.argument("content")
@click.option("--model", required=True, help="Name of a registered model.")
@options.dsn
@click.option("--name", help="Default: TABLE_COLUMN.")
@click.option("--target-column", help="Default: COLUMN_embedding.")
@click.option("--chunk-tokens", type=int, help="Cut content into chunks of so many.")
@click.option("--chunk-overlap", type=int, default=0, help="Tokens chunks share.")
@click.option(
    "--storage", default="vector", show_default=True, help="vector, halfvec or bit."
)
@click.option(
    "--index", default="hnsw", show_default=True, help="hnsw, ivfflat or none."
)
@click.option(
    "--on-change",
    default="keep",
    show_default=True,
    help="keep or clear the old vector.",
)
@click.option("--wait", is_flag=True, help="Wait until every row has its vector.")
def create(dsn: str | None, wait: bool, **arguments: Any) -> None:
    """Keep a vector column of table SOURCE true to CONTENT.

    CONTENT is a column, or a template such as '{title}: {body}'.
    """
    with connect(options.settings(dsn=dsn).dsn, purpose="embedding") as connection:
        (name,) = fetch_one(
            connection,
            """
            SELECT pgembed.create_embedding(
                %(source)s::text::regclass, %(content)s, %(model)s, name => %(name)s,
                target_column => %(target_column)s,
                chunk_tokens => %(chunk_tokens)s::int,
                chunk_overlap => %(chunk_overlap)s::int, storage => %(storage)s,
                index => %(index)s, on_change => %(on_change)s
            )
            """,
            arguments,
        )
        click.echo(f"created embedding {name}")
        if wait:
            progress.wait_until_current(connection, name)


@embedding.command("list")
@options.dsn
@options.as_json
def list_embeddings(dsn: str | None, as_json: bool) -> None:
    """List the embeddings and what they are made of."""
    with connect(options.settings(dsn=dsn).dsn, purpose="embedding") as connection:
        rows = output.query(
            connection,
            "SELECT name, source::text, content, model, target::text, target_column, "
            "storage, distance, index_method, index_state, paused "
            "FROM pgembed.embedding ORDER BY name",
        )
    output.show(rows, as_json=as_json, empty="no embeddings yet")


@embedding.command("status")
@click.argument("name")
@options.dsn
@options.as_json
@click.option("--failures", is_flag=True, help="List the rows that failed, and why.")
def status(name: str, dsn: str | None, as_json: bool, failures: bool) -> None:
    """Show how one embedding is doing."""
    statement = (
        "SELECT key, attempts, error, failed_at FROM pgembed.failures "
        "WHERE embedding = %s"
        if failures
        else "SELECT * FROM pgembed.embedding_status WHERE name = %s"
    )
    with connect(options.settings(dsn=dsn).dsn, purpose="embedding") as connection:
        connection.execute("SELECT pgembed._find_embedding(%s)", [name])
        rows = output.query(connection, statement, [name])
    output.show(rows, as_json=as_json, empty="no failures")


def _simple(functions: Sequence[str], done: str, help_text: str) -> click.Command:
    @click.command(help=help_text)
    @click.argument("name")
    @options.dsn
    def command(name: str, dsn: str | None) -> None:
        with connect(options.settings(dsn=dsn).dsn, purpose="embedding") as connection:
            for function in functions:
                (count,) = fetch_one(
                    connection, f"SELECT pgembed.{function}(%s)".encode(), [name]
                )
        click.echo(done.format(name=name, count=count))

    return command


for verb, functions, done, help_text in (
    (
        "retry",
        ["retry_failed"],
        "{count} rows of {name} are tried again",
        "Give the rows that failed their attempts again.",
    ),
    (
        "reconcile",
        # Two transactions: while rows are compared, writers go on.
        ["_repair_capture", "reconcile"],
        "{count} rows of {name} were queued",
        "Queue every row whose vector may not be true; after a restore, say.",
    ),
    (
        "pause",
        ["pause_embedding"],
        "paused {name}",
        "Let the workers leave an embedding alone.",
    ),
    (
        "resume",
        ["resume_embedding"],
        "resumed {name}",
        "Let the workers go on with an embedding.",
    ),
):
    embedding.add_command(_simple(functions, done, help_text), verb)


@embedding.command()
@click.argument("name")
@options.dsn
@click.option("--drop-vectors", is_flag=True, help="Drop column or chunk table too.")
def drop(name: str, dsn: str | None, drop_vectors: bool) -> None:
    """Stop keeping an embedding; its vectors stay unless told otherwise."""
    with connect(options.settings(dsn=dsn).dsn, purpose="embedding") as connection:
        connection.execute(
            "SELECT pgembed.drop_embedding(%s, drop_vectors => %s)",
            [name, drop_vectors],
        )
    click.echo(f"dropped embedding {name}")


@embedding.command("wait")
@click.argument("name")
@options.dsn
def wait_for(name: str, dsn: str | None) -> None:
    """Wait, with a progress bar, until no row of an embedding is pending."""
    with connect(options.settings(dsn=dsn).dsn, purpose="embedding") as connection:
        connection.execute("SELECT pgembed._find_embedding(%s)", [name])
        pending, attended = fetch_one(
            connection,
            "SELECT s.pending, EXISTS (SELECT FROM pgembed.workers WHERE live) "
            "FROM pgembed.embedding_status AS s WHERE s.name = %s",
            [name],
        )
        if pending != 0 and not attended:
            raise EmbeddingError(
                "no worker is running: start one with 'pgembed worker'"
            )
        progress.wait_until_current(connection, name)
