"""``op.alter_embedding`` as a statement: in place where that is possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from pgembed.alembic.operations import KEEPING_VECTORS
from pgembed.sqlalchemy.ddl import literal

_COLUMNS = {
    "content": "content",
    "model": "model",
    "chunk_tokens": "chunk_tokens",
    "chunk_overlap": "chunk_overlap",
    "storage": "storage",
    "index": "index_method",
    "on_change": "on_change",
}

_IN_PLACE = """
DECLARE
    e pgembed.embedding := pgembed._find_kept({name});
BEGIN
    PERFORM pgembed._check_option(
        'index', {index_method}, ARRAY['hnsw', 'ivfflat', 'none']);
    PERFORM pgembed._check_option('on_change', {on_change}, ARRAY['keep', 'clear']);
    PERFORM pgembed._check_indexable({index_method}, e.storage, e.dimensions);
    IF {index_method} = 'none' AND e.index_name IS NOT NULL THEN
        EXECUTE pg_catalog.format('DROP INDEX IF EXISTS %s',
            pgembed._in_schema_of(e.target, e.index_name));
    END IF;
    PERFORM pgembed._check_present(e);
    UPDATE pgembed.embedding AS u SET
        on_change = {on_change},
        index_method = {index_method},
        index_state = CASE {index_method} WHEN e.index_method THEN u.index_state
            WHEN 'none' THEN 'none' ELSE 'waiting' END,
        index_error = CASE {index_method} WHEN e.index_method THEN u.index_error END
    WHERE u.id = e.id
    RETURNING u.* INTO e;
    PERFORM pgembed._create_capture(e);
    PERFORM pgembed._wake();
END
"""

_ANEW = """
DECLARE
    e pgembed.embedding := pgembed._find_kept({name});
    anew pgembed.embedding;
    held jsonb := (
        SELECT pg_catalog.jsonb_agg(g)
        FROM (
            SELECT NULL AS column_name, c.relacl
            FROM pg_catalog.pg_class AS c
            WHERE c.oid = e.target AND e.target <> e.source
            UNION ALL
            SELECT a.attname, a.attacl
            FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = e.target AND a.attnum > 0
                AND (e.target <> e.source OR a.attname = e.target_column)
        ) AS p (column_name, acl)
        CROSS JOIN LATERAL pg_catalog.aclexplode(p.acl) AS x
        CROSS JOIN LATERAL (SELECT p.column_name, x.privilege_type, x.is_grantable,
            CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END
        ) AS g (column_name, privilege, grantable, role)
    );
    had_policies boolean := e.target <> e.source AND (
        SELECT c.relrowsecurity AND ARRAY(
            SELECT p.polname::text FROM pg_catalog.pg_policy AS p
            WHERE p.polrelid = c.oid
        ) <> ARRAY['pgembed_source']
        FROM pg_catalog.pg_class AS c
        WHERE c.oid = e.target
    );
    again record;
BEGIN
    PERFORM pgembed._lock_to_declare(e.source, 'ACCESS EXCLUSIVE');
    PERFORM pgembed.drop_embedding(e.name, drop_vectors => {drop_vectors});
    PERFORM pgembed.create_embedding(e.source, {content}, {model}, name => e.name,
        target_column => CASE WHEN {chunk_tokens} IS NULL THEN {target_column} END,
        chunk_tokens => {chunk_tokens}, chunk_overlap => {chunk_overlap},
        storage => {storage}, index => {index_method}, on_change => {on_change});
    anew := pgembed._find_kept(e.name);
    IF had_policies THEN
        RAISE WARNING 'table % was made anew, without the policies and grants it had',
            anew.target
            USING HINT = 'Create its policies again, then grant roles what they need.';
    ELSIF (anew.target = anew.source) = (e.target = e.source) THEN
        FOR again IN
            SELECT r.*
            FROM pg_catalog.jsonb_to_recordset(held) AS r (
                column_name text, privilege text, grantable boolean, role text)
            WHERE r.column_name IS NULL
                OR r.column_name = ANY (pgembed._columns(anew.target))
        LOOP
            EXECUTE pg_catalog.format('GRANT %s%s ON %s TO %s%s', again.privilege,
                ' (' || pg_catalog.quote_ident(again.column_name) || ')', anew.target,
                again.role, CASE WHEN again.grantable THEN ' WITH GRANT OPTION' END);
        END LOOP;
    END IF;
    IF e.paused THEN
        PERFORM pgembed.pause_embedding(e.name);
    END IF;
END
"""


class AlterEmbedding(ExecutableDDLElement):
    """``DO …``: change an embedding that is there."""

    def __init__(self, name: str, changes: Mapping[str, Any]) -> None:
        self.name = name
        self.changes = changes


@compiles(AlterEmbedding)
def _alter_embedding(element: AlterEmbedding, compiler: DDLCompiler, **_: Any) -> str:
    changes = element.changes
    values = {column: f"e.{column}" for column in _COLUMNS.values()}
    values |= {_COLUMNS[name]: _quoted(value) for name, value in changes.items()}
    # The vectors of another content serve until the new ones are there.
    keeps = changes.keys() <= KEEPING_VECTORS
    text = _IN_PLACE if changes.keys() <= {"index", "on_change"} else _ANEW
    body = text.format(
        name=_quoted(element.name),
        drop_vectors="e.target <> e.source" if keeps else "true",
        target_column="e.target_column" if "chunk_tokens" not in changes else "NULL",
        **values,
    )
    return f"DO {literal(compiler, body)}"


def _quoted(value: str | int | None) -> str:
    """Return a value as SQL inside of the block, which is quoted as a whole later."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("'", "''") + "'"
