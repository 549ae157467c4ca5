"""Tables of cases, one a line: the error, how its message begins, and the input."""

from __future__ import annotations

from pathlib import Path


def read(name: str) -> list[tuple[str, str, str]]:
    """Return the cases of a file beside this one."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines() if line[0] != "#"]
    return [(error, message, given) for error, message, given in lines]


def ids(cases: list[tuple[str, str, str]]) -> list[str]:
    """Return short names for the cases, as pytest shows them."""
    return [given[:80] for _, _, given in cases]
