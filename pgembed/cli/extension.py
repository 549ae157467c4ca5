"""pgembed extension."""

from __future__ import annotations

import click

from pgembed.postgres.resources import Transport


@click.group()
def extension() -> None:
    """pgembed as an extension of PostgreSQL, for CREATE EXTENSION.

    The alternative is `pgembed install`, which needs no files on the server.
    """


@extension.command()
@click.option(
    "--pg-config",
    default="pg_config",
    envvar="PGEMBED_PG_CONFIG",
    show_envvar=True,
    help="The server's program pg_config (default: the one on PATH).",
)
@click.option(
    "--transport",
    type=click.Choice(["plpython", "dblink", "none"]),
    help="How SQL functions reach a worker (at first dblink); kept.",
)
@click.option(
    "--socket-dir",
    help="Folder of workers' sockets, for plpython (at first /run/pgembed); kept.",
)
def install(
    pg_config: str, transport: Transport | None, socket_dir: str | None
) -> None:
    """Write control file and scripts into the server's folder of extensions.

    Run it on the server's machine, as a user who may write there. Then, in a database:
    CREATE EXTENSION pgembed CASCADE, or ALTER EXTENSION pgembed UPDATE where an older
    version is.
    """
    from pgembed.postgres import extension as files

    server = files.Server.described_by(pg_config)
    for path in files.write(server, transport, socket_dir):
        click.echo(f"wrote {path}")
    click.echo(
        "Now, in a database: CREATE EXTENSION pgembed CASCADE;\n"
        "or, where it has an older version: ALTER EXTENSION pgembed UPDATE;"
    )
