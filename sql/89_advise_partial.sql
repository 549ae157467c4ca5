-- Which partial vector indexes there can be at all.

CREATE OR REPLACE FUNCTION pgembed._indexable_filter(source regclass, filter jsonb)
RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    token text := 'r' || replace(gen_random_uuid()::text, '-', '');
    c record := pgembed._compile_filter(source, filter, token);
BEGIN
    RETURN NOT EXISTS (
        -- Values of immutable types, and labels of enums, are always read alike.
        SELECT FROM regexp_matches(c.condition, pgembed._value_pattern(token, E'(\\d+)'), 'g') AS m
        INNER JOIN pg_catalog.pg_type AS t ON t.oid = m[2]::regtype
        LEFT JOIN pg_catalog.pg_type AS element ON element.oid = t.typelem AND t.typcategory = 'A'
        INNER JOIN pg_catalog.pg_proc AS i ON i.oid = coalesce(element.typinput, t.typinput)
        WHERE i.provolatile <> 'i' AND coalesce(element.typtype, t.typtype) <> 'e'
            AND c.arguments[m[1]::integer] ~* 'now|today|tomorrow|yesterday'
    ) AND NOT EXISTS (
        SELECT FROM pgembed._filter_terms(filter) AS f
        CROSS JOIN LATERAL pgembed._named_column(source, f.name) AS n
        INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = source AND a.attname = n.bare
        WHERE a.attgenerated = 'v');
END;
$$;
COMMENT ON FUNCTION pgembed._indexable_filter(regclass, jsonb) IS
'Whether a filter can be the predicate of an index: none of its values is relative to the time, such as today, and none of its columns is computed when it is read.';


CREATE OR REPLACE FUNCTION pgembed._indexable_vectors(e pgembed.embedding)
RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN e.dimensions <= pgembed._most_dimensions(e.storage) AND pgembed._of_one_length(e);
END;
$$;
COMMENT ON FUNCTION pgembed._indexable_vectors(pgembed.embedding) IS
'Whether pgvector can build an HNSW index on the vectors: the column says how many dimensions they have, and these are not too many.';
