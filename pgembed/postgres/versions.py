"""The database's version of pgembed, and this one: what to run when they differ."""

from __future__ import annotations

import dataclasses
import re

from pgembed import __version__
from pgembed.postgres.connection import Connection, fetch_one


@dataclasses.dataclass(frozen=True)
class Difference:
    """The schema is of another version than this code."""

    message: str
    """Which versions they are."""
    remedy: str
    """What to run."""
    is_newer: bool
    """Whether the schema is the newer one."""

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


def numbers(version: str) -> list[int]:
    """Return what versions are compared by."""
    return [int(number) for number in re.findall(r"\d+", version)]


def difference(connection: Connection) -> Difference | None:
    """Return how the schema's version differs from this code's, or None.

    Needs no rights; of a schema that is no extension only who may read it learns.
    """
    extension = _extension_version(connection)
    found = extension or _schema_version(connection)
    if found is None or found == __version__:
        return None
    what = "extension pgembed" if extension else "the schema of pgembed"
    return Difference(
        f"the database has {what} {found}, and this is pgembed {__version__}",
        _remedy(connection, found, is_extension=extension is not None),
        is_newer=numbers(found) > numbers(__version__),
    )


def _remedy(connection: Connection, found: str, *, is_extension: bool) -> str:
    if numbers(found) > numbers(__version__):
        return "run 'pip install --upgrade pgembed-vector'"
    if not is_extension:
        return "run 'pgembed install'"
    (has_files,) = fetch_one(
        connection,
        """
        SELECT EXISTS (
            SELECT FROM pg_catalog.pg_available_extension_versions AS v
            WHERE v.name = 'pgembed' AND v.version = %s)
        """,
        (__version__,),
    )
    update = "run 'ALTER EXTENSION pgembed UPDATE' in this database"
    if has_files:
        return update
    return f"run 'pgembed extension install' on the server's machine, then {update}"


def _extension_version(connection: Connection) -> str | None:
    row = fetch_one(
        connection,
        "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pgembed'",
    )
    return row and str(row[0])


def _schema_version(connection: Connection) -> str | None:
    # What is not there, or may not be read, is not asked for.
    (readable,) = fetch_one(
        connection,
        """
        SELECT coalesce(pg_catalog.bool_or(
            pg_catalog.has_schema_privilege(n.oid, 'USAGE')
            AND pg_catalog.has_table_privilege(c.oid, 'SELECT')), false)
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'pgembed' AND c.relname = 'installation'
        """,
    )
    if not readable:
        return None
    row = fetch_one(connection, "SELECT i.version FROM pgembed.installation AS i")
    return row and str(row[0])
