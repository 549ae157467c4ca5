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
    condition := concat_ws(' AND ', f.condition, '(' || predicate || E'\n)');
    probe := format('EXPLAIN (FORMAT JSON) SELECT FROM %s WHERE %s', e.source, nullif(condition, ''))
        || CASE WHEN e.target = e.source
            THEN format(' AND %I IS NOT NULL', e.target_column) ELSE '' END;
    probe_predicate := format('EXPLAIN (FORMAT JSON) SELECT FROM %s WHERE ', e.source) || predicate;
    IF condition = '' THEN
        condition := 'true';
        probe := NULL;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._search_condition(pgembed.embedding, jsonb, text) IS
'Filter and predicate as one condition on the source, and the EXPLAINs that estimate it: of both together, and of the predicate outside parentheses, which is an error when it closes parentheses that it did not open.';


CREATE OR REPLACE FUNCTION pgembed._key_aliases(e pgembed.embedding, alias text)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(format('%s.pgembed_key_%s', alias, k.ordinal), ', ' ORDER BY k.ordinal)
    FROM unnest((e).key_columns) WITH ORDINALITY AS k (name, ordinal)
);
COMMENT ON FUNCTION pgembed._key_aliases(pgembed.embedding, text) IS
'SQL: the key columns under the names that search statements give them.';


CREATE OR REPLACE FUNCTION pgembed._search_rows(e pgembed.embedding, condition text, document text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_name text := (
        SELECT quote_ident(c.relname) FROM pg_catalog.pg_class AS c WHERE c.oid = e.source);
    column_list text := (
        SELECT string_agg(format('%1$s.%2$I AS pgembed_key_%3$s%4$s', table_name, k.name, k.ordinal,
            CASE WHEN e.target <> e.source THEN format(', %s.%I', table_name, k.name) ELSE '' END),
            ', ' ORDER BY k.ordinal)
        FROM unnest(e.key_columns) WITH ORDINALITY AS k (name, ordinal));
BEGIN
    RETURN format('SELECT %1$s.ctid AS pgembed_row, %1$s.tableoid AS pgembed_table, %2$s%3$s '
        'FROM %4$s WHERE %5$s', table_name, column_list,
        coalesce(', ' || document || ' AS pgembed_document', CASE WHEN e.target = e.source
            THEN format(', %s.%I AS pgembed_vector', table_name, e.target_column) ELSE '' END),
        e.source, condition);
END;
$$;
COMMENT ON FUNCTION pgembed._search_rows(pgembed.embedding, text, text) IS
'SQL: the source rows that pass, with their place, key and (where it is theirs) vector, or instead of that a document of words. The only scope in which filter and predicate are read.';


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
    RETURN format('SELECT s.pgembed_row, s.pgembed_table, %s, %s '
        'AS pgembed_distance FROM (%s) AS s%s WHERE %s IS NOT NULL',
        pgembed._key_aliases(e, 's'), pgembed._distance_expression(e, vector),
        pgembed._search_rows(e, condition),
        CASE WHEN e.target <> e.source THEN format(' INNER JOIN %s AS v ON %s', e.target,
            pgembed._key_match(e.source, 's', 'v')) ELSE '' END,
        vector);
END;
$$;
COMMENT ON FUNCTION pgembed._search_distances(pgembed.embedding, text) IS
'SQL: the distance of every vector whose row passes; a row with chunks has as many.';


CREATE OR REPLACE FUNCTION pgembed._row_type(e pgembed.embedding)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT pgembed._type_name(c.reltype) FROM pg_catalog.pg_class AS c WHERE c.oid = e.source);
END;
$$;
COMMENT ON FUNCTION pgembed._row_type(pgembed.embedding) IS
'The qualified, quoted name of the type of the source''s rows.';


CREATE OR REPLACE FUNCTION pgembed._nearest_statement(e pgembed.embedding, condition text, indexed boolean)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text := pgembed._key_aliases(e, 'd');
    places text := 'd.pgembed_row, d.pgembed_table, ' || keys;
    distances text := pgembed._search_distances(e, condition);
    -- Adding 0 keeps the value and hides the distance from the vector index.
    distance text := CASE WHEN indexed THEN 'd.pgembed_distance'
        ELSE '(d.pgembed_distance OPERATOR(pg_catalog.+) 0::pg_catalog.float8)' END;
BEGIN
    IF e.target = e.source THEN
        RETURN format('SELECT %s, %s AS pgembed_distance FROM (%s) AS d '
            'ORDER BY pgembed_distance%s', places, distance, distances,
            CASE WHEN indexed THEN ' LIMIT $2 OPERATOR(pg_catalog.*) 2'
                ELSE format(', %s LIMIT $2', keys) END);
    ELSIF indexed THEN
        distances := format('SELECT * FROM (%s) AS d ORDER BY d.pgembed_distance LIMIT $4', distances);
    END IF;
    RETURN format('SELECT %1$s, pg_catalog.min(%2$s) AS pgembed_distance FROM (%3$s) AS d '
        'GROUP BY %1$s ORDER BY pgembed_distance, %4$s LIMIT $2', places, distance, distances, keys);
END;
$$;
COMMENT ON FUNCTION pgembed._nearest_statement(pgembed.embedding, text, boolean) IS
'SQL: the places of the k nearest rows, in an order that the vector index serves, or cannot serve. A row with chunks is as near as its nearest chunk.';


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
    table_name text := (
        SELECT quote_ident(c.relname) FROM pg_catalog.pg_class AS c WHERE c.oid = e.source);
    vector text := format('%s.%I', table_name, e.target_column);
    column_list text := (
        SELECT string_agg(format('%s.%I AS pgembed_key_%s', table_name, k.name, k.ordinal), ', ' ORDER BY k.ordinal)
        FROM unnest(e.key_columns) WITH ORDINALITY AS k (name, ordinal));
BEGIN
    RETURN format('WITH q AS MATERIALIZED (SELECT (%s.*)::%s AS pgembed_item, %s, %s AS pgembed_distance '
        'FROM %s WHERE %s AND %s IS NOT NULL ORDER BY pgembed_distance LIMIT ($2 OPERATOR(pg_catalog.*) 2)) '
        'SELECT q.pgembed_item, q.pgembed_distance FROM q '
        'WHERE q.pgembed_distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8%s '
        'ORDER BY q.pgembed_distance, %s LIMIT $2',
        table_name, pgembed._row_type(e), column_list, pgembed._distance_expression(e, vector),
        e.source, condition, vector, pgembed._index_condition(e, nearer), pgembed._key_aliases(e, 'q'));
END;
$$;
COMMENT ON FUNCTION pgembed._indexed_statement(pgembed.embedding, text, float8) IS
'SQL: a search through an index on the source itself, which is named only once: with many indexes, planning is what such a search costs.';


CREATE OR REPLACE FUNCTION pgembed._search_statement(
    e pgembed.embedding, condition text, indexed boolean, nearer float8 DEFAULT NULL
)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    row_type text := pgembed._row_type(e);
BEGIN
    IF indexed AND e.target = e.source THEN
        RETURN pgembed._indexed_statement(e, condition, nearer);
    END IF;
    RETURN format('WITH q AS MATERIALIZED (%s) '
        'SELECT (t.*)::%s, q.pgembed_distance FROM q INNER JOIN %s AS t '
        'ON t.ctid OPERATOR(pg_catalog.=) q.pgembed_row '
        'AND t.tableoid OPERATOR(pg_catalog.=) q.pgembed_table '
        'WHERE q.pgembed_distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8%s '
        'ORDER BY q.pgembed_distance, %s LIMIT $2',
        pgembed._nearest_statement(e, condition, indexed), row_type, e.source,
        CASE WHEN indexed THEN pgembed._index_condition(e, nearer) ELSE '' END,
        pgembed._key_aliases(e, 'q'));
END;
$$;
COMMENT ON FUNCTION pgembed._search_statement(pgembed.embedding, text, boolean, float8) IS
'SQL: the k nearest rows and their distances. Through an index: all k of them or none, so that nobody takes a short or a wrong answer for the whole one. Rows are fetched by their place once they are chosen; a zero vector, which is at no cosine distance from anything, is not returned.';
