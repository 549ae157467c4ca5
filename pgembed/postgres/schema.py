"""Install, upgrade and remove schema pgembed; each in one transaction."""

from __future__ import annotations

import dataclasses

import psycopg
from psycopg import errors

from pgembed import __version__
from pgembed.errors import InstallError
from pgembed.postgres import (
    guards,
    installation,
    losses,
    migrate,
    objects,
    transports,
    vectors,
    versions,
)
from pgembed.postgres.connection import (
    Connection,
    extension_schema,
    fetch_all,
    fetch_one,
    require_idle,
)
from pgembed.postgres.doctor import verify
from pgembed.postgres.installation import Installation
from pgembed.postgres.resources import Resources, resource_dir
from pgembed.postgres.transports import Wish

# Taken by every install and uninstall; the number spells "pgembed" in ASCII.
_LOCK = int.from_bytes(b"pgembed", "big")

# What CREATE OR REPLACE cannot do: another result type, other columns, another kind.
_IRREPLACEABLE = (
    errors.InvalidFunctionDefinition,
    errors.InvalidTableDefinition,
    errors.WrongObjectType,
    errors.AmbiguousFunction,
)


@dataclasses.dataclass(frozen=True)
class InstallReport:
    """What an installation found and did."""

    changed: bool
    """False: the schema was up to date, and nothing was written."""
    version: str
    revision: str
    previous_version: str | None
    """None: there was no schema before."""
    transport: str
    """How SQL functions reach a worker: plpython, dblink or none."""
    wish: Wish
    """How they are to reach one: as asked for, now or at an earlier installation."""

    def __str__(self) -> str:
        if not self.changed:
            return f"pgembed {self.version} is already up to date"
        if self.previous_version is None:
            return f"installed pgembed {self.version}"
        if self.previous_version == self.version:
            return f"refreshed pgembed {self.version}"
        return f"upgraded pgembed from {self.previous_version} to {self.version}"


def install(
    connection: Connection,
    *,
    resources: Resources | None = None,
    transport: Wish | None = None,
    socket_dir: str | None = None,
) -> InstallReport:
    """Install pgembed into the database, or upgrade what is there.

    Runs in one transaction of its own, alone: a second installer waits. Needs a role
    that may create a schema, or owns an empty one; extension vector is created when
    the role may do so, and that of the transport if possible.

    *transport* is how SQL functions are to reach a worker, *socket_dir* the folder in
    which they look for its socket; None leaves them as they were installed, at first
    auto and /run/pgembed.

    Raises InstallError, and changes nothing, when the server or pgvector is too old,
    the schema is newer than this code, has lost what cannot be made anew, or holds
    objects that are not pgembed's; SettingError for a *socket_dir* that is not
    absolute.
    """
    _require_idle(connection)
    try:
        with connection.transaction():
            report = install_in_transaction(
                connection, resources or Resources.found(), transport, socket_dir
            )
    except psycopg.Error as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        raise InstallError(f"the installation failed: {error} {notes}") from error
    vectors.register(connection)
    return report


def _require_idle(connection: Connection) -> None:
    require_idle(connection, "install or remove the schema")


def install_in_transaction(
    connection: Connection,
    resources: Resources,
    transport: Wish | None = None,
    socket_dir: str | None = None,
) -> InstallReport:
    """Do what :func:`install` does, in the open transaction.

    For the rest of it, installation.SETTINGS and the role are changed.

    Raises what install does, and psycopg's errors.
    """
    place = guards.extension_place(connection)
    _enter(connection)
    _refuse_extension(connection)
    guards.require_versions(connection)
    guards.require_vector(connection, place)
    guards.claim_schema(connection)
    losses.refuse(connection)
    calls = installation.wished(connection, transport, socket_dir)
    transports.offer(connection, calls.transport, place)
    plan = installation.plan(connection, resources, calls)
    plan.refuse_newer()
    changed = plan.is_public or not plan.is_current
    if changed:
        _write(connection, resources, plan)
    return InstallReport(
        changed=changed,
        version=__version__,
        revision=plan.head,
        previous_version=plan.found.version if plan.found else None,
        transport=plan.transport,
        wish=plan.calls.transport,
    )


def _refuse_extension(connection: Connection) -> None:
    if extension_schema(connection, "pgembed") is None:
        return
    differs = versions.difference(connection)
    if differs is not None:
        raise InstallError(str(differs))
    raise InstallError(
        "this database has pgembed as an extension, which nothing else may change: "
        "to have a schema instead, run 'pgembed uninstall' first; models and "
        "embeddings go with it, your tables and vectors stay"
    )


def _write(
    connection: Connection, resources: Resources, plan: installation.Plan
) -> None:
    connection.execute(installation.TABLE)
    migrate.upgrade(connection, resources.migrations, plan.resolve)
    written = _run_sql(connection, plan)
    connection.execute("SELECT pgembed._revoke_from_public()")
    if "pgembed._refresh_roles()" in written:
        connection.execute("SELECT pgembed._refresh_roles()")
        connection.execute("SELECT pgembed._give_captures()")
    installation.write(
        connection,
        Installation(__version__, plan.digest, sorted(written), plan.calls),
    )


def _enter(connection: Connection) -> None:
    """Make the transaction ours alone, and deaf to the caller's settings."""
    for name, value in installation.SETTINGS.items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", [name, value])
    connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", (_LOCK,))


def _run_sql(connection: Connection, plan: installation.Plan) -> set[str]:
    """Create or replace all routines and views; drop those that are gone.

    Returns the identities of what the files made. Where a definition cannot be
    replaced, ours are dropped first, and what was granted on them is granted again.
    """
    before = objects.routines_and_views(connection)
    recorded = plan.found.objects if plan.found else ()
    ours = [before[identity] for identity in recorded if identity in before]
    granted = objects.grants(connection)
    try:
        with connection.transaction():
            _run_files(connection, plan.files)
    except _IRREPLACEABLE:
        objects.drop_what_can_go(connection, objects.drop_statements(ours))
        _run_files(connection, plan.files)
    after = objects.routines_and_views(connection)
    written = objects.written_since(before, after)
    gone = [each for each in ours if each.identity in after.keys() - written]
    objects.drop_all_or_refuse(connection, objects.drop_statements(gone))
    objects.grant_again(connection, granted)
    return written


def _run_files(connection: Connection, files: list[tuple[str, str]]) -> None:
    for name, text in files:
        try:
            connection.execute(text.encode())
        except psycopg.Error as error:
            error.add_note(_place(name, text, error))
            raise


def _place(name: str, text: str, error: psycopg.Error) -> str:
    position = error.diag.statement_position
    if position is None:
        return f"in {name}"
    line = text.count("\n", 0, int(position)) + 1
    return f"in {name}, line {line}"


def uninstall(connection: Connection) -> None:
    """Remove schema pgembed, and the triggers and advised indexes that call into it.

    The user's tables stay, with their vectors and chunk tables. Raises InstallError,
    and changes nothing, when there is no schema, when it holds objects of others, or
    when objects elsewhere depend on it.
    """
    _require_idle(connection)
    try:
        with connection.transaction():
            uninstall_in_transaction(connection)
    except psycopg.Error as error:
        raise InstallError(f"pgembed cannot be removed: {error}") from error


def uninstall_in_transaction(connection: Connection) -> None:
    """Do what :func:`uninstall` does, in the open transaction.

    For the rest of it, installation.SETTINGS and the role are changed.

    Raises what uninstall does, and psycopg's errors.
    """
    _enter_installed(connection)
    _revoke_from_workers(connection)
    for statement in (*_trigger_drops(connection), *_index_drops(connection)):
        connection.execute(statement.encode())
    if extension_schema(connection, "pgembed") is not None:
        # First what embeddings made: it uses what the extension made.
        objects.drop_what_can_go(connection, _everything(connection))
        connection.execute("DROP EXTENSION pgembed")
    objects.drop_all_or_refuse(connection, _everything(connection))
    connection.execute("DROP SCHEMA pgembed")


def registered_in_transaction(connection: Connection) -> list[str]:
    """Return what goes with pgembed: "model minilm", "embedding docs_body" and so on.

    The open transaction's role and search_path are changed. Raises InstallError, as
    uninstall does, and psycopg's errors.
    """
    _enter_installed(connection)
    rows = fetch_all(
        connection,
        """
        SELECT 'model ' || m.name FROM pgembed.model AS m
        UNION ALL
        SELECT 'embedding ' || e.name FROM pgembed.embedding AS e
        ORDER BY 1
        """,
    )
    return [row[0] for row in rows]


def _enter_installed(connection: Connection) -> None:
    _enter(connection)
    schema = guards.find_schema(connection)
    if schema is None or not schema.installed:
        raise InstallError("the database holds no installation of pgembed")
    guards.become_owner(connection, schema)
    guards.refuse_foreign(connection, schema)


def _revoke_from_workers(connection: Connection) -> None:
    """Take from workers what they were granted on users' tables."""
    found = fetch_one(
        connection, "SELECT pg_catalog.to_regprocedure('pgembed._worker_roles()')"
    )
    if found[0] is not None:
        connection.execute(
            "SELECT pgembed.revoke_all(w) FROM pgembed._worker_roles() AS w"
        )


def _trigger_drops(connection: Connection) -> list[str]:
    rows = fetch_all(
        connection,
        """
        SELECT pg_catalog.format(
            'DROP TRIGGER %I ON %I.%I', t.tgname, n.nspname, c.relname)
        FROM pg_catalog.pg_trigger AS t
        JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
        JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND NOT t.tgisinternal AND t.tgparentid = 0
        """,
    )
    return [row[0] for row in rows]


def _index_drops(connection: Connection) -> list[str]:
    """Return the statements that drop the advised indexes on what is in documents."""
    rows = fetch_all(
        connection,
        """
        SELECT DISTINCT pg_catalog.format('DROP INDEX %I.%I', n.nspname, c.relname)
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_proc AS p ON p.oid = d.refobjid
        JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind = 'i'
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE d.classid = 'pg_catalog.pg_class'::regclass
          AND d.refclassid = 'pg_catalog.pg_proc'::regclass
          AND p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND c.relname ~ '^pgembed_[0-9]+_[0-9a-f]{12}$'
        """,
    )
    return [row[0] for row in rows]


def _everything(connection: Connection) -> list[str]:
    """Return the statements that drop all that the schema holds."""
    rows = fetch_all(
        connection,
        """
        SELECT 'DROP ROUTINE ' || i.identity
        FROM pg_catalog.pg_proc AS p,
            pg_catalog.pg_identify_object(
                'pg_catalog.pg_proc'::regclass, p.oid, 0) AS i
        WHERE p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
        UNION ALL
        SELECT CASE c.relkind WHEN 'v' THEN 'DROP VIEW ' WHEN 'S' THEN 'DROP SEQUENCE '
            WHEN 'c' THEN 'DROP TYPE ' WHEN 'm' THEN 'DROP MATERIALIZED VIEW '
            ELSE 'DROP TABLE ' END || i.identity
        FROM pg_catalog.pg_class AS c,
            pg_catalog.pg_identify_object(
                'pg_catalog.pg_class'::regclass, c.oid, 0) AS i
        WHERE c.relnamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'c')
          -- Sequences of identity columns go with their tables.
          AND NOT EXISTS (
              SELECT FROM pg_catalog.pg_depend AS d
              WHERE d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.objid = c.oid
                AND d.deptype IN ('i', 'a')
                AND d.refclassid = 'pg_catalog.pg_class'::regclass::oid)
        UNION ALL
        SELECT 'DROP TYPE ' || i.identity
        FROM pg_catalog.pg_type AS t,
            pg_catalog.pg_identify_object(
                'pg_catalog.pg_type'::regclass, t.oid, 0) AS i
        WHERE t.typnamespace = pg_catalog.to_regnamespace('pgembed')::oid
          AND t.typtype IN ('d', 'e', 'r')
        """,
    )
    return [row[0] for row in rows]


__all__ = [
    "InstallReport",
    "Resources",
    "install",
    "resource_dir",
    "uninstall",
    "verify",
]
