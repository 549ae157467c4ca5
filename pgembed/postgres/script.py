"""The installation as SQL text, for where nobody lends a connection."""

from __future__ import annotations

import io
from collections.abc import Mapping

from alembic import command
from sqlalchemy import create_mock_engine

from pgembed.postgres import installation, migrate, objects
from pgembed.postgres.resources import (
    Resources,
    Transport,
    digest,
    quote_identifier,
    quote_literal,
    resolve_schemas,
)

SETTINGS = "\n".join(
    f"SET LOCAL {name} = {value};" for name, value in installation.SETTINGS.items()
)


def create_extensions(schemas: Mapping[str, str]) -> str:
    """Return the SQL that creates extensions, each in its schema."""
    return "\n".join(
        f"CREATE EXTENSION IF NOT EXISTS {name} SCHEMA {quote_identifier(place)};"
        for name, place in schemas.items()
    )


def contents(
    resources: Resources,
    schemas: Mapping[str, str],
    transport: Transport,
    *,
    keep_placeholders: bool = False,
) -> str:
    """Return the SQL that fills an empty schema pgembed, as install() does.

    With *keep_placeholders* the schemas of extensions stay to be filled in.
    """
    parts = [
        SETTINGS,
        installation.TABLE,
        migrations(resources),
        files(resources, transport),
        "SELECT pgembed._revoke_from_public();",
        "INSERT INTO pgembed.installation (version, digest, objects) "  # noqa: S608
        f"VALUES ({record(resources, schemas, transport)});",
    ]
    whole = "\n\n".join(part.strip() for part in parts)
    return whole if keep_placeholders else resolve_schemas(whole, schemas)


def files(resources: Resources, transport: Transport) -> str:
    """Return the texts of the SQL files, one after the other."""
    paths = resources.sql_files(transport)
    return "\n\n".join(path.read_text(encoding="utf-8").strip() for path in paths)


def migrations(resources: Resources, since: str | None = None) -> str:
    """Return the SQL of pgembed's own migrations, as Alembic writes it offline.

    *since* is the revision before the first of them.
    """
    config = migrate.alembic_config(resources.migrations)
    config.output_buffer = buffer = io.StringIO()
    config.attributes.update(
        connection=create_mock_engine("postgresql://", lambda *_: None),
        resolve_schemas=lambda text: text,
    )
    command.upgrade(config, f"{since}:head" if since else "head", sql=True)
    lines = buffer.getvalue().splitlines()
    return "\n".join(line for line in lines if line not in ("BEGIN;", "COMMIT;"))


def record(
    resources: Resources, schemas: Mapping[str, str], transport: Transport
) -> str:
    """Return the SQL for version, digest and objects of table installation."""
    texts = [
        (path.name, resolve_schemas(path.read_text(encoding="utf-8"), schemas))
        for path in resources.sql_files(transport)
    ]
    hashed = digest([("head", migrate.head(resources.migrations)), *texts])
    return (
        f"{quote_literal(resources.version)}, '{hashed}', "  # noqa: S608
        "ARRAY(SELECT o.identity FROM "
        f"({objects._OBJECTS}) AS o (kind, identity, oid, stamp) ORDER BY 1)"
    )
