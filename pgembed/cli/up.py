"""pgembed up."""

from __future__ import annotations

from pathlib import Path

import click

from pgembed.cli import options


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
    stays, and the next `pgembed up` goes on with it.
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
        click.echo("ready; Ctrl-C stops server and worker", err=True)
        run_worker(local.settings_for(dsn, settings), quiet=True)
