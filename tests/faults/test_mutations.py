"""The list of protections does not rot; ``make mutations`` is the check itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.faults.mutations import copy_of_project
from tests.faults.protections import PROTECTIONS, ROOT, Edit, Protection

DOCS = ROOT / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    files = {edit.file for p in PROTECTIONS for edit in p.edits}
    return {file: (ROOT / file).read_text(encoding="utf-8") for file in files}


@pytest.mark.parametrize("protection", PROTECTIONS, ids=lambda p: p.name)
def test_a_protection(protection: Protection, sources: dict[str, str]) -> None:
    """It is where the list says, once; its tests are there; the docs name both."""
    for edit in protection.edits:
        assert sources[edit.file].count(edit.text) == 1, edit
        changed = sources[edit.file].replace(edit.text, edit.instead)
        assert changed != sources[edit.file]
        if edit.file.endswith(".py"):
            ast.parse(changed)
    (row,) = [
        line
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {protection.name} |")
    ]
    assert protection.removed in row
    for test in protection.tests:
        file, name = test.split("[")[0].split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
        assert f'(../{file} "{name}")' in row


def test_a_text_that_is_not_there_once_is_an_error(tmp_path: Path) -> None:
    for content in ("", "guard guard"):
        (tmp_path / "x.sql").write_text(content)
        with pytest.raises(ValueError, match="not once"):
            Edit("x.sql", "guard", "").apply(tmp_path)


def test_the_checkout_is_only_read() -> None:
    """An edit of the copy leaves the project as it is."""
    edit = PROTECTIONS[0].edits[0]
    with copy_of_project() as root:
        edit.apply(root)
        assert edit.text not in (root / edit.file).read_text(encoding="utf-8")
    assert edit.text in (ROOT / edit.file).read_text(encoding="utf-8")
