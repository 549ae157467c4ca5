"""Bad input to the command line: a message, an exit status, and nothing changed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import psycopg
import pytest
from click.testing import CliRunner

from pgembed.cli.errors import explain
from pgembed.cli.main import pgembed
from pgembed.errors import PgembedError
from tests.faults.bad_input.cases import ids, read
from tests.faults.bad_input.conftest import Stage

CASES = read("cli.tsv")


@pytest.mark.parametrize(("error", "message", "line"), CASES, ids=ids(CASES))
def test_cli(stage: Stage, error: str, message: str, line: str) -> None:
    environ = {"PGEMBED_DSN": stage.dsn}
    result = CliRunner().invoke(pgembed, shlex.split(line), env=environ)
    assert isinstance(result.exception, (PgembedError, psycopg.Error, SystemExit))
    assert type(result.exception).__name__ == error
    if isinstance(result.exception, SystemExit):
        assert result.exit_code == 2
        assert message in result.output
    else:
        assert explain(result.exception).startswith(message)
        assert "secret" not in explain(result.exception)


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("embedding drop absent", 2),
        ("batch items_v --queries queries --results r --recall 2", 1),
    ],
)
def test_errors_are_shown_without_a_traceback(
    stage: Stage, line: str, lines: int
) -> None:
    """What a person sees: "Error:", what happened, and what to do."""
    command = [sys.executable, "-m", "pgembed", *line.split(), "--dsn", stage.dsn]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == lines


@pytest.mark.parametrize(
    "arguments", [("search", "items_v", b"a\xff"), ("status", "--dsn", b"\xffpassword")]
)
def test_bytes_that_are_no_text_are_an_error(
    stage: Stage, arguments: tuple[str | bytes, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgembed", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PGEMBED_DSN": stage.dsn},
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: a text on the command line")
    assert "the byte 0xff" in line
    assert "password" not in line
