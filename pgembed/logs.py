"""Log lines on standard error: plain for people, JSON for machines."""

from __future__ import annotations

import logging
import sys
import textwrap
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from pgembed.terminal import visible, visible_line


def configure(level: str = "INFO", log_format: str = "plain") -> None:
    """Log one line a record, instead of wherever records went before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_format))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _formatter(log_format: str) -> logging.Formatter:
    if log_format == "json":
        return JsonFormatter(
            "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    return _PlainFormatter("%(asctime)s %(levelname)s [%(process)d] %(message)s")


class _PlainFormatter(logging.Formatter):
    """Names and texts of others neither forge lines nor command the terminal.

    Only tracebacks have lines of their own, indented below that of their record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return visible_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return textwrap.indent(visible(super().formatException(ei)), "  ")
