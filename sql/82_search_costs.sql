-- What a search costs, exactly and through an index, in microseconds. The constants were
-- measured; settings replace them: SET pgembed.cost_planner = 3, for example.

CREATE OR REPLACE FUNCTION pgembed._refuse_cost(name text)
RETURNS float8
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    setting text := 'pgembed.cost_' || name;
BEGIN
    RAISE EXCEPTION 'the setting % is %, but must be a number of microseconds, 0 or more, '
        'with at most 20 digits before the point and 2 in the exponent',
        setting, quote_literal(current_setting(setting))
        USING ERRCODE = 'invalid_parameter_value',
        HINT = format('RESET %s, and correct it where it comes from, if ALTER DATABASE or ALTER ROLE set it.', setting);
END;
$$;
COMMENT ON FUNCTION pgembed._refuse_cost(text) IS
'The error of a setting pgembed.cost_NAME that is no cost.';


CREATE OR REPLACE FUNCTION pgembed._default_cost(name text)
RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE name
    WHEN 'planner' THEN 9
    WHEN 'distance' THEN 0.1
    WHEN 'dimension' THEN 0.0015
    WHEN 'search' THEN 900
    WHEN 'visit' THEN 1
    WHEN 'visit_dimension' THEN 0.03
    WHEN 'overhead' THEN 1500 END;
COMMENT ON FUNCTION pgembed._default_cost(text) IS
'A constant of the cost model, in microseconds, as it was measured once: for what the planner says costs 1, for comparing a vector and for each of its dimensions, for starting in a graph of 200,000 rows, for visiting a vector there and for each of its dimensions, and for a search that compares nothing, which is mostly its planning.';


-- One expression, which the planner puts in the place of the call.
CREATE OR REPLACE FUNCTION pgembed._cost(name text)
RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN pgembed._setting('cost_' || name, NULL) IS NULL THEN pgembed._default_cost(name)
    WHEN pgembed._setting('cost_' || name, NULL) ~* E'^ *\\+?(\\d{1,20}\\.?|\\d{0,20}\\.\\d+)(e[+-]?\\d{1,2})? *$'
    THEN pgembed._setting('cost_' || name, NULL)::float8
    ELSE pgembed._refuse_cost(name) END;
COMMENT ON FUNCTION pgembed._cost(text) IS
'A constant of the cost model, in microseconds: the setting pgembed.cost_NAME, or the default.';


CREATE OR REPLACE FUNCTION pgembed._memory_settings()
RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '{seq_page_cost, 0.15, random_page_cost, 0.15, cpu_index_tuple_cost, 0.01}'::text[];
COMMENT ON FUNCTION pgembed._memory_settings() IS
'What the planner is told of a table in memory, names and values in turn: there it is the rows of the indexes and the table that take time, not the pages.';


CREATE OR REPLACE FUNCTION pgembed._search_size(
    e pgembed.embedding,
    OUT rows float8, OUT pages float8, OUT vectors float8, OUT vector_pages float8, OUT exact_settings text[]
)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s record := pgembed._table_size(e.source);
    read_pages float8 := s.pages;
BEGIN
    rows := s.rows;
    pages := s.pages;
    IF e.target <> e.source THEN
        s := pgembed._table_size(e.target);
        read_pages := read_pages + s.pages;
    END IF;
    vectors := s.rows;
    vector_pages := s.pages;
    exact_settings := CASE WHEN read_pages * 8192 <= pg_size_bytes(current_setting('effective_cache_size')) / 2
        THEN pgembed._memory_settings() ELSE '{}' END;
END;
$$;
COMMENT ON FUNCTION pgembed._search_size(pgembed.embedding) IS
'What a search reads: rows and pages of the source, vectors and pages of the table that has them. With it the settings under which an exact search is planned: those of tables in memory, when all of it fits into half of effective_cache_size; otherwise the server''s own.';


CREATE OR REPLACE FUNCTION pgembed._exact_cost(
    e pgembed.embedding, planner_cost float8, vectors float8
)
RETURNS float8
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN planner_cost * pgembed._cost('planner') + vectors * (
        pgembed._cost('distance') + pgembed._cost('dimension') * e.dimensions);
END;
$$;
COMMENT ON FUNCTION pgembed._exact_cost(pgembed.embedding, float8, float8) IS
'Comparing with every vector whose row passes: finding the rows, which costs so much to PostgreSQL''s planner, and their distances.';


CREATE OR REPLACE FUNCTION pgembed._index_settings(
    e pgembed.embedding, method text, lists integer, total float8, k integer, recall float8,
    share float8, OUT settings text[], OUT cost float8
)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted float8 := 2 * k / greatest(share, 1e-9);
    -- A graph of fewer rows is searched as well with less effort, at a lower price.
    scale float8 := least(1, cbrt(total / 200000));
    effort float8;
BEGIN
    -- Without sorts the planner reads the vector index; what it thinks of their price is no
    -- reason to compile the statement.
    settings := '{enable_sort, off, jit, off}';
    IF method = 'hnsw' THEN
        -- Where every row of the index passes, the way to the nearest is never barred.
        effort := greatest(CASE WHEN share < 1 THEN 16 ELSE 12 END
            * sqrt(k / greatest(1 - recall, 0.0001)) * scale, 2 * k, 1.5 * wanted);
        settings := settings || ARRAY[
            'hnsw.iterative_scan', 'relaxed_order',
            'hnsw.ef_search', ceil(least(effort, 1000))::text,
            -- Where the rows that pass lie elsewhere than the query, fewer than k are met
            -- by then, and the exact search follows: looking on would find the wrong ones.
            'hnsw.max_scan_tuples', ceil(least(effort, 40000))::text];
        cost := scale * pgembed._cost('search') + effort * (
            scale * (pgembed._cost('visit') + pgembed._cost('visit_dimension') * e.dimensions)
            + CASE WHEN share < 1 THEN 0.2 * pgembed._cost('planner') ELSE 0 END);
    ELSE
        effort := least(lists, ceil(greatest(1.5 * sqrt(lists) / (1.0001 - recall) ^ 0.25,
            2 * wanted / greatest(total, 1) * lists)));
        settings := settings || ARRAY[
            'ivfflat.iterative_scan', 'relaxed_order', 'ivfflat.probes', effort::text,
            'ivfflat.max_probes', least(lists, 4 * effort)::text];
        cost := pgembed._cost('search') + pgembed._exact_cost(e, 0, total * effort / lists);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._index_settings(pgembed.embedding, text, integer, float8, integer, float8, float8) IS
'How hard to look into an index for a recall, when that share of its rows passes: the settings, and the cost. It grows when few rows pass: 2 k of them are met only among 2 k / share.';


CREATE OR REPLACE FUNCTION pgembed._sentinels(
    relation regclass, rows float8, pages float8, OUT places tid[], OUT share float8
)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    per_page integer := greatest(1, ceil(rows / greatest(pages, 1)));
BEGIN
    IF rows < 20000 OR NOT has_column_privilege(relation, 'ctid', 'SELECT')
        OR (SELECT c.relkind FROM pg_catalog.pg_class AS c WHERE c.oid = relation) <> 'r'
    THEN
        share := 0;
        RETURN;
    END IF;
    -- Always the same places, spread by the golden ratio: they stay in memory.
    places := ARRAY(
        SELECT ('(' || floor(pages * (i * 0.6180339887498949::float8 - floor(i * 0.6180339887498949::float8)))::bigint
            || ',' || 1 + i % per_page || ')')::tid
        FROM generate_series(1, 256) AS i);
    share := 256 / rows;
END;
$$;
COMMENT ON FUNCTION pgembed._sentinels(regclass, float8, float8) IS
'A sample of the places of a table''s rows, and the share of the rows that it is; NULL and 0 for a table too small, one with partitions, or one of which the caller may read columns, but not places, which GRANT SELECT on the table or on its ctid allows. A graph index that loses its way returns rows that are all too far: then many of these are nearer.';
