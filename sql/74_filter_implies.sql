-- Which filters imply which others: rows that pass {"price": {"lt": 5}} pass
-- {"price": {"lt": 9}}. Only what can be told from the JSON, and only what PostgreSQL
-- proves as well when it matches a filter with the predicate of an index.

CREATE OR REPLACE FUNCTION pgembed._filter_terms(filter jsonb)
RETURNS TABLE (name text, word text, value jsonb)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT ROWS 3
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT e.key, t.word, t.value
    FROM jsonb_each(CASE jsonb_typeof(filter) WHEN 'object' THEN filter ELSE '{}' END) AS e
    CROSS JOIN LATERAL (
        SELECT CASE jsonb_typeof(e.value) WHEN 'array' THEN 'in' ELSE 'eq' END AS word, e.value
        WHERE jsonb_typeof(e.value) <> 'object' AND e.key NOT IN ('and', 'or', 'not')
        UNION ALL
        SELECT '', e.value WHERE e.key IN ('or', 'not')
        UNION ALL
        SELECT w.key, w.value
        FROM jsonb_each(CASE WHEN jsonb_typeof(e.value) = 'object' AND e.key <> 'not'
            THEN e.value ELSE '{}' END) AS w WHERE w.key <> 'between'
        UNION ALL
        SELECT b.word, e.value -> 'between' -> b.place
        FROM (VALUES ('gte', 0), ('lte', 1)) AS b (word, place)
        WHERE jsonb_typeof(e.value) = 'object' AND e.key <> 'not' AND e.value ? 'between'
    ) AS t (word, value)
    UNION ALL
    SELECT n.name, n.word, n.value
    FROM jsonb_array_elements(CASE WHEN jsonb_typeof(filter -> 'and') = 'array'
        THEN filter -> 'and' ELSE '[]' END) AS a
    CROSS JOIN LATERAL pgembed._filter_terms(a.value) AS n;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_terms(jsonb) IS
'The conditions of a filter that all must hold, one a row; what is in "or" and "not" stays whole.';


CREATE OR REPLACE FUNCTION pgembed._bound_implies(given_word text, given jsonb, word text, value jsonb)
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(given) <> 'number' OR jsonb_typeof(value) <> 'number' THEN
        RETURN false;
    END IF;
    RETURN CASE
        WHEN word IN ('lt', 'lte') AND given_word IN ('eq', 'lt', 'lte')
        THEN given < value OR given = value AND (word = 'lte' OR given_word = 'lt')
        WHEN word IN ('gt', 'gte') AND given_word IN ('eq', 'gt', 'gte')
        THEN given > value OR given = value AND (word = 'gte' OR given_word = 'gt')
        ELSE false END;
END;
$$;
COMMENT ON FUNCTION pgembed._bound_implies(text, jsonb, text, jsonb) IS
'Whether a bound on numbers, or a number, lies within another bound.';


CREATE OR REPLACE FUNCTION pgembed._term_implies(given_word text, given jsonb, word text, value jsonb)
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    choices jsonb := CASE
        WHEN given_word = 'in' AND jsonb_typeof(given) = 'array' THEN given
        WHEN given_word = 'eq' THEN jsonb_build_array(given) END;
BEGIN
    IF given_word = word AND given = value THEN
        RETURN true;
    ELSIF choices IS NULL THEN
        RETURN pgembed._bound_implies(given_word, given, word, value);
    END IF;
    RETURN jsonb_array_length(choices) > 0 AND NOT EXISTS (
        SELECT FROM jsonb_array_elements(choices) AS c (choice)
        WHERE NOT CASE word
            WHEN 'eq' THEN c.choice = value
            -- Not @>, by which {"a": 1} would be in [{"a": 1, "b": 2}].
            WHEN 'in' THEN EXISTS (
                SELECT FROM jsonb_array_elements(CASE jsonb_typeof(value) WHEN 'array' THEN value ELSE '[]' END) AS v (v)
                WHERE v.v = c.choice)
            ELSE pgembed._bound_implies('eq', c.choice, word, value) END);
END;
$$;
COMMENT ON FUNCTION pgembed._term_implies(text, jsonb, text, jsonb) IS
'Whether one condition on a column implies another on the same.';


CREATE OR REPLACE FUNCTION pgembed._numberless_columns(source regclass)
RETURNS text[]
LANGUAGE sql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT coalesce(array_agg(n.name), '{}')
    FROM pg_catalog.pg_attribute AS a
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (VALUES (a.attname::text), ('"' || replace(a.attname, '"', '""') || '"')) AS n (name)
    -- A domain has the category of its base type.
    WHERE a.attrelid = source AND a.attnum > 0 AND t.typcategory <> 'N' AND a.atttypid <> 'jsonb'::regtype
);
COMMENT ON FUNCTION pgembed._numberless_columns(regclass) IS
'What filters may call the columns on which a number is but its text: of text "9" is greater than "10".';


CREATE OR REPLACE FUNCTION pgembed._numbers_as_text(value jsonb)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE jsonb_typeof(value)
        WHEN 'number' THEN to_jsonb(value #>> '{}')
        WHEN 'array' THEN coalesce((
            SELECT jsonb_agg(pgembed._numbers_as_text(e.value) ORDER BY e.ordinality)
            FROM jsonb_array_elements(value) WITH ORDINALITY AS e (value)), '[]')
        ELSE value END;
END;
$$;
COMMENT ON FUNCTION pgembed._numbers_as_text(jsonb) IS
'A value, or a list of them, with its numbers as strings.';


CREATE OR REPLACE FUNCTION pgembed._filter_implies(filter jsonb, general jsonb, numberless text[] DEFAULT '{}')
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM pgembed._filter_terms(general) AS g
        WHERE NOT EXISTS (
            SELECT FROM pgembed._filter_terms(filter) AS f
            WHERE f.name = g.name AND CASE WHEN f.name = ANY (numberless)
                THEN pgembed._term_implies(
                    f.word, pgembed._numbers_as_text(f.value), g.word, pgembed._numbers_as_text(g.value))
                ELSE pgembed._term_implies(f.word, f.value, g.word, g.value) END));
END;
$$;
COMMENT ON FUNCTION pgembed._filter_implies(jsonb, jsonb, text[]) IS
'Whether every row that passes a filter passes another, as far as the JSON tells: false when in doubt. numberless: columns on which numbers are text.';
