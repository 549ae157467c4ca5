"""Which transport carries calls from SQL functions to a worker."""

from __future__ import annotations

from typing import Literal

from pgembed.errors import InstallError
from pgembed.postgres import guards
from pgembed.postgres.connection import Connection, extension_schema, fetch_one
from pgembed.postgres.resources import Transport

Wish = Literal["auto", "plpython", "dblink", "none"]
"""The transport asked for; auto: PL/Python, dblink or none, what the database has."""


def offer(connection: Connection, wish: Wish, place: str | None) -> None:
    """Create the extension of the transport, as far as that is permitted.

    dblink in schema *place*.
    PL/Python, which asks for a worker on the server's machine, only when asked for.
    Raises InstallError when that one cannot be created.
    """
    if wish in ("auto", "dblink"):
        guards.offer_dblink(connection, place)
    elif wish == "plpython" and extension_schema(connection, "plpython3u") is None:
        failure = guards.create_extension(connection, "plpython3u", "pg_catalog")
        if failure is not None:
            raise InstallError(
                f"extension plpython3u cannot be created ({failure}): install it on "
                "the server (package postgresql-plpython3-NN), then let a superuser "
                "run 'CREATE EXTENSION plpython3u' in this database"
            )


def choose(connection: Connection, wish: Wish) -> Transport:
    """Return the transport to install.

    Raises InstallError when the one asked for cannot be had.
    """
    if wish == "none":
        return "none"
    reason = _why_not_plpython(connection)
    if reason is None and wish != "dblink":
        return "plpython"
    if wish == "plpython":
        raise InstallError(f"the transport plpython cannot be had: {reason}")
    if extension_schema(connection, "dblink") is not None:
        return "dblink"
    if wish == "dblink":
        raise InstallError(
            "the transport dblink cannot be had: let a superuser run "
            "'CREATE EXTENSION dblink'"
        )
    return "none"


def _why_not_plpython(connection: Connection) -> str | None:
    if extension_schema(connection, "plpython3u") is None:
        return "let a superuser run 'CREATE EXTENSION plpython3u'"
    owner, is_super = fetch_one(
        connection,
        """
        SELECT r.rolname, r.rolsuper FROM pg_catalog.pg_roles AS r
        WHERE r.oid = coalesce(
            (SELECT n.nspowner FROM pg_catalog.pg_namespace AS n
             WHERE n.nspname = 'pgembed'),
            current_user::pg_catalog.regrole)
        """,
    )
    if not is_super:
        return f"functions in PL/Python need a superuser as their owner, not {owner!r}"
    return None
