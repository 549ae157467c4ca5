-- Layouts: what batches search. Building and dropping them is Python's work, since the
-- files are on its host; here is what can be known of them from SQL.

CREATE OR REPLACE FUNCTION pgembed._layout_changes(embedding integer)
RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    l pgembed.layout;
    origin jsonb;
    filenodes jsonb;
    changed bigint;
BEGIN
    SELECT o.* INTO e FROM pgembed.embedding AS o WHERE o.id = _layout_changes.embedding;
    SELECT o.* INTO l FROM pgembed.layout AS o WHERE o.embedding = e.id;
    origin := l.description -> 'origin';
    IF l.embedding IS NULL OR NOT pgembed._exists(e.target) THEN
        RETURN NULL;
    END IF;
    SELECT jsonb_agg(coalesce(pg_relation_filenode(t.oid), 0)::bigint ORDER BY u.place) INTO filenodes
    FROM jsonb_array_elements_text(origin -> 'tables') WITH ORDINALITY AS u (oid, place)
    INNER JOIN pg_catalog.pg_class AS t ON t.oid = u.oid::oid;
    IF filenodes IS DISTINCT FROM nullif(origin -> 'filenodes', '[]') THEN
        RETURN NULL;
    END IF;
    -- Rows of later transactions, and rows of earlier ones that are gone.
    EXECUTE format(
        'SELECT n.newer OPERATOR(pg_catalog.+) pg_catalog.abs($1 OPERATOR(pg_catalog.-) n.older) '
        'FROM (SELECT pg_catalog.count(*) FILTER (WHERE pg_catalog.age(t.xmin) OPERATOR(pg_catalog.<=) $2) AS newer, '
        'pg_catalog.count(*) FILTER (WHERE pg_catalog.age(t.xmin) OPERATOR(pg_catalog.>) $2) AS older '
        'FROM %s AS t WHERE t.%I IS NOT NULL) AS n', e.target, e.target_column)
    INTO changed
    USING l.rows, age(((origin ->> 'transaction')::bigint % 4294967296)::text::xid);
    RETURN changed;
END;
$$;
COMMENT ON FUNCTION pgembed._layout_changes(integer) IS
'How many rows a layout does not have, or not as they are; NULL when the table was rewritten, so that it has none. Reads the table.';


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
    round(coalesce(c.changed, l.rows)::numeric / greatest(l.rows, 1), 4) AS staleness,
    CASE
        WHEN c.changed IS NULL THEN 'rebuild: the table was rewritten, batches read it'
        WHEN c.changed > 0.3 * l.rows + 1000 THEN 'rebuild: too much has changed, batches read the table'
        WHEN c.changed > 0.1 * l.rows THEN 'a rebuild pays: each batch reads the changed rows'
        ELSE 'current'
    END AS advice,
    l.description
FROM pgembed.layout AS l
INNER JOIN pgembed.embedding AS e ON e.id = l.embedding
CROSS JOIN LATERAL (SELECT pgembed._layout_changes(e.id) AS changed) AS c;
COMMENT ON VIEW pgembed.layouts IS
'The layouts that batches search: what was built (description: the leaves, the precision, and whether that is lossless), and how much has changed since. Reading it counts the changed rows, which reads the tables.';
