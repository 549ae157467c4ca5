-- The constants of the cost model, measured on this machine.

CREATE OR REPLACE FUNCTION pgembed._time_of(statement text, query @extschema:vector@.vector, repeats integer)
RETURNS float8
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started timestamptz;
    fastest float8;
BEGIN
    FOR i IN 1..repeats LOOP
        started := clock_timestamp();
        EXECUTE statement USING query, 5;
        fastest := least(fastest, extract(epoch FROM clock_timestamp() - started) * 1000000);
    END LOOP;
    RETURN fastest;
END;
$$;
COMMENT ON FUNCTION pgembed._time_of(text, @extschema:vector@.vector, integer) IS
'The microseconds of a statement about a query and, if it asks how many, 5 rows; the fastest of some runs.';


CREATE OR REPLACE FUNCTION pgembed._time_of_index(e pgembed.embedding, queries @extschema:vector@.vector[], effort integer)
RETURNS float8
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before text[];
    total float8 := 0;
    statement text := format('SELECT count(*) FROM (%s) AS q', pgembed._nearest_statement(e, 'true', true));
BEGIN
    before := pgembed._apply_settings(ARRAY['enable_sort', 'off', 'jit', 'off',
        'hnsw.iterative_scan', 'off', 'hnsw.ef_search', effort::text]);
    FOR i IN 1..cardinality(queries) LOOP
        total := total + pgembed._time_of(statement, queries[i], 1);
    END LOOP;
    PERFORM pgembed._apply_settings(before);
    RETURN total / cardinality(queries);
END;
$$;
COMMENT ON FUNCTION pgembed._time_of_index(pgembed.embedding, @extschema:vector@.vector[], integer) IS
'The microseconds of reading a vector index with so much effort, averaged over queries.';


CREATE OR REPLACE FUNCTION pgembed._time_of_nothing(e pgembed.embedding, queries @extschema:vector@.vector[])
RETURNS float8
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total float8 := 0;
    statement text := format('SELECT count(*) FROM pgembed.search(NULL::%s, $1, filter => %L, embedding => %L)',
        e.source, jsonb_build_object(e.key_columns[1], NULL), e.name);
BEGIN
    FOR i IN 1..cardinality(queries) LOOP
        total := total + pgembed._time_of(statement, queries[i], 1);
    END LOOP;
    RETURN total / cardinality(queries);
END;
$$;
COMMENT ON FUNCTION pgembed._time_of_nothing(pgembed.embedding, @extschema:vector@.vector[]) IS
'The microseconds of a search whose filter no row passes, because keys are not NULL, averaged over queries.';


CREATE OR REPLACE FUNCTION pgembed._shared_cost(cost float8, dimensions integer, vector text, dimension text)
RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    times float8 := cost / (pgembed._default_cost(vector) + dimensions * pgembed._default_cost(dimension));
BEGIN
    RETURN jsonb_build_object('cost_' || vector, times * pgembed._default_cost(vector),
        'cost_' || dimension, times * pgembed._default_cost(dimension));
END;
$$;
COMMENT ON FUNCTION pgembed._shared_cost(float8, integer, text, text) IS
'What a vector of so many dimensions costs, divided between the vector and its dimensions as the defaults are: one table tells only the sum.';


CREATE OR REPLACE FUNCTION pgembed.calibrate(embedding text, store boolean DEFAULT true)
RETURNS TABLE (name text, value float8)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    e pgembed.embedding := pgembed._find_embedding(embedding);
    size record := pgembed._table_size(e.target);
    queries @extschema:vector@.vector[];
    counting text := format('SELECT count(*) FROM %s WHERE %I IS NOT NULL', e.target, e.target_column);
    before text[];
    planned record;
    scan float8;
    compared float8;
    low float8;
    high float8;
    measured jsonb;
    m record;
BEGIN
    PERFORM pgembed._check_fits(e);
    EXECUTE format('SELECT array_agg(q.v) FROM (%s) AS q (v, f)', pgembed._sample_queries(e, 20, NULL))
    INTO queries;
    IF size.rows < 1000 OR queries IS NULL OR e.target <> e.source THEN
        RAISE EXCEPTION 'the embedding % is too small to measure with, or has chunks', quote_literal(embedding)
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Choose one of a table with at least 1000 rows, after ANALYZE.';
    END IF;
    before := pgembed._apply_settings(pgembed._memory_settings());
    planned := pgembed._passing_rows('EXPLAIN ' || counting, NULL, 1, NULL, '{}');
    scan := pgembed._time_of(counting, queries[1], 3);
    PERFORM pgembed._apply_settings(before);
    compared := pgembed._time_of(format('SELECT count(*) FROM (%s) AS d WHERE d.pgembed_distance < -1e300',
        pgembed._search_distances(e, 'true')), queries[1], 3);
    measured := jsonb_build_object('cost_planner', scan / greatest(planned.planner_cost, 1))
        || pgembed._shared_cost(greatest(compared - scan, 0) / size.rows, e.dimensions, 'distance', 'dimension')
        || jsonb_build_object('cost_overhead', pgembed._time_of_nothing(e, queries));
    IF (pgembed._usable_index(e, '{}')).method = 'hnsw' THEN
        PERFORM pgembed._time_of_index(e, queries, 400);
        low := pgembed._time_of_index(e, queries, 40);
        high := greatest(pgembed._time_of_index(e, queries, 400), low);
        measured := measured
            || pgembed._shared_cost((high - low) / 360, e.dimensions, 'visit', 'visit_dimension')
            || jsonb_build_object('cost_search', greatest(low - (high - low) / 9, 0));
    END IF;
    FOR m IN SELECT j.key, round(j.value::numeric, 6) AS value FROM jsonb_each_text(measured) AS j LOOP
        IF store THEN
            EXECUTE format('ALTER DATABASE %I SET pgembed.%I = %L', current_database(), m.key, m.value);
        END IF;
        PERFORM set_config('pgembed.' || m.key, m.value::text, false);
        name := m.key;
        value := m.value;
        RETURN NEXT;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed.calibrate(text, boolean) IS
'Measures what searches cost on this machine, with the table of an embedding (a big one, with an HNSW index if possible), and stores it as settings of the database, pgembed.cost_...: new sessions plan with them, and this one. What a vector costs, it divides between the vector and its dimensions as the defaults are. Takes seconds; needs the database''s owner to store.';
