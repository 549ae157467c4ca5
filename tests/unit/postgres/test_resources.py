"""SQL files: their order, their variants, their placeholders."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgembed.errors import InstallError
from pgembed.postgres.resources import (
    Resources,
    digest,
    resolve_schemas,
    resource_dir,
)


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    """Return resources with files of every variant, made in no order."""
    for name in ("30_c", "10_a", "20_b@nodblink", "20_b@dblink"):
        (tmp_path / f"{name}.sql").write_text("")
    (tmp_path / "README.md").write_text("")
    return Resources(tmp_path, tmp_path)


@pytest.mark.parametrize("dblink", [True, False])
def test_files_in_order_with_the_variant(resources: Resources, dblink: bool) -> None:
    names = [path.name for path in resources.sql_files(dblink=dblink)]
    variant = "20_b@dblink.sql" if dblink else "20_b@nodblink.sql"
    assert names == ["10_a.sql", variant, "30_c.sql"]


@pytest.mark.parametrize("name", ["a.sql", "1_a.sql", "10-a.sql", "10_a@plpython.sql"])
def test_unknown_names_are_refused(resources: Resources, name: str) -> None:
    (resources.sql / name).write_text("")
    with pytest.raises(InstallError, match="rename it"):
        resources.sql_files(dblink=True)


def test_every_file_of_ours_has_a_place() -> None:
    found = Resources.found()
    names = {path.name for path in found.sql.glob("*.sql")}
    used = {
        path.name for flag in (True, False) for path in found.sql_files(dblink=flag)
    }
    assert used == names


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
