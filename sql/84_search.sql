-- Search: the functions that users call. They run as the caller, whose grants and
-- row-level security apply, and under the caller's search_path, in which the predicate is
-- read: everything else in them is qualified.

CREATE OR REPLACE FUNCTION pgembed._apply_settings(settings text[])
RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before text[] := settings;
    applied text;
BEGIN
    FOR i IN 2..cardinality(settings) BY 2 LOOP
        before[i] := current_setting(settings[i - 1], true);
        applied := set_config(settings[i - 1], settings[i], true);
    END LOOP;
    RETURN before;
END;
$$;
COMMENT ON FUNCTION pgembed._apply_settings(text[]) IS
'Sets settings, names and values in turn, until the transaction ends, and returns what they were: applied again, that undoes it. An error undoes it too, with the (sub)transaction.';


CREATE OR REPLACE FUNCTION pgembed._run_search(
    source anyelement, query @extschema:vector@.vector, k integer,
    statement text, settings text[], arguments text[], sentinels tid[]
)
RETURNS TABLE (item anyelement, distance float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10
AS $$
BEGIN
    settings := pgembed._apply_settings(settings);
    RETURN QUERY EXECUTE statement USING query, k, arguments, k OPERATOR(pg_catalog.*) 8, sentinels;
    PERFORM pgembed._apply_settings(settings);
END;
$$;
COMMENT ON FUNCTION pgembed._run_search(anyelement, @extschema:vector@.vector, integer, text, text[], text[], tid[]) IS
'Runs the statement of a search under its settings, which are over when it returns.';


CREATE OR REPLACE FUNCTION pgembed._read_index(
    embedding text, meant regclass, query @extschema:vector@.vector, k integer,
    statement text, settings text[], arguments text[], sentinels tid[]
)
RETURNS regclass
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(embedding);
    plan pg_catalog.jsonb;
BEGIN
    IF meant IS NULL OR pg_catalog.pg_partition_root(e.target) IS NOT NULL THEN
        RETURN meant;
    END IF;
    settings := pgembed._apply_settings(settings);
    plan := pgembed._estimate(
        pg_catalog.concat('EXPLAIN (FORMAT JSON) ', statement), query, k, arguments, sentinels);
    PERFORM pgembed._apply_settings(settings);
    RETURN (SELECT p.index FROM pgembed._planned_index(e, plan) AS p);
END;
$$;
COMMENT ON FUNCTION pgembed._read_index(text, regclass, @extschema:vector@.vector, integer, text, text[], text[], tid[]) IS
'The vector index that a search reads: PostgreSQL need not choose the one that was meant. Of partitions, which have their own, only that is told.';


CREATE OR REPLACE FUNCTION pgembed.search(
    source anyelement,
    query @extschema:vector@.vector,
    k integer DEFAULT 10,
    filter jsonb DEFAULT NULL,
    predicate text DEFAULT NULL,
    embedding text DEFAULT NULL,
    mode text DEFAULT 'auto',
    recall float8 DEFAULT 0.99
)
RETURNS TABLE (item anyelement, distance float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10 COST 100000
AS $$
DECLARE
    p pg_catalog.record;
    f pg_catalog.record;
    before pg_catalog.text[];
    complete pg_catalog.bool;
BEGIN
    BEGIN
        p := pgembed._plan_search(pg_catalog.pg_typeof(source), query, k, filter, predicate, embedding, mode, recall);
        before := pgembed._apply_settings(p.settings);
        RETURN QUERY EXECUTE p.statement
        USING query, k, p.arguments, k OPERATOR(pg_catalog.*) 8, p.sentinels;
        complete := FOUND OR p.index IS NULL;
        PERFORM pgembed._apply_settings(before);
        IF NOT complete THEN
            f := pgembed._plan_fallback(p.name, p.condition);
            before := pgembed._apply_settings(f.settings);
            RETURN QUERY EXECUTE f.statement USING query, k, p.arguments;
            PERFORM pgembed._apply_settings(before);
        END IF;
    EXCEPTION
        WHEN undefined_column OR syntax_error OR cardinality_violation OR null_value_not_allowed THEN
            PERFORM pgembed._check_searched(pg_catalog.pg_typeof(source), embedding);
            RAISE;
    END;
    IF filter IS NOT NULL AND pgembed._records_filter() THEN
        PERFORM pgembed._record_filter(p.id, filter);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed.search(anyelement, @extschema:vector@.vector, integer, jsonb, text, text, text, float8) IS
'The k rows of a table (source: NULL::my_table) that pass the filter and the predicate and are nearest to a vector, nearest first; ties by key (of many equally near ones an index finds some, which need not be those with the least keys). filter is JSON and safe to take from a user; predicate is SQL, what follows WHERE: code that runs with the caller''s rights. distance is pgvector''s: cosine distance, L2, the negative inner product, or for bits Hamming. Rows without a vector are not returned. mode: auto (the cheaper way), exact, or index. recall is the share of the true k nearest that a search through an index aims at; 1 is exact. An index that comes back with fewer than k rows is followed by an exact search. Settings of the planner that it needs are over when it returns; functions that a predicate or a policy calls plan their own statements under them.';


CREATE OR REPLACE FUNCTION pgembed.search(
    source anyelement,
    query text,
    k integer DEFAULT 10,
    filter jsonb DEFAULT NULL,
    predicate text DEFAULT NULL,
    embedding text DEFAULT NULL,
    mode text DEFAULT 'auto',
    recall float8 DEFAULT 0.99
)
RETURNS TABLE (item anyelement, distance float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10 COST 100000
AS $$
BEGIN
    -- Also before a worker is asked for the vector.
    PERFORM pgembed._check_arguments(k, predicate, mode, recall);
    RETURN QUERY SELECT r.item, r.distance FROM pgembed.search(
        source, pgembed._query_vector(pg_catalog.pg_typeof(source), query, embedding),
        k, filter, predicate, embedding, mode, recall) AS r;
END;
$$;
COMMENT ON FUNCTION pgembed.search(anyelement, text, integer, jsonb, text, text, text, float8) IS
'The k rows nearest to a text, which a worker embeds as a query; otherwise as search with a vector. Example: SELECT (item).id, distance FROM pgembed.search(NULL::docs, ''red running shoes'', filter => ''{"price": {"lt": 100}}'')';


CREATE OR REPLACE FUNCTION pgembed.explain_search(
    source anyelement,
    query @extschema:vector@.vector,
    k integer DEFAULT 10,
    filter jsonb DEFAULT NULL,
    predicate text DEFAULT NULL,
    embedding text DEFAULT NULL,
    mode text DEFAULT 'auto',
    recall float8 DEFAULT 0.99
)
RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000
AS $$
DECLARE
    p pg_catalog.record;
    found_rows pg_catalog.int8;
    times pg_catalog.timestamptz[];
    f pg_catalog.record;
    fell_back pg_catalog.bool;
BEGIN
    times[1] := pg_catalog.clock_timestamp();
    p := pgembed._plan_search(pg_catalog.pg_typeof(source), query, k, filter, predicate, embedding, mode, recall);
    times[2] := pg_catalog.clock_timestamp();
    SELECT pg_catalog.count(*) INTO found_rows FROM pgembed._run_search(
        source, query, k, p.statement, p.settings, p.arguments, p.sentinels) AS r;
    fell_back := found_rows OPERATOR(pg_catalog.=) 0 AND p.index IS NOT NULL;
    IF fell_back THEN
        f := pgembed._plan_fallback(p.name, p.condition);
        SELECT pg_catalog.count(*) INTO found_rows FROM pgembed._run_search(
            source, query, k, f.statement, f.settings, p.arguments, NULL) AS r;
    END IF;
    times[3] := pg_catalog.clock_timestamp();
    p.index := pgembed._read_index(
        p.name, p.index, query, k, p.statement, p.settings, p.arguments, p.sentinels);
    IF fell_back THEN
        p.statement := f.statement;
        p.settings := f.settings;
    END IF;
    RETURN pgembed._search_report(pg_catalog.to_jsonb(p), k, found_rows, fell_back, times);
EXCEPTION
    WHEN undefined_column OR syntax_error OR cardinality_violation OR null_value_not_allowed THEN
        PERFORM pgembed._check_searched(pg_catalog.pg_typeof(source), embedding);
        RAISE;
END;
$$;
COMMENT ON FUNCTION pgembed.explain_search(anyelement, @extschema:vector@.vector, integer, jsonb, text, text, text, float8) IS
'Runs a search and tells how: strategy and reason, rows expected to pass the filter, rows returned, whether an index came back short and the exact search followed, the index that was read, settings, statement, milliseconds.';


CREATE OR REPLACE FUNCTION pgembed.explain_search(
    source anyelement,
    query text,
    k integer DEFAULT 10,
    filter jsonb DEFAULT NULL,
    predicate text DEFAULT NULL,
    embedding text DEFAULT NULL,
    mode text DEFAULT 'auto',
    recall float8 DEFAULT 0.99
)
RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000
AS $$
BEGIN
    PERFORM pgembed._check_arguments(k, predicate, mode, recall);
    RETURN pgembed.explain_search(
        source, pgembed._query_vector(pg_catalog.pg_typeof(source), query, embedding),
        k, filter, predicate, embedding, mode, recall);
END;
$$;
COMMENT ON FUNCTION pgembed.explain_search(anyelement, text, integer, jsonb, text, text, text, float8) IS
'Runs a search for a text and tells how; the time of the call that embeds the text is not counted.';


CREATE OR REPLACE FUNCTION pgembed._search_report(
    plan jsonb, k integer, found_rows bigint, fell_back boolean, times timestamptz[]
)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN jsonb_build_object(
        'embedding', plan -> 'name', 'strategy', plan -> 'strategy', 'reason', plan -> 'reason',
        'fallback', fell_back, 'index', plan -> 'index',
        'settings', jsonb_object(ARRAY(SELECT jsonb_array_elements_text(plan -> 'settings'))),
        'k', k, 'estimated_rows', plan -> 'estimated_rows', 'rows', found_rows,
        'exact_us', round((plan ->> 'exact_us')::numeric), 'index_us', round((plan ->> 'index_us')::numeric),
        'statement', plan -> 'statement',
        'arguments', plan -> 'arguments',
        'planning_ms', round(extract(epoch FROM times[2] - times[1]) * 1000, 3),
        'execution_ms', round(extract(epoch FROM times[3] - times[2]) * 1000, 3));
END;
$$;
COMMENT ON FUNCTION pgembed._search_report(jsonb, integer, bigint, boolean, timestamptz[]) IS
'What explain_search returns.';
