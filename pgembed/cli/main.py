"""The `pgembed` command and how its errors are shown.

Commands import what is slow to import (ONNX Runtime, Alembic) when they run.
"""

from __future__ import annotations

import errno
import logging
import sys

import click
import psycopg

from pgembed import __version__, logs
from pgembed.cli import (
    advise,
    batch,
    calibrate,
    database,
    demo,
    embedding,
    extension,
    layout,
    model,
    recall,
    search,
    up,
    worker,
)
from pgembed.cli.errors import explain
from pgembed.errors import PgembedError
from pgembed.terminal import visible

_UNDECODED = 0xDC00
"""Python has bytes that are no text as characters from here on, by surrogateescape."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96}
)
@click.version_option(__version__, prog_name="pgembed")
def pgembed() -> None:
    """Turn a PostgreSQL database with pgvector into a vector database.

    New here? `pgembed demo` shows everything on an embedded server; `pgembed up`
    leaves such a server and a worker running. On a server of your own: `pgembed
    install`, `pgembed model add minilm minilm`, and `pgembed worker`.

    The database is given by --dsn, by PGEMBED_DSN, or by libpq's PG* variables.
    """


for command in (
    demo.demo,
    up.up,
    database.install,
    database.uninstall,
    database.doctor,
    database.status,
    extension.extension,
    worker.worker,
    model.model,
    embedding.embedding,
    search.search,
    recall.recall,
    advise.advise,
    calibrate.calibrate,
    batch.batch,
    layout.layout,
):
    pgembed.add_command(command)


def main() -> None:
    """Run the command line; errors become one message and exit status 1."""
    logs.configure()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        pgembed(auto_envvar_prefix=None)
    except (PgembedError, psycopg.Error) as error:
        _fail(explain(error))
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - _UNDECODED
        if byte not in range(128, 256):
            raise
        _fail(
            f"a text on the command line or in the environment has the byte {byte:#x} "
            "where no character of UTF-8 has it: write it in UTF-8"
        )
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _fail(f"what the command writes finds no room: {error.strerror}")


def _fail(message: str) -> None:
    click.secho(f"Error: {visible(message)}", err=True, fg="red")
    sys.exit(1)
