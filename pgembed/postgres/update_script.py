"""What ALTER EXTENSION pgembed UPDATE runs: install() over an older schema, as SQL.

A script is not schema.install(): it sees the catalog alone, the server keeps it from
objects that are not the extension's, and what it grants becomes part of the extension.
"""

from __future__ import annotations

from collections.abc import Mapping

from pgembed.postgres import installation, objects
from pgembed.postgres.resources import Resources, Transport
from pgembed.postgres.script import SETTINGS, files, migrations, record


def update(
    resources: Resources,
    schemas: Mapping[str, str],
    transport: Transport,
    *,
    since: str,
) -> str:
    """Return the SQL that brings an extension's schema to what *resources* make.

    *since* is the newest migration that the schema has. The schemas of extensions stay
    to be filled in; *schemas* says what they are in the recorded digest.
    """
    parts = [
        SETTINGS,
        _REQUIRE_REVISION.replace("<revision>", since),
        installation.TABLE,
        migrations(resources, since),
        _DROP_IN_ROUNDS,
        _KEEP.replace("<files>", files(resources, transport)),
        _REPLACE,
        "DROP FUNCTION pgembed._drop_in_rounds(text[], boolean);",
        _REVOKE_FROM_NEW,
        _TELL_ROLES,
        "UPDATE pgembed.installation SET installed_at = pg_catalog.now(), "  # noqa: S608
        "(version, digest, objects) = "
        f"ROW ({record(resources, schemas, transport)});",
    ]
    return "\n\n".join(part.strip() for part in parts)


_REQUIRE_REVISION = """
DO $$
DECLARE
    found text := (SELECT v.version_num FROM pgembed.alembic_version AS v);
BEGIN
    IF found IS DISTINCT FROM '<revision>' THEN
        RAISE EXCEPTION
            'schema pgembed is at migration %, and its version ended with <revision>',
            found
            USING HINT = 'No release made it: dump, and restore into a new database.';
    END IF;
END;
$$;
"""

_DROP_IN_ROUNDS = """
CREATE FUNCTION pgembed._drop_in_rounds(statements text[], be_strict boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    remaining text[];
    statement text;
BEGIN
    LOOP
        remaining := '{}';
        FOREACH statement IN ARRAY statements LOOP
            BEGIN
                EXECUTE statement;
            EXCEPTION
                WHEN dependent_objects_still_exist THEN
                    remaining := remaining || statement;
            END;
        END LOOP;
        EXIT WHEN cardinality(remaining) IN (0, cardinality(statements));
        statements := remaining;
    END LOOP;
    IF be_strict AND cardinality(remaining) > 0 THEN
        EXECUTE remaining[1];
    END IF;
END;
$$;
"""

# The routines and views that the extension made: not those of embeddings, nor a user's.
_MEMBERS = f"""
    SELECT o.kind, o.identity, o.oid, o.stamp
    FROM ({objects._OBJECTS}) AS o (kind, identity, oid, stamp)
    JOIN pg_catalog.pg_depend AS d ON d.objid = o.oid AND d.deptype = 'e'
        AND d.classid = CASE o.kind
            WHEN 'VIEW' THEN 'pg_catalog.pg_class'::regclass
            ELSE 'pg_catalog.pg_proc'::regclass END
    JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'pgembed'
    WHERE o.identity !~ '^pgembed[.]_drop_in_rounds[(]'
"""  # noqa: S608

# Apart from what runs it, whose text is a part of every error message.
_KEEP = """
SELECT pg_catalog.set_config('pgembed.update_files', $pgembed_files$
<files>
$pgembed_files$, true);
"""

# As schema.install() does it, but for grants.
_REPLACE = f"""
DO $$
DECLARE
    files CONSTANT text := current_setting('pgembed.update_files');
    before CONSTANT jsonb := (
        SELECT jsonb_agg(to_jsonb(m)) FROM ({_MEMBERS}) AS m
    );
    granted CONSTANT jsonb := (
        SELECT jsonb_agg(jsonb_build_object('oid', g.oid, 'statement', format(
            'GRANT %s ON %s %s TO %s%s;', g.privilege_type, g.kind, g.name,
            g.grantee, CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)))
        FROM ({objects._GRANTS}) AS g
            (kind, name, oid, privilege_type, is_grantable, grantee)
    );
    lost text;
BEGIN
    BEGIN
        EXECUTE files;
    EXCEPTION
        -- Another result type, other columns, another kind.
        WHEN invalid_function_definition OR invalid_table_definition
            OR wrong_object_type OR ambiguous_function THEN
            PERFORM pgembed._drop_in_rounds(ARRAY(
                SELECT format('DROP %s %s', m.kind, m.identity) FROM ({_MEMBERS}) AS m
            ), false);
            EXECUTE files;
    END;
    PERFORM pgembed._drop_in_rounds(ARRAY(
        SELECT format('DROP %s %s', m.kind, m.identity) FROM ({_MEMBERS}) AS m
        WHERE before @> jsonb_build_array(
            jsonb_build_object('oid', m.oid, 'stamp', m.stamp))
    ), true);
    SELECT string_agg(g.statement, E'\\n') INTO lost
    FROM jsonb_to_recordset(granted) AS g (oid oid, statement text)
    WHERE NOT EXISTS (SELECT FROM pg_proc AS p WHERE p.oid = g.oid)
        AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = g.oid);
    IF lost IS NOT NULL THEN
        RAISE WARNING 'what had to be made anew lost what was granted on it'
            USING DETAIL = lost,
            HINT = 'Grant it again: pgembed.grant_search() and the like do.';
    END IF;
END;
$$;
"""  # noqa: S608

# Only from what is new: to touch an older one's rights would make what its owner
# granted part of the extension, and leave it out of dumps.
_REVOKE_FROM_NEW = """
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('REVOKE ALL ON %s %s FROM PUBLIC', CASE
            WHEN i.type = 'sequence' THEN 'SEQUENCE'
            WHEN i.type IN ('table', 'view') THEN 'TABLE'
            ELSE 'ROUTINE' END, i.identity)
        FROM pg_extension AS e
        JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass
            AND d.refobjid = e.oid AND d.deptype = 'e'
        CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
        WHERE e.extname = 'pgembed'
            AND i.type IN ('function', 'procedure', 'table', 'view', 'sequence')
            AND NOT EXISTS (
                SELECT FROM pg_init_privs AS p
                WHERE p.classoid = d.classid AND p.objoid = d.objid AND p.objsubid = 0)
    LOOP
        EXECUTE statement;
    END LOOP;
END;
$$;
"""

# What a script grants would be left out of dumps.
_TELL_ROLES = """
DO $$
BEGIN
    IF has_schema_privilege(to_regrole('pgembed_user'), 'pgembed', 'USAGE')
        AND has_schema_privilege(to_regrole('pgembed_owner'), 'pgembed', 'USAGE')
        AND has_schema_privilege(to_regrole('pgembed_worker'), 'pgembed', 'USAGE')
    THEN
        RAISE WARNING 'what is new is not yet granted to roles '
            'pgembed_user, pgembed_owner and pgembed_worker'
            USING HINT = 'As the schema''s owner run: SELECT pgembed.create_roles();';
    END IF;
END;
$$;
"""
