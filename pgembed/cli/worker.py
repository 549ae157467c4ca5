"""pgembed worker."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import psycopg

from pgembed import logs
from pgembed.cli import options
from pgembed.cli.errors import explain
from pgembed.errors import PgembedError
from pgembed.settings import LOG_FORMATS

_log = logging.getLogger(__name__)


@click.command()
@options.dsn
@click.option("--once", is_flag=True, help="Do what waits or comes due, then exit.")
@options.setting("--processes", int, "Processes that embed rows (default 1).")
@options.setting("--threads", int, "Batches side by side (default: cores / processes).")
@options.setting("--batch-tokens", int, "Padded tokens in one batch (default 1024).")
@options.setting("--claim-rows", int, "Rows held under one lease (default 512).")
@options.setting(
    "--lease-seconds", float, "How long a lease lasts unrenewed (default 60)."
)
@options.setting(
    "--poll-seconds", float, "How often to look for work unasked (default 2)."
)
@options.setting(
    "--max-attempts", int, "Attempts before a row counts as failed (default 5)."
)
@options.setting("--drain-seconds", float, "Time to finish after SIGTERM (default 30).")
@options.setting("--batch-memory", str, "Most for a posted batch (default 512MB).")
@options.setting("--socket-dir", str, "Where SQL functions find it, if mounted here.")
@options.setting("--cache-dir", Path, "Where verified model files are kept.")
@options.setting("--metrics-port", int, "Serve metrics to Prometheus there.")
@options.setting("--metrics-address", str, "On this address (default 127.0.0.1).")
@options.setting("--log-format", click.Choice(LOG_FORMATS), "plain (default) or json.")
def worker(once: bool, **arguments: str | int | float | Path | None) -> None:
    """Embed rows, answer calls and carry out posted batches until stopped.

    One process per --processes embeds rows, and one more answers pgembed.embed() and
    its like, and carries out what pgembed.search_batch() and its like have posted.
    SIGTERM or Ctrl-C lets them finish what they hold; killing them is safe at any
    moment.

    With --once all rows that wait are embedded, then all posted batches are carried
    out, until there is neither; no calls are answered. The exit status is 1 when an
    embedding had to be left, because no worker can go on with it, and when it was told
    to stop before all was done. An index that could not be built, or whose build gave
    way to others, leaves it 0: 'pgembed status' shows which wait or failed.
    """
    from pgembed.worker.supervisor import run_worker

    as_json = arguments["log_format"] == "json"
    if as_json:
        logs.configure(log_format="json")
    try:
        run_worker(options.settings(**arguments), once=once)
    except (PgembedError, psycopg.Error) as error:
        if not as_json:
            raise
        _log.error("%s", explain(error))
        sys.exit(1)
