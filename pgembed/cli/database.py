"""pgembed install, uninstall, doctor, status."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time

import click
import psycopg

from pgembed.cli import options, output
from pgembed.errors import ConnectError
from pgembed.postgres.connection import Connection, connect, is_standby, is_transient
from pgembed.postgres.transports import Wish
from pgembed.terminal import visible

_SHORTEST, _LONGEST = 0.1, 86_400.0
"""Seconds between two looks at the status."""


@click.command()
@options.dsn
@click.option(
    "--transport",
    type=click.Choice(["auto", "plpython", "dblink", "none"]),
    help="How SQL functions reach a worker; kept for the next installation.",
)
@click.option(
    "--socket-dir",
    help="Folder of workers' sockets, for plpython (at first /run/pgembed); kept, too.",
)
@click.option(
    "--roles",
    is_flag=True,
    help="Create pgembed_user, pgembed_owner and pgembed_worker, where missing, "
    "and grant them their rights here.",
)
def install(
    dsn: str | None, transport: Wish | None, socket_dir: str | None, roles: bool
) -> None:
    """Install schema pgembed in the database, or bring it up to date.

    SQL functions such as pgembed.embed() reach a worker through dblink, wherever the
    worker is, or faster in PL/Python, when it runs on the server's machine. auto takes
    PL/Python when extension plpython3u is in the database and you are a superuser.

    Needs pgvector and a role that may create a schema; no superuser, no files on the
    server. Doing it again changes nothing.

    With --roles, for which the role needs CREATEROLE unless they are there, GRANT
    pgembed_user to roles that search, pgembed_owner to those that declare embeddings on
    tables of theirs, and pgembed_worker to those that workers log in as. 'pgembed
    uninstall' takes their rights in this database, and leaves the roles.
    """
    from pgembed.postgres import schema

    with connect(options.settings(dsn=dsn).dsn, purpose="install") as connection:
        report = schema.install(connection, transport=transport, socket_dir=socket_dir)
        if roles:
            connection.execute("SELECT pgembed.create_roles()")
    click.echo(str(report))
    if roles:
        click.echo(
            "roles pgembed_user, pgembed_owner and pgembed_worker have their rights "
            "here: GRANT them to the roles that log in"
        )
    if report.wish == "none":
        click.echo(
            "pgembed.embed() reaches no worker, by your choice: "
            "'pgembed install --transport auto' changes it"
        )
    elif report.transport == "none":
        click.echo(
            "Extension dblink is not there: pgembed.embed() cannot reach a worker.\n"
            "Run CREATE EXTENSION dblink, then 'pgembed install' again."
        )


@click.command()
@options.dsn
@click.option("--yes", is_flag=True, help="Do not ask.")
def uninstall(dsn: str | None, yes: bool) -> None:
    """Remove schema pgembed from the database.

    Tables, vectors and chunk tables of yours stay.
    """
    from pgembed.postgres import schema

    with connect(options.settings(dsn=dsn).dsn, purpose="uninstall") as connection:
        if not yes:
            click.confirm(
                f"Remove models and embeddings from database {connection.info.dbname}?",
                abort=True,
            )
        schema.uninstall(connection)
    click.echo("removed pgembed; your tables and vectors are as they were")


@click.command()
@options.dsn
@options.as_json
def doctor(dsn: str | None, as_json: bool) -> None:
    """Look for whatever keeps pgembed from working.

    The exit status is 1 when there are errors; warnings leave it 0.
    """
    from pgembed.postgres.doctor import verify

    with connect(options.settings(dsn=dsn).dsn, purpose="doctor") as connection:
        findings = verify(connection)
    output.show(map(dataclasses.asdict, findings), as_json=as_json)
    sys.exit(any(finding.level == "error" for finding in findings))


def _check_seconds(
    _context: click.Context, _option: click.Parameter, seconds: float | None
) -> float | None:
    if seconds is not None and not _SHORTEST <= seconds <= _LONGEST:
        raise click.BadParameter(f"{seconds} is not from {_SHORTEST} to {_LONGEST:.0f}")
    return seconds


@click.command()
@options.dsn
@options.as_json
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=float,
    callback=_check_seconds,
    metavar="[SECONDS]",
    help="Show it anew every so often (2 seconds), until Ctrl-C.",
)
def status(dsn: str | None, as_json: bool, watch: float | None) -> None:
    """Show how the embeddings are doing.

    Rows of the source, those that have a vector, wait or failed, how long the oldest
    waits, rows per second during the last minute, and the state of the index.
    """
    settings = options.settings(dsn=dsn)
    with contextlib.suppress(KeyboardInterrupt):
        with connect(settings.dsn, purpose="status") as connection:
            _show_status(connection, as_json=as_json)
        if watch is not None:
            _watch(settings.dsn, watch, as_json=as_json)


def _watch(dsn: str, seconds: float, *, as_json: bool) -> None:
    """Show it again and again; a connection that is lost is opened anew."""
    while True:
        time.sleep(seconds)
        try:
            with connect(dsn, purpose="status") as connection:
                while True:
                    if not as_json:
                        click.clear()  # on a terminal
                    _show_status(connection, as_json=as_json)
                    time.sleep(seconds)
        except (psycopg.Error, ConnectError) as error:
            if not is_transient(error):
                raise
            click.echo(f"{visible(str(error).splitlines()[0])}; trying again", err=True)


def _show_status(connection: Connection, *, as_json: bool) -> None:
    rows = output.query(connection, "SELECT * FROM pgembed.embedding_status")
    workers = output.query(
        connection, "SELECT role, host, pid FROM pgembed.workers WHERE live"
    )
    output.show(rows, as_json=as_json, empty="no embeddings yet")
    if not as_json and not workers:
        where = " and the primary's DSN" if is_standby(connection) else ""
        click.echo(f"no worker is running: start one with 'pgembed worker'{where}")
