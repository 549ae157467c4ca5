"""An embedded server, pgembed installed on it, MiniLM registered, a worker running."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from pgembed.models import registry
from pgembed.postgres import schema
from pgembed.postgres.connection import connect
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.settings import Settings
from pgembed.worker.supervisor import run_worker

MODEL = "minilm"


@contextlib.contextmanager
def running_server(data_dir: Path, listen: str = "") -> Iterator[str]:
    """Start the embedded server on *data_dir* and yield its DSN; stop it after."""
    data_dir = data_dir.expanduser().resolve()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"starting PostgreSQL on {data_dir}", err=True)
    with EmbeddedServer(data_dir, listen=listen) as server:
        yield server.dsn()


def prepare(dsn: str) -> None:
    """Install pgembed and register MiniLM, unless that is done already."""
    with connect(dsn, purpose="prepare") as connection:
        click.echo(str(schema.install(connection)), err=True)
        if registry.find_model(connection, MODEL) is None:
            registry.add_model(
                connection,
                MODEL,
                MODEL,
                report=lambda line: click.echo(f"  {line}", err=True),
            )
            click.echo(f"registered model {MODEL}", err=True)


@contextlib.contextmanager
def running_worker(settings: Settings) -> Iterator[None]:
    """Run a worker beside the caller; let it finish what it holds at the end."""
    stop = threading.Event()
    failures: list[Exception] = []

    def work() -> None:
        try:
            run_worker(settings, stop=stop, quiet=True)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def settings_for(dsn: str, settings: Settings) -> Settings:
    """Return the settings of a worker for another database."""
    return dataclasses.replace(settings, dsn=dsn)
