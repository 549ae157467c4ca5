"""Alembic, run inside a transaction that somebody else began and will end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.rows import tuple_row
from sqlalchemy.pool import NullPool

from pgembed.errors import InstallError
from pgembed.postgres import guards
from pgembed.postgres.connection import Connection, fetch_one


def head(migrations: Path) -> str:
    """Return the newest revision in the folder *migrations*."""
    revision = ScriptDirectory.from_config(config(migrations)).get_current_head()
    if revision is None:
        raise InstallError(
            f"{migrations} holds no migration: install pgembed-vector again"
        )
    return revision


def current(connection: Connection) -> str | None:
    """Return the revision of the installed schema, or None when there is none."""
    if not guards.has_table(connection, "alembic_version"):
        return None
    row = fetch_one(connection, "SELECT version_num FROM pgembed.alembic_version")
    return row and str(row[0])


def is_known(revision: str, migrations: Path) -> bool:
    """Whether the folder *migrations* has *revision*."""
    script = ScriptDirectory.from_config(config(migrations))
    return any(known.revision == revision for known in script.walk_revisions())


def upgrade(
    connection: Connection, migrations: Path, resolve: Callable[[str], str]
) -> None:
    """Run the migrations that are still due, in the transaction of *connection*.

    *resolve* replaces the placeholders of a migration's SQL text.
    """
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: _Borrowed(connection),
        poolclass=NullPool,
        # The lookup of hstore wants a connection and gets our wrapper.
        use_native_hstore=False,
    )
    with engine.connect() as borrowed:
        settings = config(migrations)
        settings.attributes.update(connection=borrowed, resolve_schemas=resolve)
        try:
            command.upgrade(settings, "head")
        except sqlalchemy.exc.DBAPIError as error:
            # What SQLAlchemy wraps around it is about SQLAlchemy.
            raise (error.orig or error) from None


def config(migrations: Path) -> Config:
    """Return Alembic's configuration for the folder *migrations*."""
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


class _Borrowed:
    """A psycopg connection whose transaction SQLAlchemy neither ends nor closes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def cursor(self) -> Any:
        return self._connection.cursor(row_factory=tuple_row)

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass
