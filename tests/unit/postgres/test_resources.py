"""SQL files: their order, their variants, their placeholders."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from pgembed.errors import InstallError
from pgembed.postgres.resources import (
    Resources,
    Transport,
    digest,
    resolve_schemas,
    resource_dir,
)

TRANSPORTS = get_args(Transport)


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    """Return resources with files of every variant, made in no order."""
    for name in ("30_c", "10_a", *(f"20_b@{name}" for name in TRANSPORTS)):
        (tmp_path / f"{name}.sql").write_text("")
    (tmp_path / "README.md").write_text("")
    return Resources(tmp_path, tmp_path)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_files_in_order_with_the_variant(
    resources: Resources, transport: Transport
) -> None:
    names = [path.name for path in resources.sql_files(transport)]
    assert names == ["10_a.sql", f"20_b@{transport}.sql", "30_c.sql"]


@pytest.mark.parametrize("name", ["a.sql", "1_a.sql", "10-a.sql", "10_a@plperl.sql"])
def test_unknown_names_are_refused(resources: Resources, name: str) -> None:
    (resources.sql / name).write_text("")
    with pytest.raises(InstallError, match="rename it"):
        resources.sql_files("dblink")


def test_every_file_of_ours_has_a_place() -> None:
    found = Resources.found()
    names = {path.name for path in found.sql.glob("*.sql")}
    used = {path.name for name in TRANSPORTS for path in found.sql_files(name)}
    assert used == names


def test_they_are_ascii() -> None:
    """So that they run, and mean the same, in databases of every encoding."""
    found = Resources.found()
    paths = [*found.sql.glob("*.sql"), *found.migrations.rglob("*.sql")]
    assert [path.name for path in paths if not path.read_bytes().isascii()] == []


def test_schemas_are_quoted() -> None:
    text = "a @extschema:vector@.vector, b @extschema:dblink@.f(), c @extschema@"
    schemas = {"vector": 'My "x"', "dblink": "public"}
    assert resolve_schemas(text, schemas) == (
        'a "My ""x""".vector, b "public".f(), c @extschema@'
    )


def test_missing_extension_is_named() -> None:
    with pytest.raises(InstallError, match="CREATE EXTENSION dblink"):
        resolve_schemas("@extschema:dblink@.f()", {"vector": "public"})


def test_digest_depends_on_names_and_limits() -> None:
    variants = [[("ab", "c")], [("a", "bc")], [("ab", "c"), ("", "")], []]
    assert len({digest(texts) for texts in variants}) == len(variants)


def test_unknown_resource_is_an_error() -> None:
    with pytest.raises(InstallError, match="nonsense files of pgembed are missing"):
        resource_dir("nonsense")
