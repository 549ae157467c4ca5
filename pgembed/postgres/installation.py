"""What is installed, what would be, and whether that is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pgembed import __version__
from pgembed.errors import InstallError
from pgembed.postgres import guards, migrate, objects, transports
from pgembed.postgres.connection import Connection, extension_schema, fetch_one
from pgembed.postgres.resources import Resources, Transport, digest, resolve_schemas
from pgembed.postgres.versions import numbers
from pgembed.settings import check_socket_dir

TABLE = """
    CREATE TABLE IF NOT EXISTS pgembed.installation (
        single boolean PRIMARY KEY DEFAULT true CHECK (single),
        version text NOT NULL,
        digest text NOT NULL,
        objects text[] NOT NULL,
        installed_at timestamptz NOT NULL DEFAULT pg_catalog.now()
    );
    ALTER TABLE pgembed.installation
        ADD COLUMN IF NOT EXISTS transport text NOT NULL DEFAULT 'auto',
        ADD COLUMN IF NOT EXISTS socket_dir text NOT NULL DEFAULT '/run/pgembed';
    COMMENT ON TABLE pgembed.installation IS
        'What the last installation put here: version, hash, routines and views.';
    COMMENT ON SCHEMA pgembed IS
        'Models, kept embeddings and search. Managed by "pgembed install".';
"""

# In force while pgembed is installed, whatever the caller, role or database has set.
SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "standard_conforming_strings": "on",
    "plpgsql.extra_errors": "none",
    "plpgsql.extra_warnings": "none",
}

DEFAULT_SOCKET_DIR = "/run/pgembed"


@dataclasses.dataclass(frozen=True)
class CallSettings:
    """How SQL functions are to reach a worker."""

    transport: transports.Wish = "auto"
    socket_dir: str = DEFAULT_SOCKET_DIR


@dataclasses.dataclass(frozen=True)
class Installation:
    """What the last installation recorded in the database."""

    version: str
    digest: str
    objects: list[str]
    """Identities of the routines and views that its SQL files made."""
    calls: CallSettings


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an installation finds and would write."""

    found: Installation | None
    revision: str | None
    """The migration that the database is at; None before the first."""
    head: str
    """The newest migration of this code."""
    knows_revision: bool
    missing: frozenset[str]
    """Recorded routines and views that somebody dropped."""
    is_public: bool
    """Whether anybody may use some of it, as after a restore without privileges."""
    files: list[tuple[str, str]]
    """Name and text of the SQL files, in order, the extensions' schemas filled in."""
    schemas: Mapping[str, str]
    calls: CallSettings
    transport: Transport
    """How SQL functions will reach a worker."""
    is_extension: bool
    """Whether CREATE EXTENSION put it there."""

    @property
    def digest(self) -> str:
        """The SHA-256 of all that the installation would write."""
        return digest([("head", self.head), *self.files])

    @property
    def is_current(self) -> bool:
        """Whether the database holds exactly that already.

        An extension counts as such when its version is this one.
        """
        if self.is_extension:
            return (
                self.found is not None
                and self.found.version == __version__
                and not self.missing
            )
        return (
            self.found is not None
            and self.found.digest == self.digest
            and self.found.calls == self.calls
            and self.revision == self.head
            and not self.missing
        )

    @property
    def is_newer(self) -> bool:
        """Whether the database was installed by a later version of this code."""
        found = self.found
        later = found is not None and numbers(found.version) > numbers(__version__)
        return later or not self.knows_revision

    def refuse_newer(self) -> None:
        """Raise InstallError when the schema is newer than this code."""
        if self.is_newer:
            version = self.found.version if self.found else "an unknown version"
            raise InstallError(
                f"the database holds the schema of pgembed {version} (revision "
                f"{self.revision}), newer than this code, {__version__} (revision "
                f"{self.head}): run 'pip install --upgrade pgembed-vector'"
            )

    def resolve(self, text: str) -> str:
        """Fill the extensions' schemas into the SQL text of a migration."""
        return resolve_schemas(text, self.schemas)


def wished(
    connection: Connection,
    transport: transports.Wish | None = None,
    socket_dir: str | None = None,
) -> CallSettings:
    """Return these settings of calls; what is None is as it was installed.

    Raises SettingError for a *socket_dir* that is not absolute.
    """
    check_socket_dir(socket_dir)
    found = read(connection)
    kept = found.calls if found else CallSettings()
    return CallSettings(transport or kept.transport, socket_dir or kept.socket_dir)


def plan(
    connection: Connection, resources: Resources, calls: CallSettings | None = None
) -> Plan:
    """Compare the database with *resources*; extension vector must be there.

    *calls* are as they were installed when they are None. Raises InstallError when
    their transport cannot be had.
    """
    calls = calls or wished(connection)
    schemas = {
        name: schema
        for name in ("vector", "dblink")
        if (schema := extension_schema(connection, name)) is not None
    }
    found = read(connection)
    chosen = transports.choose(connection, calls.transport)
    revision = migrate.current(connection)
    migrations = resources.migrations
    return Plan(
        found=found,
        revision=revision,
        head=migrate.head(migrations),
        knows_revision=revision is None or migrate.is_known(revision, migrations),
        missing=_missing(connection, found),
        is_public=bool(guards.open_to_public(connection)),
        files=[
            (path.name, resolve_schemas(path.read_text(encoding="utf-8"), schemas))
            for path in resources.sql_files(chosen)
        ],
        schemas=schemas,
        calls=calls,
        transport=chosen,
        is_extension=extension_schema(connection, "pgembed") is not None,
    )


def _missing(connection: Connection, found: Installation | None) -> frozenset[str]:
    if found is None:
        return frozenset()
    present = objects.routines_and_views(connection).keys()
    return frozenset(found.objects) - present


def read(connection: Connection) -> Installation | None:
    """Return what the last installation recorded, or None when there was none."""
    if not guards.has_table(connection, "installation"):
        return None
    row = fetch_one(
        connection,
        """
        SELECT i.version, i.digest, i.objects,
            pg_catalog.to_jsonb(i) ->> 'transport',
            pg_catalog.to_jsonb(i) ->> 'socket_dir'
        FROM pgembed.installation AS i
        """,
    )
    if row is None:
        return None
    version, recorded, names, transport, socket_dir = row
    # An early version of the table has neither.
    calls = CallSettings(transport or "auto", socket_dir or DEFAULT_SOCKET_DIR)
    return Installation(version, recorded, names, calls)


def write(connection: Connection, installed: Installation) -> None:
    """Record what an installation wrote."""
    connection.execute(
        """
        INSERT INTO pgembed.installation
            (version, digest, objects, transport, socket_dir)
        VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (single) DO UPDATE SET
            version = EXCLUDED.version, digest = EXCLUDED.digest,
            objects = EXCLUDED.objects, transport = EXCLUDED.transport,
            socket_dir = EXCLUDED.socket_dir, installed_at = EXCLUDED.installed_at
        """,
        (
            *(installed.version, installed.digest, installed.objects),
            *(installed.calls.transport, installed.calls.socket_dir),
        ),
    )
