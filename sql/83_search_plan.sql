-- How a search is carried out: exactly, or through a vector index, whichever is cheaper.

CREATE OR REPLACE FUNCTION pgembed._estimate(
    probe text, query @extschema:vector@.vector, k integer, arguments text[]
)
RETURNS json
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $$
DECLARE
    plan pg_catalog.json;
BEGIN
    -- A loop, because a loop takes one statement and no more.
    FOR plan IN EXECUTE probe USING query, k, arguments, k LOOP
        RETURN plan;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._estimate(text, @extschema:vector@.vector, integer, text[]) IS
'The plan of an EXPLAIN (FORMAT JSON), made under the caller''s search_path, as the search will be.';


CREATE OR REPLACE FUNCTION pgembed._usable_index(
    e pgembed.embedding, plan json,
    OUT index regclass, OUT method text, OUT lists integer, OUT rows float8, OUT partial boolean
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    named text[] := CASE WHEN plan IS NULL THEN '{}' ELSE ARRAY(
        SELECT p #>> '{}' FROM jsonb_path_query(plan::jsonb, '$.**."Index Name"') AS p) END;
BEGIN
    SELECT i.index, i.method, i.lists, i.rows, i.partial INTO index, method, lists, rows, partial
    FROM pgembed._vector_indexes(e, named) AS i
    WHERE plan IS NULL OR named <> '{}'
    LIMIT 1;
END;
$$;
COMMENT ON FUNCTION pgembed._usable_index(pgembed.embedding, json) IS
'The vector index to read: the one over all rows, or the one that PostgreSQL chose in a plan.';


CREATE OR REPLACE FUNCTION pgembed._has_partial_index(e pgembed.embedding)
RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_catalog.pg_index AS i
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        INNER JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
        WHERE i.indrelid = e.target AND i.indpred IS NOT NULL AND i.indisvalid);
END;
$$;
COMMENT ON FUNCTION pgembed._has_partial_index(pgembed.embedding) IS
'Whether there are vector indexes on some of the rows.';


CREATE OR REPLACE FUNCTION pgembed._partial_estimate(e pgembed.embedding, plan json)
RETURNS json
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    node json := plan #> '{0,Plan,Plans,0}';
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_index AS i
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = e.target AND i.indpred IS NOT NULL AND c.relname = node ->> 'Index Name')
    THEN
        RETURN json_build_array(json_build_object('Plan', json_build_object('Plan Rows', node -> 'Plan Rows')));
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgembed._partial_estimate(pgembed.embedding, json) IS
'How many rows pass, from a plan that reads a partial index: it saves the EXPLAIN of the exact search. NULL for any other plan.';


CREATE OR REPLACE FUNCTION pgembed._search_strategy(
    e pgembed.embedding, mode text, k integer, recall float8, probed json, indexed json,
    OUT strategy text, OUT reason text, OUT index regclass, OUT settings jsonb,
    OUT estimated_rows float8, OUT exact_us float8, OUT index_us float8,
    OUT sentinels tid[], OUT nearer float8
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    size record := pgembed._table_size(e.source);
    vectors record := size;
    i record;
    s record;
    passing float8;
    wanted integer := k * CASE WHEN e.target = e.source THEN 1 ELSE 8 END;
BEGIN
    estimated_rows := coalesce((probed #>> '{0,Plan,Plan Rows}')::float8, size.rows);
    IF e.target <> e.source THEN
        vectors := pgembed._table_size(e.target);
    END IF;
    exact_us := pgembed._exact_cost(e,
        coalesce(pgembed._pages_read((probed #>> '{0,Plan,Total Cost}')::float8, size.pages),
            least(size.pages, estimated_rows)),
        estimated_rows * vectors.rows / greatest(size.rows, 1));
    strategy := 'exact';
    settings := '{}';
    i := pgembed._usable_index(e, indexed);
    i.rows := coalesce(nullif(i.rows, 0), vectors.rows);
    IF mode = 'exact' THEN
        reason := 'asked for';
    ELSIF mode = 'auto' AND recall >= 1 THEN
        reason := 'a recall of 1 was asked for';
    ELSIF i.index IS NULL THEN
        reason := 'no valid index on the vectors serves this distance and this filter';
    ELSE
        passing := least(1, estimated_rows / greatest(size.rows * i.rows / greatest(vectors.rows, 1), 1));
        s := pgembed._index_settings(e, i.method, i.lists, i.rows, wanted, recall, passing);
        -- A filter may be at odds with the query: then the exact search comes on top.
        index_us := s.cost + CASE WHEN probed IS NULL THEN 0 ELSE 0.2 * exact_us END;
        IF mode = 'index' OR index_us < exact_us THEN
            strategy := 'index';
            index := i.index;
            settings := s.settings;
            IF i.method = 'hnsw' AND NOT i.partial THEN
                SELECT g.places, 3 + g.share * wanted / passing INTO sentinels, nearer
                FROM pgembed._sentinels(e.target) AS g WHERE g.share > 0;
            END IF;
        END IF;
        reason := CASE mode WHEN 'index' THEN 'asked for'
            ELSE format('about %s of %s rows pass: %s µs exactly, %s µs through %s',
                round(estimated_rows), round(size.rows), round(exact_us), round(index_us), i.index) END;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._search_strategy(pgembed.embedding, text, integer, float8, json, json) IS
'Exact or index, and why; with the index come the settings under which it is read.';


CREATE OR REPLACE FUNCTION pgembed._plan_search(
    source regtype, query @extschema:vector@.vector, k integer, filter jsonb, predicate text,
    embedding text, mode text, recall float8,
    OUT id integer, OUT name text, OUT strategy text, OUT reason text, OUT index regclass,
    OUT estimated_rows float8, OUT exact_us float8, OUT index_us float8, OUT settings jsonb,
    OUT condition text, OUT arguments text[], OUT sentinels tid[], OUT statement text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
AS $$
DECLARE
    e pgembed.embedding := pgembed._search_embedding(pgembed._source_relation(source), embedding);
    c pg_catalog.record;
    probed pg_catalog.json;
    indexed pg_catalog.json;
    nearer pg_catalog.float8;
BEGIN
    PERFORM pgembed._check_arguments(k, predicate, mode, recall);
    PERFORM pgembed._check_query(e, query);
    c := pgembed._search_condition(e, filter, predicate);
    id := e.id;
    name := e.name;
    condition := c.condition;
    arguments := c.arguments;
    IF predicate IS NOT NULL THEN
        PERFORM pgembed._estimate(c.probe_predicate, query, k, arguments);
    END IF;
    IF pgembed._has_partial_index(e) THEN
        settings := pgembed._apply_settings('{"enable_sort": "off"}');
        indexed := pgembed._estimate(pg_catalog.concat('EXPLAIN (FORMAT JSON) ',
            pgembed._nearest_statement(e, condition, true)), query, k, arguments);
        PERFORM pgembed._apply_settings(settings);
        probed := pgembed._partial_estimate(e, indexed);
    END IF;
    IF probed IS NULL AND c.probe IS NOT NULL THEN
        probed := pgembed._estimate(c.probe, query, k, arguments);
    END IF;
    SELECT s.* INTO strategy, reason, index, settings, estimated_rows, exact_us, index_us,
        sentinels, nearer
    FROM pgembed._search_strategy(e, mode, k, recall, probed, indexed) AS s;
    statement := pgembed._search_statement(e, condition, index IS NOT NULL, nearer);
END;
$$;
COMMENT ON FUNCTION pgembed._plan_search(regtype, @extschema:vector@.vector, integer, jsonb, text, text, text, float8) IS
'Everything about a search but its running: search and explain_search both start here. Its search_path is the caller''s, for the predicate; what it says itself is qualified.';


CREATE OR REPLACE FUNCTION pgembed._fallback_statement(embedding text, condition text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pgembed._search_statement(pgembed._find_embedding(embedding), condition, false);
END;
$$;
COMMENT ON FUNCTION pgembed._fallback_statement(text, text) IS
'SQL: the exact search, for when an index came back short.';
