-- Covering indexes: btree indexes on the columns that filters name, which include the
-- vectors. What passes a filter then lies side by side, and is compared without a look at
-- the table: exact searches cost a third.

CREATE OR REPLACE FUNCTION pgembed._coverable(e pgembed.embedding, name text)
RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = e.source AND a.attname = name AND a.attnum > 0 AND NOT a.attisdropped
            AND a.attgenerated <> 'v'
            AND CASE
                WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) THEN a.atttypmod BETWEEN 5 AND 36
                WHEN a.atttypid = 'numeric'::regtype THEN a.atttypmod >= 4 AND (a.atttypmod - 4) >> 16 <= 100
                ELSE a.attlen BETWEEN 1 AND 64 END
            AND pgembed._comparison(a.atttypid, 'lt') IS NOT NULL);
END;
$$;
COMMENT ON FUNCTION pgembed._coverable(pgembed.embedding, text) IS
'Whether a column can be in a covering index: it is stored, has an order, and its values never take more than 128 bytes. A row too long for an index could not be inserted into the table.';


CREATE OR REPLACE FUNCTION pgembed._covering_row_bytes(e pgembed.embedding, columns text[])
RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Pages of a fresh index are nine tenths full.
    RETURN (32 + 8 * cardinality(columns) + pgembed._vector_bytes(e)) / 0.9;
END;
$$;
COMMENT ON FUNCTION pgembed._covering_row_bytes(pgembed.embedding, text[]) IS
'About how many bytes a covering index takes for a row.';


CREATE OR REPLACE FUNCTION pgembed._covering_candidates(e pgembed.embedding, filters jsonb[])
RETURNS TABLE (columns text[])
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH terms AS MATERIALIZED (
        SELECT f.ordinality AS number, t.name, max((t.word IN ('eq', 'in'))::integer) AS equal
        FROM unnest(filters) WITH ORDINALITY AS f (filter, ordinality)
        CROSS JOIN LATERAL pgembed._filter_terms(f.filter) AS t
        GROUP BY f.ordinality, t.name
    ), served AS MATERIALIZED (
        SELECT t.* FROM terms AS t
        WHERE t.number IN (
            SELECT o.number FROM terms AS o GROUP BY o.number HAVING bool_and(pgembed._coverable(e, o.name)))
    )
    SELECT l.name || ARRAY(
        SELECT o.name FROM served AS o
        WHERE o.name <> l.name AND o.number IN (SELECT s.number FROM served AS s WHERE s.name = l.name)
        GROUP BY o.name ORDER BY avg(o.equal) DESC, count(*) DESC, o.name LIMIT 3)
    FROM (SELECT DISTINCT s.name FROM served AS s) AS l
    -- A row of an index is at most a third of a page.
    WHERE pgembed._of_one_length(e)
        AND 32 + pgembed._vector_bytes(e) + 128 * (4 + cardinality(e.key_columns)) < 2704
        AND NOT EXISTS (SELECT FROM unnest(e.key_columns) AS k WHERE NOT pgembed._coverable(e, k));
END;
$$;
COMMENT ON FUNCTION pgembed._covering_candidates(pgembed.embedding, jsonb[]) IS
'For each column that filters name: it, and what else they name beside it, compared by equality first. An index on these columns that includes the vectors answers such filters exactly without a look at the table.';


CREATE OR REPLACE FUNCTION pgembed._covers(columns text[], filter jsonb)
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    named text[] := ARRAY(SELECT t.name FROM pgembed._filter_terms(filter) AS t);
BEGIN
    RETURN columns[1] = ANY (named) AND named <@ columns;
END;
$$;
COMMENT ON FUNCTION pgembed._covers(text[], jsonb) IS
'Whether a covering index on these columns serves a filter: it narrows the first, and names no others.';


CREATE OR REPLACE FUNCTION pgembed._covering_savings(e pgembed.embedding, filters jsonb)
RETURNS TABLE (candidate text[], rows float8, filter jsonb, weight float8, indexed_us float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH f AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(filters) AS a (filter jsonb, weight float8, rows float8, us float8)
    )
    SELECT c.columns, (pgembed._table_size(e.target)).rows, f.filter, f.weight, s.us
    FROM pgembed._covering_candidates(e, (SELECT array_agg(f.filter) FROM f)) AS c
    INNER JOIN f ON pgembed._covers(c.columns, f.filter)
    CROSS JOIN LATERAL (
        SELECT jsonb_build_object(t.name, jsonb_object_agg(t.word, t.value)) AS filter
        FROM pgembed._filter_terms(f.filter) AS t WHERE t.name = c.columns[1] GROUP BY t.name) AS l
    CROSS JOIN LATERAL pgembed._filter_estimate(e, l.filter) AS p
    -- What the first column lets through is read, what all of them do is compared.
    CROSS JOIN LATERAL (
        SELECT pgembed._exact_cost(e, 0, f.rows) + pgembed._cost('distance') * p.rows AS us) AS s
    WHERE s.us < f.us;
END;
$$;
COMMENT ON FUNCTION pgembed._covering_savings(pgembed.embedding, jsonb) IS
'For each candidate of a covering index the filters that it makes cheaper (of those that pgembed._advice_filters tells), and how many microseconds a search then costs.';
