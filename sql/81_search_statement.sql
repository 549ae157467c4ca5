-- The SQL that a search runs. Its parameters: $1 the query vector, $2 k, $3 the values of
-- the filter, $4 how many vectors to fetch through an index, $5 the places of sentinels.
-- The predicate is resolved under the caller's search_path; all else is qualified.

CREATE OR REPLACE FUNCTION pgembed._search_condition(
    e pgembed.embedding, filter jsonb, predicate text,
    OUT condition text, OUT probe text, OUT probe_predicate text, OUT arguments text[]
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f record := pgembed._compile_filter(e.source, filter, '$3');
BEGIN
    arguments := f.arguments;
    -- The newline ends a comment in which a predicate may end.
    condition := coalesce(nullif(concat_ws(' AND ', f.condition, '(' || predicate || E'\n)'), ''), 'true');
    IF condition <> 'true' OR row_security_active(e.source) THEN
        probe := format('EXPLAIN SELECT FROM %s WHERE %s', e.source, condition)
            || CASE WHEN e.target = e.source
                THEN format(' AND %I IS NOT NULL', e.target_column) ELSE '' END;
    END IF;
    probe_predicate := format('EXPLAIN SELECT FROM %s WHERE ', e.source) || predicate;
END;
$$;
COMMENT ON FUNCTION pgembed._search_condition(pgembed.embedding, jsonb, text) IS
'Filter and predicate as one condition on the source, and the EXPLAINs that estimate it: of both together, NULL when all rows pass, and of the predicate outside parentheses, which is an error when it closes parentheses that it did not open.';


CREATE OR REPLACE FUNCTION pgembed._same_key(e pgembed.embedding, left_alias text, right_alias text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := e.key_columns[1];
BEGIN
    IF cardinality(e.key_columns) = 1 AND EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = e.source AND a.attname = name
            AND a.atttypid IN ('int4'::regtype, 'int8'::regtype, 'text'::regtype, 'uuid'::regtype))
    THEN  -- What pgembed._key_match would find, without asking all the catalogs.
        RETURN format('%s.%I OPERATOR(pg_catalog.=) %s.%I', left_alias, name, right_alias, name);
    END IF;
    RETURN pgembed._key_match(e.source, left_alias, right_alias);
END;
$$;
COMMENT ON FUNCTION pgembed._same_key(pgembed.embedding, text, text) IS
'SQL: the condition that two rows have the same key.';


CREATE OR REPLACE FUNCTION pgembed._search_rows(e pgembed.embedding, condition text, document text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_name text := pgembed._table_name(e.source);
BEGIN
    RETURN format('SELECT %s%s FROM %s WHERE %s', pgembed._column_list(e.key_columns, table_name),
        coalesce(', ' || document || ' AS pgembed_document', CASE WHEN e.target = e.source
            THEN format(', %s.%I AS pgembed_vector', table_name, e.target_column) ELSE '' END),
        e.source, condition);
END;
$$;
COMMENT ON FUNCTION pgembed._search_rows(pgembed.embedding, text, text) IS
'SQL: the source rows that pass, their key and (where it is theirs) vector, or instead of that a document of words. A scope in which filter and predicate are read.';


CREATE OR REPLACE FUNCTION pgembed._distance_expression(e pgembed.embedding, vector text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format('(%s OPERATOR(@extschema:vector@.%s) %s)', vector, pgembed._distance_operator(e),
        CASE e.storage
            WHEN 'bit' THEN '@extschema:vector@.binary_quantize($1)'
            WHEN 'halfvec' THEN '$1::@extschema:vector@.halfvec'
            ELSE '$1' END);
END;
$$;
COMMENT ON FUNCTION pgembed._distance_expression(pgembed.embedding, text) IS
'SQL: the distance of a vector from the query.';


CREATE OR REPLACE FUNCTION pgembed._search_distances(e pgembed.embedding, condition text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    vector text := CASE WHEN e.target = e.source THEN 's.pgembed_vector'
        ELSE format('v.%I', e.target_column) END;
BEGIN
    RETURN format('SELECT %s, %s AS pgembed_distance FROM (%s) AS s%s WHERE %s IS NOT NULL',
        pgembed._column_list(e.key_columns, 's'), pgembed._distance_expression(e, vector),
        pgembed._search_rows(e, condition),
        CASE WHEN e.target <> e.source THEN format(' INNER JOIN %s AS v ON %s', e.target,
            pgembed._same_key(e, 's', 'v')) ELSE '' END,
        vector);
END;
$$;
COMMENT ON FUNCTION pgembed._search_distances(pgembed.embedding, text) IS
'SQL: the distance of every vector whose row passes; a row with chunks has as many.';


CREATE OR REPLACE FUNCTION pgembed._nearest_statement(e pgembed.embedding, condition text, indexed boolean)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text := pgembed._column_list(e.key_columns, 'd');
    distances text := pgembed._search_distances(e, condition);
    -- Adding 0 keeps the value and hides the distance from the vector index.
    distance text := CASE WHEN indexed THEN 'd.pgembed_distance'
        ELSE '(d.pgembed_distance OPERATOR(pg_catalog.+) 0::pg_catalog.float8)' END;
BEGIN
    IF e.target = e.source THEN
        RETURN format('SELECT %s, d.pgembed_distance FROM (%s) AS d '
            'ORDER BY d.pgembed_distance LIMIT $2 OPERATOR(pg_catalog.*) 2', keys, distances);
    ELSIF indexed THEN
        distances := format('SELECT * FROM (%s) AS d ORDER BY d.pgembed_distance LIMIT $4', distances);
    END IF;
    RETURN format('SELECT %1$s, pg_catalog.min(%2$s) AS pgembed_distance FROM (%3$s) AS d '
        'GROUP BY %1$s ORDER BY pgembed_distance, %1$s LIMIT $2', keys, distance, distances);
END;
$$;
COMMENT ON FUNCTION pgembed._nearest_statement(pgembed.embedding, text, boolean) IS
'SQL: the keys of the nearest rows, in an order that the vector index serves, or, where the vectors are in a table of chunks, cannot serve. A row with chunks is as near as its nearest chunk.';


CREATE OR REPLACE FUNCTION pgembed._index_condition(e pgembed.embedding, nearer float8)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(' AND (SELECT pg_catalog.count(*) FROM q) OPERATOR(pg_catalog.>=) %s',
            CASE WHEN e.target = e.source THEN '($2 OPERATOR(pg_catalog.*) 2)' ELSE '$2' END)
        || CASE WHEN nearer IS NULL THEN ''
            ELSE format(' AND (SELECT pg_catalog.count(*) FROM %s AS g '
                'WHERE g.ctid OPERATOR(pg_catalog.=) ANY ($5) AND %s OPERATOR(pg_catalog.<) '
                '(SELECT n.pgembed_distance FROM q AS n ORDER BY n.pgembed_distance '
                'LIMIT 1 OFFSET ($2 OPERATOR(pg_catalog.-) 1))) OPERATOR(pg_catalog.<=) %s', e.target,
                pgembed._distance_expression(e, format('g.%I', e.target_column)), floor(nearer)) END;
END;
$$;
COMMENT ON FUNCTION pgembed._index_condition(pgembed.embedding, float8) IS
'SQL: whether what an index found is to be believed. Twice as many rows as are returned must be met, because the last rows that an index finds are those it is least sure of; and of the sentinels no more than so many may be nearer.';


CREATE OR REPLACE FUNCTION pgembed._indexed_statement(e pgembed.embedding, condition text, nearer float8)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_name text := pgembed._table_name(e.source);
    vector text := format('%s.%I', table_name, e.target_column);
BEGIN
    RETURN format('WITH q AS MATERIALIZED (SELECT (%s.*)::%s AS pgembed_item, %s, %s AS pgembed_distance '
        'FROM %s WHERE %s AND %s IS NOT NULL ORDER BY pgembed_distance LIMIT ($2 OPERATOR(pg_catalog.*) 2)) '
        'SELECT q.pgembed_item, q.pgembed_distance FROM q '
        'WHERE q.pgembed_distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8%s '
        'ORDER BY q.pgembed_distance, %s LIMIT $2',
        table_name, e.source, pgembed._column_list(e.key_columns, table_name),
        pgembed._distance_expression(e, vector), e.source, condition, vector,
        pgembed._index_condition(e, nearer), pgembed._column_list(e.key_columns, 'q'));
END;
$$;
COMMENT ON FUNCTION pgembed._indexed_statement(pgembed.embedding, text, float8) IS
'SQL: a search through an index on the source itself, which is named only once: with many indexes, planning is what such a search costs.';


CREATE OR REPLACE FUNCTION pgembed._exact_statement(e pgembed.embedding, condition text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_name text := pgembed._table_name(e.source);
    vector text := format('%s.%I', table_name, e.target_column);
BEGIN
    RETURN format('SELECT (SELECT (t.*)::%1$s FROM %1$s AS t WHERE %2$s), q.pgembed_distance '
        'FROM (SELECT %3$s, (%4$s OPERATOR(pg_catalog.+) 0::pg_catalog.float8) AS pgembed_distance '
        'FROM %1$s WHERE %5$s AND %6$s IS NOT NULL ORDER BY pgembed_distance, %3$s LIMIT $2) AS q '
        'WHERE q.pgembed_distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 '
        'ORDER BY q.pgembed_distance, %7$s',
        e.source, pgembed._same_key(e, 't', 'q'), pgembed._column_list(e.key_columns, table_name),
        pgembed._distance_expression(e, vector), condition, vector, pgembed._column_list(e.key_columns, 'q'));
END;
$$;
COMMENT ON FUNCTION pgembed._exact_statement(pgembed.embedding, text) IS
'SQL: an exact search of vectors in the source itself. Adding 0 keeps the distance and hides it from the vector index. What is compared needs only the filter''s columns, the key and the vector, which a covering index has; whole rows are fetched once they are chosen.';


CREATE OR REPLACE FUNCTION pgembed._search_statement(
    e pgembed.embedding, condition text, indexed boolean, nearer float8 DEFAULT NULL
)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF e.target = e.source THEN
        RETURN CASE WHEN indexed THEN pgembed._indexed_statement(e, condition, nearer)
            ELSE pgembed._exact_statement(e, condition) END;
    END IF;
    RETURN format('WITH q AS MATERIALIZED (%s) '
        'SELECT (t.*)::%s, q.pgembed_distance FROM q INNER JOIN %s AS t ON %s '
        'WHERE q.pgembed_distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8%s '
        'ORDER BY q.pgembed_distance, %s LIMIT $2',
        pgembed._nearest_statement(e, condition, indexed), e.source, e.source,
        pgembed._same_key(e, 't', 'q'),
        CASE WHEN indexed THEN pgembed._index_condition(e, nearer) ELSE '' END,
        pgembed._column_list(e.key_columns, 'q'));
END;
$$;
COMMENT ON FUNCTION pgembed._search_statement(pgembed.embedding, text, boolean, float8) IS
'SQL: the k nearest rows and their distances. Through an index: all k of them or none, so that nobody takes a short or a wrong answer for the whole one. Whole rows are fetched once they are chosen; a zero vector, which is at no cosine distance from anything, is not returned.';
