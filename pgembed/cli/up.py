"""pgembed up."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgembed.cli import options

if TYPE_CHECKING:
    from pgembed.postgres.embedded import EmbeddedServer


@click.command()
@click.option(
    "--data",
    "data_dir",
    type=Path,
    envvar="PGEMBED_DATA_DIR",
    show_envvar=True,
    help="Folder of the server's data, created when it is not there; default: in that "
    "of the user's data, ~/.local/share/pgembed/postgres on Linux.",
)
@click.option("--listen", default="", help="Listen on this address too, 127.0.0.1 say.")
@options.setting("--processes", int, "Processes that embed rows (default 1).")
@options.setting("--cache-dir", Path, "Where verified model files are kept.")
def up(
    data_dir: Path | None, listen: str, processes: int | None, cache_dir: Path | None
) -> None:
    """Run an embedded server with pgembed and a worker.

    The server is PostgreSQL with pgvector; the model minilm is registered.

    Prints the DSN on a line of its own. Ctrl-C stops server and worker; the data
    stays, and the next `pgembed up` goes on with it. A server that runs on the data
    already is used and left running: `kill -INT $(head -1 DATA/postmaster.pid)` stops
    one that nobody stopped, with DATA for its folder.
    """
    from pgembed.cli import local
    from pgembed.worker.supervisor import run_worker

    settings = options.settings(
        data_dir=data_dir, processes=processes, cache_dir=cache_dir
    )
    with local.running_server(settings.data_dir, listen) as server:
        dsn = server.dsn()
        local.prepare(dsn)
        click.echo(dsn)
        click.echo(f"ready; Ctrl-C {_what_stops(server)}", err=True)
        run_worker(dataclasses.replace(settings, dsn=dsn), quiet=True)


def _what_stops(server: EmbeddedServer) -> str:
    if server.started:
        return "stops server and worker"
    # Not by pg_ctl, which refuses to run as root.
    file = shlex.quote(str(server.data_dir / "postmaster.pid"))
    return (
        "stops the worker; the server, which ran before, goes on. To stop it, too: "
        f"kill -INT $(head -1 {file})"
    )
