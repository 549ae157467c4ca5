-- Layouts: what batches search. Building and dropping them is Python's work, since the
-- files are on its host; here is what can be known of them from SQL.

CREATE OR REPLACE FUNCTION pgembed._database_name()
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT concat(s.system_identifier, '-', d.oid)
        FROM pg_control_system() AS s, pg_catalog.pg_database AS d WHERE d.datname = current_database());
END;
$$;
COMMENT ON FUNCTION pgembed._database_name() IS
'What tells this database from all others, those of other servers included; a standby''s is that of its primary.';


CREATE OR REPLACE FUNCTION pgembed._timeline()
RETURNS integer
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RETURN (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline)
            FROM pg_control_checkpoint() AS c, pg_control_recovery() AS r);
    END IF;
    -- The control file learns of a promotion at the next checkpoint.
    RETURN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer;
END;
$$;
COMMENT ON FUNCTION pgembed._timeline() IS
'The timeline on which the server writes; a standby may be late to know that of its primary.';


CREATE OR REPLACE FUNCTION pgembed._layout_fault(e pgembed.embedding, origin jsonb)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE CALLED ON NULL INPUT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    columns jsonb;
    filenodes jsonb;
    passed bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint - (origin ->> 'transaction')::bigint;
BEGIN
    IF NOT origin ? 'database' THEN
        RETURN 'it was built by an earlier version of pgembed';
    ELSIF origin ->> 'database' IS DISTINCT FROM pgembed._database_name() THEN
        RETURN 'it was built in another database';
    END IF;
    SELECT coalesce(jsonb_agg(
        jsonb_build_array(a.attnum, a.atttypid::bigint, a.attcollation::bigint) ORDER BY t.place, u.place), '[]')
    INTO columns
    FROM jsonb_array_elements_text(origin -> 'tables') WITH ORDINALITY AS t (oid, place)
    CROSS JOIN unnest(e.target_column || e.key_columns) WITH ORDINALITY AS u (name, place)
    LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid::oid AND a.attname = u.name;
    IF columns IS DISTINCT FROM origin -> 'columns' OR (origin ->> 'dimensions')::integer IS DISTINCT FROM e.dimensions THEN
        RETURN 'it was built for another column, or for another key';
    END IF;
    SELECT coalesce(jsonb_agg(coalesce(pg_relation_filenode(t.oid), 0)::bigint ORDER BY u.place), '[]') INTO filenodes
    FROM jsonb_array_elements_text(origin -> 'tables') WITH ORDINALITY AS u (oid, place)
    INNER JOIN pg_catalog.pg_class AS t ON t.oid = u.oid::oid;
    IF (origin ->> 'timeline')::integer <> pgembed._timeline() THEN
        RETURN 'the server was promoted or restored from a backup';
    ELSIF filenodes IS DISTINCT FROM origin -> 'filenodes' OR passed NOT BETWEEN 0 AND 2147483647 THEN
        RETURN 'the table was rewritten';
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgembed._layout_fault(pgembed.embedding, jsonb) IS
'Why batches cannot use a layout with this origin; NULL when they can, provided that its files are there.';


CREATE OR REPLACE FUNCTION pgembed._layout_changes(e pgembed.embedding, rows bigint, origin jsonb)
RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed bigint;
BEGIN
    -- Rows of later transactions; and as many more of earlier ones as committed after the build began.
    EXECUTE format(
        'SELECT n.newer OPERATOR(pg_catalog.+) greatest(n.older OPERATOR(pg_catalog.-) $1, 0) '
        'FROM (SELECT pg_catalog.count(*) FILTER (WHERE pg_catalog.age(t.xmin) OPERATOR(pg_catalog.<=) $2) AS newer, '
        'pg_catalog.count(*) FILTER (WHERE pg_catalog.age(t.xmin) OPERATOR(pg_catalog.>) $2) AS older '
        'FROM %s AS t WHERE t.%I IS NOT NULL) AS n', e.target, e.target_column)
    INTO changed
    USING rows, age(((origin ->> 'transaction')::bigint % 4294967296)::text::xid);
    RETURN changed;
END;
$$;
COMMENT ON FUNCTION pgembed._layout_changes(pgembed.embedding, bigint, jsonb) IS
'About how many rows a layout of so many rows does not have, or not as they are. Reads the table.';


CREATE OR REPLACE VIEW pgembed.layouts WITH (security_invoker = true) AS
SELECT
    e.name AS embedding,
    l.rows,
    l.leaves,
    l.lists,
    l.bytes,
    l.build_seconds,
    l.built_at,
    l.host,
    l.path,
    c.changed,
    round(CASE WHEN f.fault IS NULL THEN c.changed ELSE l.rows END::numeric / greatest(l.rows, 1), 4) AS staleness,
    CASE
        WHEN f.fault IS NOT NULL THEN format('rebuild: %s, batches read the table', f.fault)
        WHEN c.changed IS NULL THEN format('unknown: this role may not read table %s', e.target)
        WHEN c.changed > 0.3 * l.rows + 1000 THEN 'rebuild: too much has changed, batches read the table'
        WHEN c.changed > 0.1 * l.rows THEN 'a rebuild pays: each batch reads the changed rows'
        ELSE 'current'
    END AS advice,
    l.description
FROM pgembed.layout AS l
INNER JOIN pgembed.embedding AS e ON e.id = l.embedding
CROSS JOIN LATERAL (SELECT pgembed._layout_fault(e, l.description -> 'origin') AS fault) AS f
CROSS JOIN LATERAL (
    SELECT
        CASE
            WHEN f.fault IS NOT NULL THEN NULL
            WHEN has_column_privilege(e.target, e.target_column, 'SELECT')
                AND has_column_privilege(e.target, 'xmin', 'SELECT')
                THEN pgembed._layout_changes(e, l.rows, l.description -> 'origin')
        END AS changed
) AS c;
COMMENT ON VIEW pgembed.layouts IS
'The layouts that batches search: what was built (description: the leaves, the precision, and whether that is lossless), and how much has changed since (NULL where batches cannot use the layout, or this role cannot read the table). Reading it counts the changed rows, which reads the tables.';
