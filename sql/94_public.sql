-- What PUBLIC may do in schema pgembed: nothing. An installation ends with this.

CREATE OR REPLACE FUNCTION pgembed._revoke_from_public()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    granted text;
BEGIN
    FOR granted IN
        SELECT o.kind || o.name
        FROM (
            SELECT 'ROUTINE ', p.oid::regprocedure::text, p.proowner, p.proacl
            FROM pg_catalog.pg_proc AS p
            WHERE p.pronamespace = 'pgembed'::regnamespace
            UNION ALL
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END, c.oid::regclass::text, c.relowner, c.relacl
            FROM pg_catalog.pg_class AS c
            WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            UNION ALL
            SELECT 'SCHEMA ', n.nspname, n.nspowner, n.nspacl
            FROM pg_catalog.pg_namespace AS n
            WHERE n.nspname = 'pgembed'
        ) AS o (kind, name, owner, acl)
        -- Where rights are still the default (NULL), too: PostgreSQL then records what an extension
        -- began with, and by that its update tells what is new.
        WHERE pg_has_role(o.owner, 'USAGE')
            AND (o.acl IS NULL OR EXISTS (SELECT FROM aclexplode(o.acl) AS a WHERE a.grantee = 0))
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', granted);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._revoke_from_public() IS
'Take from PUBLIC what it has in schema pgembed, as it does after a restore without privileges.';
