"""The SQL files and migrations that make up the schema, wherever they lie."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pgembed import __version__
from pgembed.errors import InstallError

_PLACEHOLDER = re.compile(r"@extschema:([a-z_]+)@")
_UNFIT = re.compile(r"['\\$%]")
_FILE_NAME = re.compile(r"\d\d_[a-z_]+(?:@(plpython|dblink|none))?\.sql")

Transport = Literal["plpython", "dblink", "none"]
"""How SQL functions reach a worker."""


def resource_dir(name: str) -> Path:
    """Return the folder ``sql`` or ``migrations``: of the wheel, or of the checkout.

    Raises InstallError when neither has it.
    """
    package = Path(__file__).parent.parent
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise InstallError(
        f"the {name} files of pgembed are missing beside {package}: "
        "install the package pgembed-vector again"
    )


@dataclasses.dataclass(frozen=True)
class Resources:
    """What an installation runs: the migrations once, the SQL files every time."""

    sql: Path
    migrations: Path
    version: str = __version__
    """The version of pgembed that they make up."""

    @classmethod
    def found(cls) -> Self:
        """Return the resources that came with this package."""
        return cls(resource_dir("sql"), resource_dir("migrations"))

    def sql_files(self, transport: Transport) -> list[Path]:
        """Return the SQL files in the order in which they run.

        Raises InstallError for a file whose name does not follow sql/README.md.
        """
        return [
            path
            for path in sorted(self.sql.glob("*.sql"))
            if _variant(path) in (None, transport)
        ]

    def earlier_releases(self) -> dict[str, str]:
        """Return the versions released before this one, with their newest migration.

        They are written down in ``migrations/releases.json``.
        """
        text = (self.migrations / "releases.json").read_text(encoding="utf-8")
        released: dict[str, str] = json.loads(text)
        return {v: head for v, head in released.items() if v != self.version}


def _variant(path: Path) -> str | None:
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise InstallError(
            f"{path} is not named NN_words.sql, NN_words@plpython.sql, "
            "NN_words@dblink.sql or NN_words@none.sql, so its place in the order is "
            "unknown: rename it"
        )
    return match.group(1)


def resolve_schemas(text: str, schemas: Mapping[str, str]) -> str:
    """Replace each ``@extschema:NAME@`` by the quoted schema of extension NAME.

    Raises InstallError for an extension that *schemas* does not have, and for a schema
    whose name cannot stand in the strings and patterns of functions.
    """

    def schema_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in schemas:
            raise InstallError(
                f"{match.group()} is used, but the database has no extension {name!r}: "
                f"a superuser can run 'CREATE EXTENSION {name}'"
            )
        if _UNFIT.search(schemas[name]):
            raise InstallError(
                f"extension {name} is in schema {schemas[name]!r}, whose name may not "
                "have an apostrophe, backslash, dollar or percent sign: run "
                f"'ALTER EXTENSION {name} SET SCHEMA ...'"
            )
        return quote_identifier(schemas[name])

    return _PLACEHOLDER.sub(schema_of, text)


def quote_identifier(name: str) -> str:
    """Return *name* as SQL writes it, always in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Return *text* as SQL writes it, whatever standard_conforming_strings says."""
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{quoted}'" if "\\" in text else f"'{quoted}'"


def digest(texts: list[tuple[str, str]]) -> str:
    """Return the SHA-256 over names and texts: what an installation consists of."""
    state = hashlib.sha256()
    for name, text in texts:
        for part in (name, text):
            data = part.encode()
            state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()
