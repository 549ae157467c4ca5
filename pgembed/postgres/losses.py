"""What schema pgembed can have lost that no installation brings back."""

from __future__ import annotations

import dataclasses

from pgembed.errors import InstallError
from pgembed.postgres import guards, installation, migrate
from pgembed.postgres.connection import Connection, fetch_one

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
    return vectors(connection)


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
