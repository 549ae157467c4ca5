"""The installation as SQL text, for where nobody lends a connection."""

from __future__ import annotations

import io
from collections.abc import Mapping

from alembic import command
from sqlalchemy import create_mock_engine

from pgembed import __version__
from pgembed.postgres import installation, migrate, objects, schema
from pgembed.postgres.resources import (
    Resources,
    Transport,
    digest,
    quote_identifier,
    resolve_schemas,
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

    def place(text: str) -> str:
        return text if keep_placeholders else resolve_schemas(text, schemas)

    files = [
        (path.name, path.read_text(encoding="utf-8"))
        for path in resources.sql_files(transport)
    ]
    parts = [
        "SET LOCAL search_path = pg_catalog, pg_temp;",
        installation.TABLE,
        place(_migrations(resources)),
        *(place(text) for _, text in files),
        schema.REVOKE,
        _record(
            resources, [(name, resolve_schemas(text, schemas)) for name, text in files]
        ),
    ]
    return "\n\n".join(part.strip() for part in parts)


def _migrations(resources: Resources) -> str:
    """Return the SQL of pgembed's own migrations, as Alembic writes it offline."""
    config = migrate.alembic_config(resources.migrations)
    config.output_buffer = buffer = io.StringIO()
    config.attributes.update(
        connection=create_mock_engine("postgresql://", lambda *_: None),
        resolve_schemas=lambda text: text,
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
