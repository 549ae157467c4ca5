"""Installing pgembed inside a migration, and as a script for offline mode."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import alembic.context
import psycopg
from alembic.operations import Operations

from pgembed.errors import InstallError
from pgembed.postgres import installation, schema
from pgembed.postgres import script as text
from pgembed.postgres.resources import Resources, Transport

REMOVAL = "DROP SCHEMA pgembed CASCADE;"
REMOVAL_IF_UNUSED = """\
DO $$
BEGIN
    IF EXISTS (SELECT FROM pgembed.model) OR EXISTS (SELECT FROM pgembed.embedding) THEN
        RAISE WARNING 'pgembed stays: models or embeddings are still registered'
            USING HINT = 'op.uninstall_pgembed(force=True) removes it all the same.';
    ELSE
        DROP SCHEMA pgembed CASCADE;
    END IF;
END
$$;"""
REFUSAL_IF_THERE = """\
DO $$
BEGIN
    IF pg_catalog.to_regnamespace('pgembed') IS NOT NULL THEN
        RAISE EXCEPTION 'pgembed is already here, and this script installs it'
            USING HINT = 'Leave op.install_pgembed() out of the migration, or migrate '
                'without --sql: there it upgrades pgembed, or does nothing.';
    END IF;
END
$$;"""
_SHOWN = 5  # names in a message

# fileConfig(), which env.py calls, silences loggers below others than Alembic's.
_log = logging.getLogger("alembic.pgembed")


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


def uninstall_within(operations: Operations, *, force: bool) -> None:
    """Remove pgembed in the transaction of the migration.

    Where models or embeddings are registered, it stays, and a warning says so; with
    *force* they go with it. Raises InstallError, as schema.uninstall does.
    """
    with _borrowed(operations) as connection:
        used = [] if force else schema.registered_in_transaction(connection)
        if not used:
            schema.uninstall_in_transaction(connection)
            return
    more = f" and {len(used) - _SHOWN} more" if len(used) > _SHOWN else ""
    _log.warning(
        "pgembed stays, because there is still %s%s: op.uninstall_pgembed(force=True) "
        "removes it all the same",
        ", ".join(used[:_SHOWN]),
        more,
    )


@contextlib.contextmanager
def _borrowed(operations: Operations) -> Iterator[psycopg.Connection[Any]]:
    """Lend psycopg's connection, in a transaction, and undo its settings afterwards."""
    bind = operations.get_bind()
    bind.exec_driver_sql("SELECT 1")
    driver = bind.connection.driver_connection
    if isinstance(driver, psycopg.AsyncConnection):
        raise InstallError(
            "migrations run over an asynchronous connection, and pgembed is installed "
            "over a blocking one: run 'pgembed install' before, or migrate with an "
            "engine of create_engine(), which takes the same URL"
        )
    if not isinstance(driver, psycopg.Connection):
        raise InstallError(
            f"migrations run over {type(driver).__module__}, and pgembed is installed "
            "over psycopg: run 'pgembed install' before, or migrate over "
            "postgresql+psycopg://"
        )
    saved = driver.execute(
        "SELECT n, pg_catalog.current_setting(n, true) "
        "FROM pg_catalog.unnest(%s::text[]) AS n",
        [["role", *installation.SETTINGS]],
    ).fetchall()
    try:
        yield driver
    except psycopg.Error as error:
        raise InstallError(f"pgembed was not installed or removed: {error}") from error
    for setting in saved:
        driver.execute("SELECT pg_catalog.set_config(%s, %s, true)", setting)


def script(vector_schema: str, dblink_schema: str | None) -> str:
    """Return the SQL that installs pgembed into a database without it.

    It refuses one that has pgembed: no look at the database tells what is missing.
    """
    schemas = {"vector": vector_schema}
    if dblink_schema is not None:
        schemas["dblink"] = dblink_schema
    transport: Transport = "none" if dblink_schema is None else "dblink"
    parts = [
        REFUSAL_IF_THERE,
        text.create_extensions(schemas),
        "CREATE SCHEMA pgembed;",
        text.contents(Resources.found(), schemas, transport),
        *(f"RESET {name};" for name in installation.SETTINGS),
    ]
    return "\n\n".join(parts)
