"""The systemd unit starts a worker that exists, and gives it time to stop."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

from pgembed.cli.worker import worker
from pgembed.settings import Settings

UNIT = Path(__file__).parents[2] / "docker" / "pgembed-worker.service"


def test_the_unit_fits_the_command() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("pgembed", "worker")
    context = worker.make_context("worker", arguments)
    assert context.params["log_format"] == "json"
    assert int(service["TimeoutStopSec"]) > Settings().drain_seconds
