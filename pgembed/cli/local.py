"""An embedded server, pgembed installed on it, MiniLM registered, a worker running."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from pgembed.errors import ServerError
from pgembed.models import registry
from pgembed.models.sources import resolve
from pgembed.postgres import schema
from pgembed.postgres.connection import connect
from pgembed.postgres.embedded import EmbeddedServer
from pgembed.settings import Settings
from pgembed.worker.supervisor import run_worker

MODEL = "minilm"


@contextlib.contextmanager
def running_server(data_dir: Path, listen: str = "") -> Iterator[EmbeddedServer]:
    """Start the embedded server on *data_dir* and yield it; stop it after.

    Signals that end the process, a closed terminal's too, end the block first.
    Raises ServerError, as the server does, for a folder that cannot be made.
    """
    try:
        data_dir = data_dir.expanduser().resolve()
        data_dir.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # the latter for a ~user that is none
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(
            f"cannot create the folder of {data_dir} for the server's data: {reason}; "
            "choose another with --data"
        ) from None
    click.echo(f"starting PostgreSQL on {data_dir}", err=True)
    with _exit_on_signals(), EmbeddedServer(data_dir, listen=listen) as server:
        yield server


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave the block as sys.exit() does, unless ignored."""
    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {s: h for s in wanted if (h := signal.getsignal(s)) != signal.SIG_IGN}

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in before:  # a second one is not to disturb what ends
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare(dsn: str) -> None:
    """Install pgembed and register MiniLM, unless that is done already."""
    with connect(dsn, purpose="prepare") as connection:
        click.echo(str(schema.install(connection)), err=True)
        if registry.find_model(connection, MODEL) is None:
            candidate = resolve(
                MODEL,
                report=lambda line: click.echo(f"  {line}", err=True),
                allow_folders=False,
            )
            registry.store_model(connection, MODEL, candidate)
            click.echo(f"registered model {MODEL}", err=True)


@contextlib.contextmanager
def running_worker(settings: Settings) -> Iterator[None]:
    """Run a worker beside the caller; let it finish what it holds at the end.

    Raises what run_worker raises; the block is not entered if the worker cannot start.
    """
    stop, started = threading.Event(), threading.Event()
    failures: list[Exception] = []

    def work() -> None:
        try:
            run_worker(settings, stop=stop, started=started, quiet=True)
        except Exception as error:
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    try:
        started.wait()
        if not failures:
            yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
