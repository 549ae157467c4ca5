"""What schema pgembed can have lost that no installation brings back."""

from __future__ import annotations

import dataclasses

from pgembed.errors import InstallError
from pgembed.postgres import guards, installation, migrate
from pgembed.postgres.connection import Connection, extension_schema, fetch_one

_BEGIN_ANEW = (
    "run 'pgembed uninstall', then 'pgembed install', add the models and declare the "
    "embeddings again"
)


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is gone."""

    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


def find(connection: Connection) -> Loss | None:
    """Return what the schema has lost, or None; needs the rights of its owner."""
    if _has_no_data(connection):
        return Loss(
            "schema pgembed was restored without its data",
            f"restore the data, with 'pg_restore --data-only' say, or {_BEGIN_ANEW}",
        )
    return vectors(connection) or _moved(connection)


def vectors(connection: Connection) -> Loss | None:
    """Return that DROP EXTENSION vector CASCADE took columns, or None."""
    row = fetch_one(
        connection,
        """
        SELECT FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'pgembed' AND c.relname = 'call' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attname = 'vectors' AND NOT a.attisdropped)
        """,
    )
    if row is None:
        return None
    return Loss("columns of schema pgembed went with extension vector", _BEGIN_ANEW)


def refuse(connection: Connection) -> None:
    """Raise InstallError when something is lost."""
    loss = find(connection)
    if loss is not None:
        raise InstallError(str(loss))


def _has_no_data(connection: Connection) -> bool:
    if not all(guards.has_table(connection, t) for t in ("model", "installation")):
        return False
    return installation.read(connection) is None or migrate.current(connection) is None


def _moved(connection: Connection) -> Loss | None:
    """Return that an extension's functions look for pgvector where it was, or None."""
    function = "pgembed._vector_type(text, integer)"
    (known,) = fetch_one(
        connection, "SELECT pg_catalog.to_regprocedure(%s)", (function,)
    )
    if known is None or extension_schema(connection, "pgembed") is None:
        return None
    name, is_there = fetch_one(
        connection,
        """
        SELECT t, pg_catalog.to_regtype(t) IS NOT NULL
        FROM pgembed._vector_type('vector', 1) AS t
        """,
    )
    if is_there:
        return None
    schema = name.rpartition(".")[0]
    return Loss(
        f"extension vector was moved from schema {schema}, where extension pgembed "
        "looks for it",
        f"run 'ALTER EXTENSION vector SET SCHEMA {schema}'",
    )
