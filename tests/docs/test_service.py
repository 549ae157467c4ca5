"""The systemd unit starts a worker that exists, and gives it time to stop."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgembed.cli.worker import worker
from pgembed.settings import Settings

UNIT = Path(__file__).parents[2] / "docker" / "pgembed-worker.service"


def read_service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    return unit["Service"]


def test_the_unit_fits_the_command() -> None:
    service = read_service()
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("pgembed", "worker")
    context = worker.make_context("worker", arguments)
    assert context.params["log_format"] == "json"
    assert int(service["TimeoutStopSec"]) > Settings().drain_seconds


def test_models_and_layouts_lie_where_the_unit_may_write() -> None:
    service = read_service()
    environ = dict(each.split("=", 1) for each in shlex.split(service["Environment"]))
    writable = Path("/var/cache", service["CacheDirectory"])
    layouts = Settings.load(environ).cache_dir.parent
    for folder in (layouts, Path(environ["NUMBA_CACHE_DIR"])):
        assert folder.is_relative_to(writable)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNIT.name
    # It looks for the program, which an installation puts there.
    text = UNIT.read_text().replace("/opt/pgembed/bin/pgembed", sys.executable)
    unit.write_text(text)
    done = subprocess.run(
        [program, "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
