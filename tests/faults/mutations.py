"""Take protections away, one at a time, and see the tests fail that are there for them.

``make mutations`` works on copies of the sources in a temporary folder; the checkout is
only read. First the tests must pass on a copy as it is, then each protection's tests
must fail without it: by an assertion of theirs, not because they cannot be set up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import click

from tests.faults.protections import PROTECTIONS, ROOT, Protection

_COPIED = ("pgembed", "sql", "migrations", "tests", "docs")
_FILES = ("pyproject.toml", "README.md")
_SHOWN = 90
_PASSED, _FAILED = 0, 1  # pytest's exit codes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What pytest said: its exit code, and test → message of failures and errors."""

    code: int
    failures: dict[str, str]
    errors: dict[str, str]
    output: str


@contextlib.contextmanager
def copy_of_project() -> Iterator[Path]:
    """Yield a temporary folder with the project's sources."""
    with tempfile.TemporaryDirectory(prefix="pgembed-mutant-") as folder:
        for name in _COPIED:
            shutil.copytree(
                ROOT / name,
                Path(folder, name),
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        for name in _FILES:
            shutil.copy(ROOT / name, folder)
        yield Path(folder)


def run_tests(root: Path, tests: tuple[str, ...]) -> Outcome:
    """Run *tests* on the sources below *root*, in the processes of workers too."""
    report = root / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    failures: dict[str, str] = {}
    errors: dict[str, str] = {}
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - ours
            for found, kind in ((failures, "failure"), (errors, "error")):
                if (node := case.find(kind)) is not None:
                    found[case.get("name", "")] = node.get("message", "")
    return Outcome(done.returncode, failures, errors, done.stdout + done.stderr)


def check(protection: Protection) -> tuple[bool, list[str]]:
    """Return whether every test failed without the protection, and what each said."""
    with copy_of_project() as root:
        for edit in protection.edits:
            edit.apply(root)
        outcome = run_tests(root, protection.tests)
    if outcome.code != _FAILED or outcome.errors:
        return outcome.code == _FAILED and not outcome.errors, [_reason(outcome)]
    lines = [_verdict(test, outcome) for test in protection.tests]
    return all(not line.startswith("STILL PASSES") for line in lines), lines


def _reason(outcome: Outcome) -> str:
    if outcome.code == _PASSED:
        return "STILL PASSES: no test sees that it is gone"
    last = "\n".join(outcome.output.splitlines()[-15:])
    return f"pytest could not run the tests (exit {outcome.code}):\n{last}"


def _verdict(test: str, outcome: Outcome) -> str:
    name = test.split("::")[1]
    for case, message in outcome.failures.items():
        if case == name or case.startswith(f"{name}["):
            brief = " ".join(message.split())[:_SHOWN]
            return f"{case}: {brief}"
    return f"STILL PASSES: {name}"


@click.command()
@click.option("--only", multiple=True, help="Names of protections; default: all.")
def main(only: tuple[str, ...]) -> None:
    """Print for each protection what was taken away and which test failed."""
    names = {protection.name for protection in PROTECTIONS}
    if unknown := set(only) - names:
        raise click.BadParameter(f"{unknown} not among {sorted(names)}")
    chosen = [p for p in PROTECTIONS if not only or p.name in only]
    _require_passing(chosen)
    survivors = []
    for protection in chosen:
        caught, lines = check(protection)
        click.echo(f"{protection.name}\n    removed: {protection.removed}")
        for line in lines:
            click.echo(f"    {'failed:' if caught else 'NOT CAUGHT:'} {line}")
        if not caught:
            survivors.append(protection.name)
    caught_all = len(chosen) - len(survivors)
    click.echo(f"{caught_all} of {len(chosen)} removals made their tests fail")
    sys.exit(1 if survivors else 0)


def _require_passing(chosen: list[Protection]) -> None:
    """Exit unless the tests pass with all protections in place."""
    tests = dict.fromkeys(test for protection in chosen for test in protection.tests)
    with copy_of_project() as root:
        outcome = run_tests(root, tuple(tests))
    if outcome.code != _PASSED:
        click.echo(outcome.output)
        raise click.ClickException("the tests fail with every protection in place")
    click.echo(f"{len(tests)} tests pass with every protection in place\n")


if __name__ == "__main__":
    main()
