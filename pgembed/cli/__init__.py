"""The command line: `pgembed --help`."""

from __future__ import annotations

from pgembed.cli.main import main

__all__ = ["main"]
