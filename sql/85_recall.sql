-- Recall, measured: what searches find of what exact searches find, on the live table.

CREATE OR REPLACE FUNCTION pgembed._filter_shape(filter jsonb)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(filter) = 'object' THEN
        RETURN (SELECT coalesce(jsonb_object_agg(e.key, pgembed._filter_shape(e.value)), '{}')
                FROM jsonb_each(filter) AS e);
    ELSIF filter @? '$[*] ? (@.type() == "object")' AND jsonb_typeof(filter) = 'array' THEN
        RETURN (SELECT jsonb_agg(pgembed._filter_shape(e.value) ORDER BY e.ordinality)
                FROM jsonb_array_elements(filter) WITH ORDINALITY AS e);
    END IF;
    RETURN CASE jsonb_typeof(filter) WHEN 'array' THEN '["?"]' ELSE '"?"' END::jsonb;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_shape(jsonb) IS
'A filter with its values replaced by "?": what filters that differ in their values share.';


CREATE OR REPLACE FUNCTION pgembed._sample_queries(e pgembed.embedding, sample integer, workload regclass)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation regclass := coalesce(workload, e.target);
    name text := CASE WHEN workload IS NULL THEN e.target_column ELSE 'embedding' END;
    vector text := format('t.%I', name);
BEGIN
    IF e.target_column <> ALL (pgembed._columns(e.target)) THEN
        PERFORM pgembed._check_fits(e);
    ELSIF name <> ALL (pgembed._columns(relation)) THEN
        RAISE EXCEPTION 'the workload % has no column embedding', workload
            USING ERRCODE = 'undefined_column',
            HINT = 'It takes query vectors in embedding, and optionally a jsonb filter each.';
    ELSIF EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = relation AND a.attname = name
            AND a.atttypid IN ('bit'::regtype, 'varbit'::regtype))
    THEN
        vector := format('pg_catalog.concat(''['', pg_catalog.rtrim(pg_catalog.replace(pg_catalog.replace('
            '%s::pg_catalog.text, ''1'', ''1,''), ''0'', ''-1,''), '',''), '']'')', vector);
    END IF;
    vector := vector || '::@extschema:vector@.vector';
    RETURN format('SELECT %s, %s FROM %s AS t WHERE t.%I IS NOT NULL%s ORDER BY pg_catalog.random() LIMIT %s',
        vector,
        CASE WHEN 'filter' = ANY (pgembed._columns(workload)) THEN 't.filter::pg_catalog.jsonb' ELSE 'NULL::pg_catalog.jsonb' END,
        relation, name,
        -- Searches refuse vectors without a direction.
        CASE WHEN e.distance = 'cosine' AND e.storage <> 'bit'
            THEN format(' AND @extschema:vector@.vector_norm(%s) OPERATOR(pg_catalog.<>) 0', vector) ELSE '' END,
        sample);
END;
$$;
COMMENT ON FUNCTION pgembed._sample_queries(pgembed.embedding, integer, regclass) IS
'SQL: query vectors and their filters, drawn from a workload, or vectors of the table itself; under cosine distance none of length zero.';


CREATE OR REPLACE FUNCTION pgembed._measure_recall(
    embedding text, k integer, sample integer, filter jsonb, workload regclass, mode text,
    recall_target float8, callers_path text
)
RETURNS TABLE (
    filter_shape jsonb, queries bigint, recall float8, worst float8, short bigint,
    ms float8, exact_ms float8
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    e pgembed.embedding := pgembed._find_embedding(embedding);
    statement text := format('SELECT pg_catalog.array_agg(s.distance ORDER BY s.distance) FROM pgembed.search('
        'NULL::%s, $1, $2, filter => $3, embedding => $4, mode => $5, recall => $6) AS s', e.source);
    query @extschema:vector@.vector;
    given jsonb;
    one jsonb;
    truth float8[];
    answer float8[];
    times timestamptz[];
    path text := current_setting('search_path');
    seen jsonb := '[]';
    -- Measuring is no workload.
    before text[] := pgembed._apply_settings('{pgembed.record_filters, 0}');
BEGIN
    IF sample IS NULL OR sample NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'sample is %, but must be from 1 to 100000', coalesce(sample::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Measure with that many queries.';
    END IF;
    -- Policies, and the functions they call, are to find what they find in a search.
    PERFORM set_config('search_path', callers_path, true);
    FOR query, given IN EXECUTE pgembed._sample_queries(e, sample, workload) LOOP
        PERFORM pg_catalog.set_config('search_path', path, true);
        given := coalesce(given, filter, '{}');
        IF given = '[]' THEN
            PERFORM pgembed._refuse_filter('an object, or a list of objects, is expected, not []',
                'Write {"column": value}, or leave it out.');
        END IF;
        FOR one IN SELECT f.value FROM jsonb_array_elements(
            CASE jsonb_typeof(given) WHEN 'array' THEN given ELSE jsonb_build_array(given) END) AS f (value)
        LOOP
            PERFORM set_config('search_path', callers_path, true);
            times[1] := pg_catalog.clock_timestamp();
            EXECUTE statement INTO truth USING query, k, one, embedding, 'exact', 1.0;
            times[2] := pg_catalog.clock_timestamp();
            EXECUTE statement INTO answer USING query, k, one, embedding, mode, recall_target;
            times[3] := pg_catalog.clock_timestamp();
            PERFORM pg_catalog.set_config('search_path', path, true);
            seen := seen || jsonb_build_object(
                'shape', pgembed._filter_shape(one), 'recall', pgembed._recall_of(answer, truth),
                'short', coalesce(cardinality(answer), 0) < coalesce(cardinality(truth), 0),
                'ms', extract(epoch FROM times[3] - times[2]) * 1000,
                'exact_ms', extract(epoch FROM times[2] - times[1]) * 1000);
        END LOOP;
    END LOOP;
    PERFORM pg_catalog.set_config('search_path', path, true);
    RETURN QUERY
    SELECT r.shape, count(*), avg(r.recall), min(r.recall), count(*) FILTER (WHERE r.short),
        percentile_cont(0.5) WITHIN GROUP (ORDER BY r.ms),
        percentile_cont(0.5) WITHIN GROUP (ORDER BY r.exact_ms)
    FROM jsonb_to_recordset(seen) AS r (
        shape jsonb, recall float8, short boolean, ms float8, exact_ms float8)
    GROUP BY r.shape ORDER BY r.shape;
    PERFORM pgembed._apply_settings(before);
END;
$$;
COMMENT ON FUNCTION pgembed._measure_recall(text, integer, integer, jsonb, regclass, text, float8, text) IS
'What pgembed.recall returns; the searches run under the search_path of its caller.';


CREATE OR REPLACE FUNCTION pgembed.recall(
    embedding text,
    k integer DEFAULT 10,
    sample integer DEFAULT 100,
    filter jsonb DEFAULT NULL,
    workload regclass DEFAULT NULL,
    mode text DEFAULT 'auto',
    recall_target float8 DEFAULT 0.99
)
RETURNS TABLE (
    filter_shape jsonb, queries bigint, recall float8, worst float8, short bigint,
    ms float8, exact_ms float8
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
AS $$
BEGIN
    RETURN QUERY
    SELECT r.* FROM pgembed._measure_recall(embedding, k, sample, filter, workload, mode, recall_target,
        pg_catalog.current_setting('search_path')) AS r;
END;
$$;
COMMENT ON FUNCTION pgembed.recall(text, integer, integer, jsonb, regclass, text, float8) IS
'Measures searches against exact ones on the live table, per shape of filter: mean and worst recall, answers that came back short, and the median milliseconds of both. The queries are vectors of the table (which flatters: each finds itself), or those of a workload table with columns embedding and, optionally, filter; under cosine distance none of length zero. Nothing of it is recorded. filter: one filter, or a list of filters to try each query with.';


CREATE OR REPLACE FUNCTION pgembed._recall_of(answer float8[], truth float8[])
RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    farthest float8 := (SELECT max(t) FROM unnest(truth) AS t);
BEGIN
    RETURN CASE WHEN farthest IS NULL THEN 1 ELSE (
        SELECT count(*)::float8 / cardinality(truth) FROM unnest(answer) AS a
        WHERE a <= farthest + 1e-9 * abs(farthest)) END;
END;
$$;
COMMENT ON FUNCTION pgembed._recall_of(float8[], float8[]) IS
'The share of the true distances that an answer reaches; by distance, so that one of two equally near rows is as good as the other.';
