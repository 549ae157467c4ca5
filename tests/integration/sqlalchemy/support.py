"""What the tests of declarations share."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection, Engine, text

_CATALOG = """
    SELECT 'relation', c.oid::regclass::text, c.relkind::text FROM pg_class AS c
    WHERE c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'pg_toast')
      AND NOT c.relispartition
    UNION ALL SELECT 'column', a.attrelid::regclass::text,
        concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind <> 'i'
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attnum > 0 AND NOT a.attisdropped
      AND c.relnamespace::regnamespace::text NOT IN
        ('pg_catalog', 'pg_toast', 'information_schema')
    UNION ALL SELECT 'index', indrelid::regclass::text, pg_get_indexdef(indexrelid)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'pg_toast')
    UNION ALL SELECT 'constraint', conrelid::regclass::text,
        conname || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace::regnamespace::text <> 'pg_catalog'
    UNION ALL SELECT 'routine', p.oid::regprocedure::text, CASE
        WHEN p.proname !~ '^_capture_' THEN md5(p.prosrc)
        ELSE regexp_replace(p.prosrc, 'n.id = [0-9]+', '', 'g') END
    FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text <> 'pg_catalog'
    UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname || tgenabled::text
    FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'schema', nspname, '' FROM pg_namespace
    WHERE nspname !~ '^pg_'
    ORDER BY 1, 2, 3
"""


def catalog(connection: Connection) -> list[tuple[Any, ...]]:
    """Return all that a migration or create_all could leave behind.

    The numbers of embeddings are replaced by their names, and the times at which they
    were declared are left out: neither is ever used twice.
    """
    rows = connection.exec_driver_sql(_CATALOG.replace("%", "%%")).all()
    found: list[tuple[Any, ...]] = [
        (kind, name, _plain(kind, rest)) for kind, name, rest in rows
    ]
    if not connection.scalar(
        text("SELECT to_regclass('pgembed.embedding') IS NOT NULL")
    ):
        return found
    known = connection.execute(text("SELECT id, name FROM pgembed.embedding"))
    names = {str(row.id): row.name for row in known}

    def rename(match: re.Match[str]) -> str:
        return f"{match[1]}_{names.get(match[2], match[2])}"

    def plain(part: str) -> str:
        return re.sub(_NUMBERED, rename, re.sub(_TIME, r"\1", part))

    found = [tuple(plain(part) for part in row) for row in found]
    found += [tuple(row) for row in connection.execute(text(_EMBEDDINGS))]
    return sorted(found, key=repr)


def _plain(kind: str, definition: str) -> str:
    """Return the definition of an index as PostgreSQL writes it after a dump, too."""
    if kind != "index":
        return definition
    return re.sub(r"[()]|::[a-z ]+(\[\])?", "", definition)


_TIME = r"(?<=_capture_)(\d+_[a-z]+)_[0-9a-f]+"
_NUMBERED = r"(job|pgembed|_capture)_(\d+)"

_EMBEDDINGS = """
    SELECT name, source::text, content, model, target::text, target_column,
        chunk_tokens, chunk_overlap, storage, on_change, index_method
    FROM pgembed.embedding ORDER BY name
"""


def embeddings(engine: Engine) -> dict[str, Any]:
    """Return the database's embeddings by name."""
    with engine.connect() as connection:
        return {row.name: row for row in connection.execute(text(_EMBEDDINGS))}
