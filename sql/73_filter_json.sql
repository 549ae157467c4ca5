-- Filters on what is inside a jsonb column: {"meta.address.city": "Oslo"}.
-- The filter's value says which JSON type is meant. JSON's null is no value, as NULL is;
-- order and patterns are unknown, and so do not pass, for a value of another JSON type.

CREATE OR REPLACE FUNCTION pgembed._json_value(document jsonb, path text[])
RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN document OPERATOR(pg_catalog.#>) path OPERATOR(pg_catalog.<>) 'null'::pg_catalog.jsonb
        THEN document OPERATOR(pg_catalog.#>) path
END;
COMMENT ON FUNCTION pgembed._json_value(jsonb, text[]) IS
'What is at a path of a document; NULL for JSON''s null. Qualified instead of pinned, so that it is inlined.';


CREATE OR REPLACE FUNCTION pgembed._json_as(value jsonb, kind text)
RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN pg_catalog.jsonb_typeof(value) OPERATOR(pg_catalog.=) kind THEN value
END;
COMMENT ON FUNCTION pgembed._json_as(jsonb, text) IS
'A JSON value when it is of that JSON type, else NULL. Qualified instead of pinned, so that it is inlined.';


CREATE OR REPLACE FUNCTION pgembed._check_json_order(label text, word text, value jsonb)
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shape text := jsonb_typeof(CASE word WHEN 'between' THEN value -> 0 ELSE value END);
BEGIN
    IF shape IN ('string', 'number')
        AND (word <> 'between' OR jsonb_typeof(value -> 1) = shape)
    THEN
        RETURN shape;
    END IF;
    PERFORM pgembed._refuse_filter(
        format('%s has no order for "%s": %s', label, word, left(value::text, 100)),
        'Compare with a string or a number.');
END;
$$;
COMMENT ON FUNCTION pgembed._check_json_order(text, text, jsonb) IS
'The JSON type in which a filter compares by order: string or number.';


CREATE OR REPLACE FUNCTION pgembed._filter_json_part(
    inside text, label text, value jsonb, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    element record;
    part record;
BEGIN
    element := pgembed._filter_contains(inside, 'jsonb'::regtype, label,
        jsonb_build_array(value), reference, arguments);
    part := pgembed._filter_pattern(
        format('(%s OPERATOR(pg_catalog.#>>) ''{}''::pg_catalog._text)', inside),
        'text'::regtype, label, 'contains', value, reference, element.arguments);
    arguments := part.arguments;
    condition := format(
        '(CASE WHEN pgembed._json_as(%s, ''string'') IS NULL THEN %s ELSE %s END)',
        inside, element.condition, part.condition);
END;
$$;
COMMENT ON FUNCTION pgembed._filter_json_part(text, text, jsonb, text, text[]) IS
'The condition that a JSON string has a text as a part, or a JSON array as an element.';


CREATE OR REPLACE FUNCTION pgembed._filter_json(
    operand text, path text[], word text, value jsonb, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    label text := format('the value at %s', left(to_jsonb(path)::text, 100));
    inside text;
    r record;
BEGIN
    arguments := arguments || path::text;
    inside := format(
        'pgembed._json_value(%s, pgembed._value((%s)[%s], NULL::pg_catalog._text))',
        operand, reference, cardinality(arguments));
    IF word IN ('like', 'ilike') THEN
        r := pgembed._filter_pattern(
            format('(pgembed._json_as(%s, ''string'') OPERATOR(pg_catalog.#>>) '
                '''{}''::pg_catalog._text)', inside),
            'text'::regtype, label, word, value, reference, arguments);
    ELSIF word = 'contains' AND jsonb_typeof(value) = 'string' THEN
        r := pgembed._filter_json_part(inside, label, value, reference, arguments);
    ELSE
        IF word IN ('lt', 'lte', 'gt', 'gte', 'between') THEN
            inside := format('pgembed._json_as(%s, %L)', inside,
                pgembed._check_json_order(label, word, value));
        END IF;
        r := pgembed._filter_term(
            inside, 'jsonb'::regtype, label, word, value, reference, arguments);
    END IF;
    arguments := r.arguments;
    condition := r.condition;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_json(text, text[], text, jsonb, text, text[]) IS
'One operator on what is at a path of a jsonb column, as a condition.';
