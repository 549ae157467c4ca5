-- How a search is carried out: exactly, or through a vector index, whichever is cheaper.

CREATE OR REPLACE FUNCTION pgembed._estimate(
    probe text, query @extschema:vector@.vector, k integer, arguments text[], sentinels tid[] DEFAULT NULL
)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $$
DECLARE
    line pg_catalog.text;
    plan pg_catalog.text;
BEGIN
    -- A loop, because a loop takes one statement and no more.
    FOR line IN EXECUTE probe USING query, k, arguments, k OPERATOR(pg_catalog.*) 8, sentinels LOOP
        plan := pg_catalog.concat_ws(E'\n', plan, line);
    END LOOP;
    RETURN plan;
END;
$$;
COMMENT ON FUNCTION pgembed._estimate(text, @extschema:vector@.vector, integer, text[], tid[]) IS
'The plan that an EXPLAIN prints, made under the caller''s search_path, as the search will be.';


CREATE OR REPLACE FUNCTION pgembed._passing_rows(
    probe text, query @extschema:vector@.vector, k integer, arguments text[], settings text[],
    OUT rows float8, OUT planner_cost float8
)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $$
DECLARE
    before pg_catalog.text[] := pgembed._apply_settings(settings);
    estimates pg_catalog.text[] := pg_catalog.regexp_match(
        pgembed._estimate(probe, query, k, arguments), E'\\.\\.(\\S+) rows=(\\S+) width=\\d+\\)');
BEGIN
    rows := estimates[2];
    planner_cost := estimates[1];
    PERFORM pgembed._apply_settings(before);
END;
$$;
COMMENT ON FUNCTION pgembed._passing_rows(text, @extschema:vector@.vector, integer, text[], text[]) IS
'How many rows pass, by a probe of pgembed._search_condition, and what finding them costs in the planner''s units under the settings of an exact search.';


CREATE OR REPLACE FUNCTION pgembed._advised_name(e pgembed.embedding, target jsonb)
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format('pgembed_%s_%s', e.id, left(md5(concat_ws(E'\n', e.storage, e.distance, target)), 12));
END;
$$;
COMMENT ON FUNCTION pgembed._advised_name(pgembed.embedding, jsonb) IS
'The name of the index that is advised for a filter, or on a list of columns.';


CREATE OR REPLACE FUNCTION pgembed._advised_index(
    e pgembed.embedding, filter jsonb,
    OUT index regclass, OUT method text, OUT lists integer, OUT rows float8, OUT partial boolean,
    OUT passing float8
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part record;
    whole jsonb := '{}';
    whole_name text;
    names text[];
BEGIN
    IF filter IS NULL THEN
        RETURN;
    END IF;
    FOR part IN
        SELECT jsonb_build_object(f.key, CASE
            WHEN f.key IN ('and', 'or', 'not') THEN f.value
            WHEN jsonb_typeof(f.value) = 'object' THEN f.value - 'between' || CASE WHEN f.value ? 'between'
                THEN jsonb_build_object('gte', f.value -> 'between' -> 0, 'lte', f.value -> 'between' -> 1)
                ELSE '{}' END
            WHEN jsonb_typeof(f.value) = 'array' THEN jsonb_build_object('in', f.value)
            ELSE jsonb_build_object('eq', f.value) END) AS filter
        FROM jsonb_each(filter) AS f
    LOOP
        whole := whole || part.filter;
        names := names || pgembed._advised_name(e, part.filter);
    END LOOP;
    whole_name := pgembed._advised_name(e, whole);
    SELECT c.oid, 'hnsw', 0, c.reltuples, true, CASE c.relname WHEN whole_name THEN c.reltuples END
    INTO index, method, lists, rows, partial, passing
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
    WHERE c.relname = ANY (names || whole_name) AND i.indrelid = e.target AND i.indisvalid
        AND i.indpred IS NOT NULL AND c.reltuples > 0
    ORDER BY c.relname <> whole_name, c.reltuples
    LIMIT 1;
END;
$$;
COMMENT ON FUNCTION pgembed._advised_index(pgembed.embedding, jsonb) IS
'The partial index that was created on advice for this filter, or for what it says about one column, found by its name, which costs less than the planner''s opinion. passing: how many rows pass, when it is for the whole filter.';


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


CREATE OR REPLACE FUNCTION pgembed._planned_index(
    e pgembed.embedding, plan jsonb,
    OUT index regclass, OUT method text, OUT lists integer, OUT rows float8, OUT partial boolean,
    OUT passing float8
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    scan jsonb := plan #> '{0,Plan,Plans,0}';
    name text := scan ->> 'Index Name';
    names text[] := CASE WHEN name IS NOT NULL THEN ARRAY[name] ELSE ARRAY(
        SELECT p #>> '{}' FROM jsonb_path_query(plan, '$.**."Index Name"') AS p) END;
BEGIN
    IF names <> '{}' THEN
        SELECT i.index, i.method, i.lists, i.rows, i.partial INTO index, method, lists, rows, partial
        FROM pgembed._usable_index(e, names) AS i;
        passing := CASE WHEN partial AND name IS NOT NULL THEN (scan ->> 'Plan Rows')::float8 END;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._planned_index(pgembed.embedding, jsonb) IS
'The vector index that PostgreSQL chose in a plan. passing: how many rows pass, told when that index is partial, which saves the EXPLAIN of the exact search.';


CREATE OR REPLACE FUNCTION pgembed._search_strategy(
    e pgembed.embedding, size record, mode text, k integer, recall float8,
    passing_rows float8, planner_cost float8,
    usable regclass, method text, lists integer, index_rows float8, partial boolean,
    OUT strategy text, OUT reason text, OUT index regclass, OUT settings text[],
    OUT estimated_rows float8, OUT exact_us float8, OUT index_us float8,
    OUT sentinels tid[], OUT nearer float8
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s record;
    page_cost float8;
    compared float8;
    passing float8;
    wanted integer := k * CASE WHEN e.target = e.source THEN 1 ELSE 8 END;
BEGIN
    estimated_rows := coalesce(passing_rows, size.rows);
    compared := estimated_rows * size.vectors / greatest(size.rows, 1);
    IF planner_cost IS NULL THEN
        page_cost := coalesce(size.exact_settings[2], current_setting('seq_page_cost'));
        planner_cost := page_cost * least(size.pages, estimated_rows) + 0.02 * estimated_rows;
    END IF;
    IF e.target <> e.source THEN
        planner_cost := planner_cost + 0.1 * compared;  -- the join
    END IF;
    exact_us := pgembed._exact_cost(e, planner_cost, compared);
    strategy := 'exact';
    index_rows := coalesce(nullif(index_rows, 0), size.vectors);
    IF mode = 'exact' THEN
        reason := 'asked for';
    ELSIF mode = 'auto' AND recall >= 1 THEN
        reason := 'a recall of 1 was asked for';
    ELSIF usable IS NULL THEN
        reason := 'no valid index on the vectors serves this distance and this filter';
    ELSE
        passing := least(1, estimated_rows / greatest(size.rows * index_rows / greatest(size.vectors, 1), 1));
        s := pgembed._index_settings(e, method, lists, index_rows, wanted, recall, passing);
        -- A filter may be at odds with the query: then the exact search comes on top.
        index_us := s.cost + CASE WHEN passing_rows IS NULL THEN 0 ELSE 0.2 * exact_us END;
        IF mode = 'index' OR index_us < exact_us THEN
            strategy := 'index';
            index := usable;
            settings := s.settings;
            IF method = 'hnsw' AND NOT partial THEN
                SELECT g.places, 3 + g.share * wanted / nullif(passing, 0) INTO sentinels, nearer
                FROM pgembed._sentinels(e.target, size.vectors, size.vector_pages) AS g WHERE g.share > 0;
            END IF;
        END IF;
        reason := CASE mode WHEN 'index' THEN 'asked for'
            ELSE format('about %s of %s rows pass: %s us exactly, %s us through %s',
                round(estimated_rows), round(size.rows), round(exact_us), round(index_us), usable) END;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._search_strategy(pgembed.embedding, record, text, integer, float8, float8, float8, regclass, text, integer, float8, boolean) IS
'Exact or index, and why; with the index come the settings under which it is read. size: of pgembed._search_size; passing_rows: of the source, NULL for all; planner_cost: of finding them, NULL when not planned; usable to partial: the index that there is.';


CREATE OR REPLACE FUNCTION pgembed._plan_search(
    source regtype, query @extschema:vector@.vector, k integer, filter jsonb, predicate text,
    embedding text, mode text, recall float8,
    OUT id integer, OUT name text, OUT strategy text, OUT reason text, OUT index regclass,
    OUT estimated_rows float8, OUT exact_us float8, OUT index_us float8, OUT settings text[],
    OUT condition text, OUT arguments text[], OUT sentinels tid[], OUT statement text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
AS $$
DECLARE
    e pgembed.embedding := pgembed._search_embedding(source, embedding);
    size pg_catalog.record := pgembed._search_size(e);
    before pg_catalog.text[];
    c pg_catalog.record;
    i pg_catalog.record;
    s pg_catalog.record;
    passing_rows pg_catalog.float8;
    planner_cost pg_catalog.float8;
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
    IF c.probe IS NULL OR NOT pgembed._has_partial_index(e) THEN
        i := pgembed._usable_index(e, '{}');
    ELSE
        -- A value that settings decide how to read need not be the index's: the planner knows.
        i := pgembed._advised_index(e, CASE
            WHEN predicate IS NULL AND pg_catalog.strpos(condition, 'pgembed._value(') OPERATOR(pg_catalog.=) 0
            THEN filter END);
        IF i.index IS NULL THEN
            before := pgembed._apply_settings('{enable_sort, off}');
            i := pgembed._planned_index(e, pgembed._estimate(pg_catalog.concat('EXPLAIN (FORMAT JSON) ',
                pgembed._nearest_statement(e, condition, true)), query, k, arguments)::pg_catalog.jsonb);
            PERFORM pgembed._apply_settings(before);
        END IF;
        passing_rows := i.passing;
    END IF;
    IF passing_rows IS NULL AND c.probe IS NOT NULL THEN
        s := pgembed._passing_rows(c.probe, query, k, arguments, size.exact_settings);
        passing_rows := s.rows;
        planner_cost := s.planner_cost;
    END IF;
    s := pgembed._search_strategy(e, size, mode, k, recall, passing_rows, planner_cost,
        i.index, i.method, i.lists, i.rows, i.partial);
    strategy := s.strategy;
    reason := s.reason;
    index := s.index;
    settings := COALESCE(s.settings, size.exact_settings);
    estimated_rows := s.estimated_rows;
    exact_us := s.exact_us;
    index_us := s.index_us;
    sentinels := s.sentinels;
    statement := pgembed._search_statement(e, condition, index IS NOT NULL, s.nearer);
END;
$$;
COMMENT ON FUNCTION pgembed._plan_search(regtype, @extschema:vector@.vector, integer, jsonb, text, text, text, float8) IS
'Everything about a search but its running: search and explain_search both start here. Its search_path is the caller''s, for the predicate; what it says itself is qualified.';


CREATE OR REPLACE FUNCTION pgembed._plan_fallback(
    embedding text, condition text, OUT statement text, OUT settings text[]
)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(embedding);
BEGIN
    statement := pgembed._search_statement(e, condition, false);
    settings := (pgembed._search_size(e)).exact_settings;
END;
$$;
COMMENT ON FUNCTION pgembed._plan_fallback(text, text) IS
'The exact search, for when an index came back short, and the settings under which it is planned.';
