"""Each row of docs/reliability.md names tests that are there, or says what is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = TEXT.split("## The matrix")[1].split("## The soak")[0].splitlines()[4:]
LINK = re.compile(r'\]\(\.\./([^ )]+) "(test_\w+)"\)')


@pytest.mark.parametrize("row", [row for row in ROWS if row])
def test_a_row(row: str) -> None:
    links = LINK.findall(row)
    assert links or "**Not proved**" in row
    for path, name in links:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {name}(" in text, row
