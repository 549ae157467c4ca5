"""Options that several commands share, and the settings they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from pgembed.errors import FilterError
from pgembed.settings import Settings

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def setting(flag: str, kind: Any, help_text: str) -> Decorator:
    """Return an option that is also the environment variable PGEMBED_<FLAG>."""
    variable = "PGEMBED_" + flag.lstrip("-").replace("-", "_").upper()
    return click.option(
        flag, type=kind, envvar=variable, show_envvar=True, help=help_text
    )


dsn = setting("--dsn", str, "libpq connection string or URI of the database.")

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)


def check_filter(text: str | None) -> None:
    """Raise FilterError for a --filter that is not JSON."""
    try:
        json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise FilterError(
            f"the filter {text!r} is not JSON: {error}; write it as "
            "'{\"column\": value}', in single quotes for the shell"
        ) from None


def settings(**arguments: Any) -> Settings:
    """Return the settings; arguments that are None count as not given."""
    return Settings.load(**arguments)
