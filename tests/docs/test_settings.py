"""docs/settings.md names every setting, with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from pgembed.postgres.resources import Resources
from pgembed.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def table(prefix: str) -> dict[str, str]:
    """Return the defaults on the page, by the names after *prefix*."""
    rows = re.findall(
        rf"^\| `{prefix}([\w]+)` \| (.*?) \|", PAGE.read_text(), re.MULTILINE
    )
    return {name: default.strip("`") for name, default in rows}


def test_settings_of_the_database() -> None:
    files = Resources.found().sql_files("dblink")
    source = "".join(file.read_text() for file in files)
    found = re.findall(r"pgembed\._setting\('(\w+)', '([^']*)'\)", source)
    found += re.findall(r"_call_timeout\('(\w+)', '([^']*)'\)", source)
    start = source.index("FUNCTION pgembed._default_cost(")
    costs = source[start : source.index(" END;", start)]
    for name, default in re.findall(r"WHEN '(\w+)' THEN ([\d.]+)", costs):
        found.append((f"cost_{name}", default))
    assert table("pgembed\\.") == dict(found)
    # One default each.
    assert len(set(found)) == len(dict(found)) == 10


def test_settings_of_processes() -> None:
    page = table("PGEMBED_")
    fields = dataclasses.fields(Settings)
    assert sorted(page) == sorted(f.name.upper() for f in fields)
    for field in fields:
        default = field.default  # of folders the page tells in words
        if isinstance(default, (int, float)) or (default and isinstance(default, str)):
            assert page[field.name.upper()] == re.sub(r"\.0$", "", str(default))
