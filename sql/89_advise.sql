-- Advice: which indexes would make a workload faster, for their size: partial vector
-- indexes for filters that recur, covering indexes for columns that many filters name.
-- Greedy by benefit per byte over the filters seen and their parts, after SIEVE
-- (PVLDB 18(11)); costs are those of the planner.

CREATE OR REPLACE FUNCTION pgembed._value_pattern(reference text, number text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(E'pgembed\\._value\\(\\(%s\\)\\[%s\\], NULL::((?:[^")]|"(?:[^"]|"")*")+)\\)', reference, number);
COMMENT ON FUNCTION pgembed._value_pattern(text, text) IS
'A regular expression for the calls by which a compiled filter reads values of this number, itself an expression; the last group is the type.';


CREATE OR REPLACE FUNCTION pgembed._filter_literal(source regclass, filter jsonb)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Nobody can have named a column like this.
    token text := 'r' || replace(gen_random_uuid()::text, '-', '');
    c record := pgembed._compile_filter(source, filter, token);
    written text := c.condition;
BEGIN
    FOR i IN 1..cardinality(c.arguments) LOOP
        written := regexp_replace(replace(written, format('((%s)[%s])::', token, i),
                quote_literal(c.arguments[i]) || '::'),
            pgembed._value_pattern(token, i::text),
            replace(quote_literal(c.arguments[i]), E'\\', E'\\\\') || E'::\\1', 'g');
    END LOOP;
    RETURN written;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_literal(regclass, jsonb) IS
'A filter as SQL with its values written out, as the predicate of an index needs them.';


CREATE OR REPLACE FUNCTION pgembed._advice_candidates(filters jsonb[])
RETURNS TABLE (filter jsonb)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH parts AS (
        SELECT f.ordinality, t.name, jsonb_object_agg(t.word, t.value) AS terms
        FROM unnest(filters) WITH ORDINALITY AS f (filter, ordinality)
        CROSS JOIN LATERAL pgembed._filter_terms(f.filter) AS t
        WHERE t.name NOT IN ('or', 'not')
        GROUP BY f.ordinality, t.name
    )
    SELECT jsonb_build_object(p.name, p.terms) FROM parts AS p
    UNION
    SELECT jsonb_object_agg(p.name, p.terms) FROM parts AS p GROUP BY p.ordinality;
END;
$$;
COMMENT ON FUNCTION pgembed._advice_candidates(jsonb[]) IS
'What an index could be limited to: what each filter says about all its columns, and about each.';


CREATE OR REPLACE FUNCTION pgembed._filter_estimate(
    e pgembed.embedding, filter jsonb, OUT rows float8, OUT cost float8
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c record;
BEGIN
    c := pgembed._search_condition(e, filter, NULL);
    IF c.condition = 'true' THEN
        RETURN;
    END IF;
    SELECT p.rows, p.planner_cost INTO rows, cost
    FROM pgembed._passing_rows(c.probe, NULL, 1, c.arguments, (pgembed._search_size(e)).exact_settings) AS p;
EXCEPTION
    WHEN invalid_parameter_value OR undefined_column OR undefined_function THEN NULL;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_estimate(pgembed.embedding, jsonb) IS
'How many rows pass a filter and the cost of finding them, as PostgreSQL plans it; NULL for a filter that says nothing, or that the table no longer understands.';


CREATE OR REPLACE FUNCTION pgembed._vector_bytes(e pgembed.embedding)
RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN e.dimensions * CASE e.storage WHEN 'bit' THEN 0.125 WHEN 'halfvec' THEN 2 ELSE 4 END;
END;
$$;
COMMENT ON FUNCTION pgembed._vector_bytes(pgembed.embedding) IS
'The bytes of a vector, without its header.';


CREATE OR REPLACE FUNCTION pgembed._of_one_length(e pgembed.embedding)
RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = e.target AND a.attname = e.target_column AND a.atttypmod > 0);
END;
$$;
COMMENT ON FUNCTION pgembed._of_one_length(pgembed.embedding) IS
'Whether the column says how many dimensions its vectors have.';


CREATE OR REPLACE FUNCTION pgembed._index_row_bytes(e pgembed.embedding)
RETURNS float8
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce((
        SELECT pg_relation_size(i.index) / i.rows FROM pgembed._usable_index(e, '{}') AS i
        WHERE i.method = 'hnsw' AND i.rows >= 1000),
        320 + pgembed._vector_bytes(e));
END;
$$;
COMMENT ON FUNCTION pgembed._index_row_bytes(pgembed.embedding) IS
'The bytes that an HNSW index takes for a row: measured where there is one.';


CREATE OR REPLACE FUNCTION pgembed._advice_filters(e pgembed.embedding, workload regclass, k integer, recall float8)
RETURNS TABLE (filter jsonb, searches float8, weight float8, rows float8, us float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- What was created on advice is advised again.
    before text[] := pgembed._apply_settings(CASE WHEN EXISTS (
            SELECT FROM pgembed._advised(e) AS a WHERE a.columns IS NOT NULL)
        THEN '{enable_indexonlyscan, off}'::text[] ELSE '{}' END);
BEGIN
    RETURN QUERY
    SELECT w.filter, w.searches, w.weight, s.estimated_rows, least(s.exact_us, coalesce(s.index_us, s.exact_us))
    FROM pgembed._workload_filters(e, workload, 200) AS w
    CROSS JOIN LATERAL pgembed._filter_estimate(e, w.filter) AS p
    CROSS JOIN pgembed._search_size(e) AS z
    LEFT JOIN pgembed._usable_index(e, '{}') AS i ON true
    CROSS JOIN LATERAL pgembed._search_strategy(
        e, z, 'auto', k, recall, p.rows, p.cost, i.index, i.method, i.lists, i.rows, i.partial) AS s
    WHERE p.rows IS NOT NULL;
    PERFORM pgembed._apply_settings(before);
END;
$$;
COMMENT ON FUNCTION pgembed._advice_filters(pgembed.embedding, regclass, integer, float8) IS
'The filters of a workload or 200 that stand for them, how many rows pass each and what a search costs without advised indexes, in microseconds.';


CREATE OR REPLACE FUNCTION pgembed._partial_savings(
    e pgembed.embedding, filters jsonb, k integer, recall float8
)
RETURNS TABLE (candidate jsonb, rows float8, filter jsonb, weight float8, indexed_us float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    numberless text[] := pgembed._numberless_columns(e.source);
BEGIN
    RETURN QUERY
    WITH f AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(filters) AS a (
            filter jsonb, searches float8, weight float8, rows float8, us float8)
    ), c AS MATERIALIZED (
        SELECT n.filter, p.rows
        FROM pgembed._advice_candidates((SELECT array_agg(f.filter) FROM f)) AS n
        CROSS JOIN LATERAL pgembed._filter_estimate(e, n.filter) AS p
        -- For fewer rows an index on the columns does as well.
        WHERE p.rows >= 20 * k AND pgembed._indexable_filter(e.source, n.filter) AND pgembed._indexable_vectors(e)
    )
    SELECT c.filter, c.rows, f.filter,
        -- The filter by which a candidate came into the sample does not stand for others like it.
        CASE row_number() OVER (PARTITION BY c.filter ORDER BY f.weight - f.searches DESC, f.filter)
            WHEN 1 THEN f.searches ELSE f.weight END,
        s.cost
    FROM c INNER JOIN f ON pgembed._filter_implies(f.filter, c.filter, numberless)
    CROSS JOIN LATERAL pgembed._index_settings(
        e, 'hnsw', 0, c.rows, k, recall, least(1, f.rows / greatest(c.rows, 1))) AS s
    WHERE s.cost < f.us;
END;
$$;
COMMENT ON FUNCTION pgembed._partial_savings(pgembed.embedding, jsonb, integer, float8) IS
'For each candidate of a partial index the filters that it makes cheaper (of those that pgembed._advice_filters tells), and how many microseconds a search then costs.';


CREATE OR REPLACE FUNCTION pgembed._advice_savings(
    e pgembed.embedding, filters jsonb, k integer, recall float8
)
RETURNS TABLE (
    kind text, candidate jsonb, rows float8, bytes float8, filter jsonb, weight float8, indexed_us float8
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT 'partial', s.candidate, s.rows, s.rows * pgembed._index_row_bytes(e), s.filter, s.weight, s.indexed_us
    FROM pgembed._partial_savings(e, filters, k, recall) AS s
    UNION ALL
    SELECT 'covering', to_jsonb(s.candidate), s.rows, s.rows * pgembed._covering_row_bytes(e, s.candidate),
        s.filter, s.weight, s.indexed_us
    FROM pgembed._covering_savings(e, filters) AS s;
END;
$$;
COMMENT ON FUNCTION pgembed._advice_savings(pgembed.embedding, jsonb, integer, float8) IS
'What each candidate of an index would make of the searches under each filter: a partial one, named by its filter, or a covering one, named by its columns.';


CREATE OR REPLACE FUNCTION pgembed._advised_statement(e pgembed.embedding, index_name text, filter jsonb, columns text[])
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF columns IS NOT NULL THEN
        RETURN format('CREATE INDEX CONCURRENTLY %I ON %s (%s) INCLUDE (%s)', index_name, e.target,
            pgembed._key_list(columns), pgembed._key_list(ARRAY(
                SELECT c.name FROM unnest(e.key_columns || e.target_column) WITH ORDINALITY AS c (name, ordinal)
                WHERE c.name <> ALL (columns) ORDER BY c.ordinal)));
    END IF;
    RETURN format('CREATE INDEX CONCURRENTLY %I ON %s USING hnsw (%I @extschema:vector@.%s)%s WHERE %s',
        index_name, e.target, e.target_column, pgembed._operator_class(e.storage, e.distance),
        -- PostgreSQL prefers the smaller index only when both have the same parameters.
        (SELECT ' WITH (' || array_to_string(c.reloptions, ', ') || ')'
            FROM pgembed._usable_index(e, '{}') AS i
            INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.index AND i.method = 'hnsw'),
        pgembed._filter_literal(e.source, filter));
END;
$$;
COMMENT ON FUNCTION pgembed._advised_statement(pgembed.embedding, text, jsonb, text[]) IS
'SQL: the partial vector index for a filter, or the covering index on some columns.';


CREATE OR REPLACE FUNCTION pgembed._advice_best(
    savings jsonb, costs jsonb, budget float8, too_little float8, kinds text[], by_size boolean
)
RETURNS TABLE (
    kind text, candidate jsonb, rows float8, bytes float8, weight float8, gain float8, costs_then jsonb
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.* FROM (
        SELECT s.kind, s.candidate, max(s.rows) AS rows, max(s.bytes) AS bytes, sum(s.weight) AS weight,
            -- What was seen once may not come again; columns stay.
            sum(s.weight * ((costs ->> s.filter::text)::float8 - s.indexed_us))
                * CASE s.kind WHEN 'partial' THEN 1 - 1 / (1 + sum(s.weight)) ELSE 1 END AS gain,
            costs || jsonb_object_agg(s.filter::text, s.indexed_us)
        FROM jsonb_to_recordset(savings) AS s (
            kind text, candidate jsonb, rows float8, bytes float8, filter jsonb, weight float8, indexed_us float8)
        WHERE s.indexed_us < (costs ->> s.filter::text)::float8 AND s.bytes <= budget AND s.kind = ANY (kinds)
        GROUP BY s.kind, s.candidate) AS c
    WHERE c.gain > too_little
    ORDER BY CASE WHEN by_size THEN c.gain / (c.bytes + 10000) ELSE c.gain END DESC, c.kind, c.candidate
    LIMIT 1;
END;
$$;
COMMENT ON FUNCTION pgembed._advice_best(jsonb, jsonb, float8, float8, text[], boolean) IS
'Of the candidates that fit the budget the one that gains most, for its size or at all: by how many microseconds times searches, and what each filter costs then.';


CREATE OR REPLACE FUNCTION pgembed._advice_greedy(savings jsonb, costs jsonb, budget float8, too_little float8, first text[])
RETURNS TABLE (kind text, candidate jsonb, rows float8, bytes float8, weight float8, gain float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    chosen record;
BEGIN
    LOOP
        SELECT b.* INTO chosen FROM pgembed._advice_best(
            savings, costs, budget, too_little, coalesce(first, ARRAY['partial', 'covering']), first IS NULL) AS b;
        EXIT WHEN chosen.candidate IS NULL;
        kind := chosen.kind;
        candidate := chosen.candidate;
        rows := chosen.rows;
        bytes := chosen.bytes;
        weight := chosen.weight;
        gain := chosen.gain;
        RETURN NEXT;
        costs := chosen.costs_then;
        budget := budget - bytes;
        first := NULL;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._advice_greedy(jsonb, jsonb, float8, float8, text[]) IS
'Candidates one after the other, each the one that gains most for its size beside those before it; the first, when its kinds are given, the one that gains most of all: small indexes may leave no room for a big one that does what they all do.';


CREATE OR REPLACE FUNCTION pgembed.advise(
    embedding text,
    budget_mb float8 DEFAULT NULL,
    workload regclass DEFAULT NULL,
    k integer DEFAULT 10,
    recall float8 DEFAULT 0.99
)
RETURNS TABLE (
    index_name text, filter jsonb, columns text[], searches float8, rows bigint, bytes bigint,
    saved_ms float8, speedup float8, present boolean, statement text, comment text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    e pgembed.embedding := pgembed._find_embedding(embedding);
    budget float8;
    filters jsonb;
    savings jsonb;
    overhead float8 := pgembed._cost('overhead');
    total record;
    chosen record;
BEGIN
    PERFORM pgembed._check_advice(e, budget_mb, k, recall);
    budget := CASE WHEN budget_mb IS NULL THEN pgembed._index_row_bytes(e) * (pgembed._table_size(e.target)).rows
        -- Bytes of more than that would overflow.
        ELSE least(budget_mb, 1e300) * 1048576 END;
    filters := (SELECT jsonb_agg(to_jsonb(f)) FROM pgembed._advice_filters(e, workload, k, recall) AS f);
    savings := (SELECT jsonb_agg(to_jsonb(s)) FROM pgembed._advice_savings(e, filters, k, recall) AS s);
    SELECT sum(f.weight) AS searches, sum(f.weight * (f.us + overhead)) AS us,
        sum(f.weight * (f.us + overhead)) AS left_us, jsonb_object_agg(f.filter::text, f.us) AS costs
    INTO total FROM jsonb_to_recordset(filters) AS f (filter jsonb, weight float8, us float8);
    FOR chosen IN
        WITH runs AS MATERIALIZED (
            SELECT w.place, g.*
            FROM (VALUES (1, NULL::text[]), (2, ARRAY['covering'])) AS w (place, first)
            CROSS JOIN LATERAL pgembed._advice_greedy(savings, total.costs, budget, 0.002 * total.us, w.first)
                WITH ORDINALITY AS g (kind, candidate, rows, bytes, weight, gain, ordinal)
        )
        SELECT r.* FROM runs AS r
        WHERE r.place = (SELECT o.place FROM runs AS o GROUP BY o.place ORDER BY sum(o.gain) DESC, o.place LIMIT 1)
        ORDER BY r.ordinal
    LOOP
        IF chosen.kind = 'covering' THEN
            filter := NULL;
            columns := ARRAY(SELECT c.name FROM jsonb_array_elements_text(chosen.candidate)
                WITH ORDINALITY AS c (name, ordinal) ORDER BY c.ordinal);
        ELSE
            filter := chosen.candidate;
            columns := NULL;
        END IF;
        index_name := pgembed._advised_name(e, chosen.candidate);
        searches := chosen.weight / total.searches;
        rows := chosen.rows;
        bytes := chosen.bytes;
        saved_ms := chosen.gain / total.searches / 1000;
        total.left_us := total.left_us - chosen.gain;
        speedup := total.us / total.left_us;
        present := to_regclass(pgembed._in_schema_of(e.target, index_name)) IS NOT NULL;
        statement := pgembed._advised_statement(e, index_name, filter, columns);
        comment := format('COMMENT ON INDEX %s IS %L', pgembed._in_schema_of(e.target, index_name),
            coalesce('pgembed: ' || filter::text, 'pgembed''s covering index'));
        RETURN NEXT;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed.advise(text, float8, regclass, integer, float8) IS
'Indexes that would make searches faster, for the filters that were recorded (SET pgembed.record_filters = 0.01) or those of a workload table with a column filter: partial HNSW indexes (filter) and btree indexes on columns of filters that include the vectors (columns), greedily by benefit per byte, within a budget (default: the size of an index over all rows). searches is the share of the searches that an index serves, saved_ms what it saves on average over all, speedup that of the workload with this index and those before it, by the cost model; statement creates it, outside a transaction, and comment notes then what it serves, for pgembed.advised_indexes. Where many vectors are equal, searches through a partial index may miss rows, and nothing notices: measure them by pgembed.recall, as pgembed advise --apply does.';


CREATE OR REPLACE FUNCTION pgembed._check_advice(
    e pgembed.embedding, budget_mb float8, k integer, recall float8
)
RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._check_fits(e);
    IF e.target <> e.source
        OR (SELECT c.relkind FROM pg_catalog.pg_class AS c WHERE c.oid = e.target) <> 'r'
    THEN
        RAISE EXCEPTION 'there is no advice for the embedding %: its vectors are in %', quote_literal(e.name),
            CASE WHEN e.target <> e.source THEN 'a table of chunks' ELSE 'a partitioned table' END
            USING ERRCODE = 'feature_not_supported',
            HINT = 'Partial indexes serve filters only where vectors and columns are in one plain table.';
    ELSIF budget_mb < 0 OR budget_mb = 'NaN' THEN
        RAISE EXCEPTION 'the budget is % MB, but must not be negative', budget_mb
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave it out for the size of an index over all rows.';
    END IF;
    PERFORM pgembed._check_arguments(k, NULL, 'auto', recall);
END;
$$;
COMMENT ON FUNCTION pgembed._check_advice(pgembed.embedding, float8, integer, float8) IS
'An error when no advice can be given.';
