"""Installing pgembed inside a migration, and as a script for offline mode."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import alembic.context
import psycopg
from alembic import command
from alembic.operations import Operations
from sqlalchemy import create_mock_engine

from pgembed import __version__
from pgembed.errors import InstallError
from pgembed.postgres import installation, migrate, objects, schema
from pgembed.postgres.resources import (
    Resources,
    digest,
    quote_identifier,
    resolve_schemas,
)

REMOVAL = "DROP SCHEMA pgembed CASCADE;"

_VERSION_TABLE = """
CREATE TABLE pgembed.alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
"""


@contextlib.contextmanager
def nested(operations: Operations) -> Iterator[None]:
    """Let pgembed's own migrations run inside of a migration of the application.

    Alembic knows one environment at a time: what it took away is put back.
    """
    environment: Any = getattr(alembic.context, "_proxy", None)
    try:
        yield
    finally:
        if environment is not None:
            environment._install_proxy()
        operations._install_proxy()


def install_within(operations: Operations) -> None:
    """Install or upgrade pgembed in the transaction of the migration.

    Raises InstallError, as schema.install does.
    """
    with _borrowed(operations) as connection, nested(operations):
        schema.install_in_transaction(connection, Resources.found())


def uninstall_within(operations: Operations) -> None:
    """Remove pgembed in the transaction of the migration.

    Raises InstallError, as schema.uninstall does.
    """
    with _borrowed(operations) as connection:
        schema.uninstall_in_transaction(connection)


@contextlib.contextmanager
def _borrowed(operations: Operations) -> Iterator[psycopg.Connection[Any]]:
    """Lend psycopg's connection, in a transaction, and undo its settings afterwards."""
    bind = operations.get_bind()
    bind.exec_driver_sql("SELECT 1")
    driver = bind.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise InstallError(
            f"migrations run over {type(driver).__module__}, and pgembed is installed "
            "over psycopg: run 'pgembed install' before, or migrate over "
            "postgresql+psycopg://"
        )
    saved = driver.execute(
        "SELECT pg_catalog.current_setting('search_path'),"
        " pg_catalog.current_setting('role')"
    ).fetchone()
    try:
        yield driver
    except psycopg.Error as error:
        raise InstallError(f"pgembed was not installed or removed: {error}") from error
    driver.execute(
        "SELECT pg_catalog.set_config('search_path', %s, true),"
        " pg_catalog.set_config('role', %s, true)",
        saved,
    )


def script(vector_schema: str, dblink_schema: str | None) -> str:
    """Return the SQL that installs pgembed into a database without it."""
    resources = Resources.found()
    schemas = {"vector": vector_schema}
    if dblink_schema is not None:
        schemas["dblink"] = dblink_schema
    files = [
        (path.name, resolve_schemas(path.read_text(encoding="utf-8"), schemas))
        for path in resources.sql_files("none" if dblink_schema is None else "dblink")
    ]
    parts = [
        *(
            f"CREATE EXTENSION IF NOT EXISTS {name} SCHEMA {quote_identifier(place)};"
            for name, place in schemas.items()
        ),
        "CREATE SCHEMA pgembed;",
        "SET LOCAL search_path = pg_catalog, pg_temp;",
        installation.TABLE,
        _migrations(resources, schemas),
        *(text for _, text in files),
        schema.REVOKE,
        _record(resources, files),
        "RESET search_path;",
    ]
    return "\n\n".join(part.strip() for part in parts)


def _migrations(resources: Resources, schemas: dict[str, str]) -> str:
    """Return the SQL of pgembed's own migrations, as Alembic writes it offline."""
    config = migrate.alembic_config(resources.migrations)
    config.output_buffer = buffer = io.StringIO()
    config.attributes.update(
        connection=create_mock_engine("postgresql://", lambda *_: None),
        resolve_schemas=lambda text: resolve_schemas(text, schemas),
    )
    command.upgrade(config, "head", sql=True)
    lines = buffer.getvalue().splitlines()
    return "\n".join(line for line in lines if line not in ("BEGIN;", "COMMIT;"))


def _record(resources: Resources, files: list[tuple[str, str]]) -> str:
    head = migrate.head(resources.migrations)
    hashed = digest([("head", head), *files])
    return (
        "INSERT INTO pgembed.installation (version, digest, objects) "  # noqa: S608
        f"VALUES ('{__version__}', '{hashed}', ARRAY(SELECT o.identity FROM "
        f"({objects._OBJECTS}) AS o (kind, identity, oid, stamp) ORDER BY 1));"
    )
