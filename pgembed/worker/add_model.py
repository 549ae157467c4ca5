"""add_model for a SQL function, in a process of its own.

What a download and a conversion need in memory and time, and what a hostile file may
do, stays out of the process that answers calls. The request comes as JSON on standard
input, the error, if any, goes as text to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import psycopg

from pgembed.errors import ModelError, PgembedError
from pgembed.models import registry, sources
from pgembed.postgres.connection import connect

_NICENESS = 5


def add(dsn: str, name: str, source: str, options: Mapping[str, Any]) -> None:
    """Fetch, check and store a model; folders of this machine are refused.

    *options* are fields of ModelOptions, and "quantize": true for int8 weights.
    """
    overrides = dict(options)
    quantize = overrides.pop("quantize", False)
    if not isinstance(quantize, bool):
        raise ModelError(f"the option quantize is {quantize!r}: write true or false")
    candidate = sources.resolve(
        source, overrides, quantize=quantize, allow_folders=False
    )
    with connect(dsn, purpose="add_model") as connection:
        registry.store_model(connection, name, candidate)


def main() -> int:
    """Read the request, do it, and return the exit status."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    request = json.load(sys.stdin)
    try:
        add(**request)
    except (PgembedError, psycopg.Error) as error:
        sys.stdout.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
