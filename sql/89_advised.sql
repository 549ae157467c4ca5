-- The indexes that were created on advice, and what became of them.

CREATE OR REPLACE FUNCTION pgembed._advised(e pgembed.embedding)
RETURNS TABLE (index regclass, name text, filter jsonb, columns text[], valid boolean)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT i.indexrelid::regclass, c.relname::text,
        substring(obj_description(c.oid, 'pg_class') FROM '^pgembed: (.*)$')::jsonb,
        CASE WHEN i.indpred IS NULL THEN ARRAY(
            SELECT a.attname::text FROM generate_series(0, i.indnkeyatts - 1) AS k (place)
            INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.place]
            ORDER BY k.place) END,
        i.indisvalid
    FROM pg_catalog.pg_index AS i
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = e.target AND starts_with(c.relname, format('pgembed_%s_', e.id))
    ORDER BY c.relname;
END;
$$;
COMMENT ON FUNCTION pgembed._advised(pgembed.embedding) IS
'The indexes that were created on advice: the filter of a partial one, the columns of a covering one.';


CREATE OR REPLACE FUNCTION pgembed._drop_advised(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text := (
        SELECT string_agg(i.indexrelid::regclass::text, ', ')
        FROM pg_catalog.pg_index AS i
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = e.target AND c.relname ~ format('^pgembed_%s_[0-9a-f]{12}$', e.id));
BEGIN
    IF names IS NOT NULL AND pgembed._owns(e.target) THEN
        EXECUTE 'DROP INDEX ' || names;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._drop_advised(pgembed.embedding) IS
'Drop the indexes that were created on advice, if the caller owns the table.';


CREATE OR REPLACE FUNCTION pgembed.advised_indexes(embedding text, workload regclass DEFAULT NULL)
RETURNS TABLE (
    index_name text, filter jsonb, columns text[], bytes bigint, scans bigint, searches bigint, valid boolean
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    e pgembed.embedding := pgembed._find_embedding(embedding);
    numberless text[] := pgembed._numberless_columns(e.source);
BEGIN
    IF NOT pgembed._exists(e.target) THEN
        PERFORM pgembed._check_fits(e);
    END IF;
    RETURN QUERY
    WITH given AS MATERIALIZED (SELECT w.* FROM pgembed._workload_filters(e, workload) AS w)
    SELECT pgembed._in_schema_of(e.target, a.name), a.filter, a.columns, pg_relation_size(a.index),
        pg_stat_get_numscans(a.index),
        CASE WHEN a.filter IS NOT NULL OR a.columns IS NOT NULL THEN coalesce((
            SELECT sum(g.searches)::bigint FROM given AS g
            WHERE coalesce(pgembed._filter_implies(g.filter, a.filter, numberless), pgembed._covers(a.columns, g.filter))), 0) END,
        a.valid
    FROM pgembed._advised(e) AS a;
END;
$$;
COMMENT ON FUNCTION pgembed.advised_indexes(text, regclass) IS
'The indexes that were created on advice, partial ones (filter) and covering ones (columns), how often they were read, and how many searches of the workload (those recorded, or those of a table) they serve. Of a partial index without the comment that pgembed.advise gives, filter and searches are NULL.';
