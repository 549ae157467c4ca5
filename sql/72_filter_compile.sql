-- Filters, compiled: terms, their combinations, and the one entrance for the rest.

CREATE OR REPLACE FUNCTION pgembed._filter_term(
    operand text, kind oid, label text, word text, value jsonb, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r record;
BEGIN
    CASE
        WHEN word IN ('eq', 'ne') AND jsonb_typeof(value) = 'null' THEN
            condition := pgembed._null_test(operand, word = 'eq');
            RETURN;
        WHEN word = 'is_null' AND jsonb_typeof(value) = 'boolean' THEN
            condition := pgembed._null_test(operand, value::boolean);
            RETURN;
        WHEN word IN ('eq', 'ne', 'lt', 'lte', 'gt', 'gte') THEN
            r := pgembed._filter_comparison(operand, kind, label, word, value, reference, arguments);
        WHEN word IN ('in', 'not_in') THEN
            r := pgembed._filter_in(operand, kind, label, word, value, reference, arguments);
        WHEN word = 'between' AND jsonb_typeof(value) = 'array' AND jsonb_array_length(value) = 2 THEN
            r := pgembed._filter_comparison(operand, kind, label, 'gte', value -> 0, reference, arguments);
            condition := r.condition;
            r := pgembed._filter_comparison(operand, kind, label, 'lte', value -> 1, reference, r.arguments);
            r.condition := format('(%s AND %s)', condition, r.condition);
        WHEN word IN ('like', 'ilike', 'contains') AND (
            SELECT t.typcategory = 'S' FROM pg_catalog.pg_type AS t WHERE t.oid = kind) THEN
            r := pgembed._filter_pattern(operand, kind, label, word, value, reference, arguments);
        WHEN word = 'contains' AND jsonb_typeof(value) <> 'null' THEN
            r := pgembed._filter_contains(operand, kind, label, value, reference, arguments);
        ELSE
            PERFORM pgembed._refuse_term(label, word, value);
    END CASE;
    arguments := r.arguments;
    condition := r.condition;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_term(text, oid, text, text, jsonb, text, text[]) IS
'One operator on one column as a condition.';


CREATE OR REPLACE FUNCTION pgembed._refuse_term(label text, word text, value jsonb)
RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    expected text := CASE word
        WHEN 'is_null' THEN 'takes true or false'
        WHEN 'between' THEN 'takes a list of two values, both included'
        WHEN 'contains' THEN 'takes a value'
        WHEN 'like' THEN 'works on text'
        WHEN 'ilike' THEN 'works on text' END;
BEGIN
    IF word = 'asking' THEN
        PERFORM pgembed._refuse_filter(
            format('%s is compared with a row that asks, and only joins have one: {"asking": %s}',
                label, left(value::text, 100)),
            'Give the value itself; or relate rows to rows by pgembed.knn_join.');
    ELSIF expected IS NULL THEN
        PERFORM pgembed._refuse_filter(
            format('%s has no operator %s', label, left(to_jsonb(word)::text, 100)),
            'The operators are: eq, ne, lt, lte, gt, gte, between, in, not_in, like, ilike, '
            'contains, is_null.');
    END IF;
    PERFORM pgembed._refuse_filter(
        format('"%s" does not fit %s: %s', word, label, left(value::text, 100)),
        format('"%s" %s.', word, expected));
END;
$$;
COMMENT ON FUNCTION pgembed._refuse_term(text, text, jsonb) IS
'Raises the error of an operator that is unknown or does not fit its column or its value.';


CREATE OR REPLACE FUNCTION pgembed._filter_column(
    source regclass, name text, value jsonb, qualifier text, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    operand record := pgembed._filter_operand(source, name, qualifier);
    terms jsonb := CASE jsonb_typeof(value)
        WHEN 'object' THEN value
        WHEN 'array' THEN jsonb_build_object('in', value)
        ELSE jsonb_build_object('eq', value) END;
    parts text[] := '{}';
    term record;
    r record;
BEGIN
    IF terms = '{}' THEN
        PERFORM pgembed._refuse_filter(format('%s is given no operator', operand.label),
            'Write a value, a list, or an operator: {"lt": 5}.');
    END IF;
    FOR term IN SELECT t.key, t.value FROM jsonb_each(terms) AS t LOOP
        IF operand.path IS NOT NULL THEN
            r := pgembed._filter_json(operand.expression, operand.path, term.key, term.value,
                reference, arguments);
        ELSE
            r := pgembed._filter_term(operand.expression, operand.kind, operand.label,
                term.key, term.value, reference, arguments);
        END IF;
        arguments := r.arguments;
        parts := parts || r.condition;
    END LOOP;
    condition := CASE WHEN cardinality(parts) = 1 THEN parts[1]
        ELSE '(' || array_to_string(parts, ' AND ') || ')' END;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_column(regclass, text, jsonb, text, text, text[]) IS
'Everything that a filter says about one column, joined by AND.';


CREATE OR REPLACE FUNCTION pgembed._filter_node(
    source regclass, node jsonb, qualifier text, reference text, depth integer,
    INOUT terms integer, INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts text[] := '{}';
    entry record;
    r record;
BEGIN
    IF jsonb_typeof(node) <> 'object' OR depth > 32 THEN
        PERFORM pgembed._refuse_filter(CASE WHEN depth > 32 THEN 'nested deeper than 32 levels'
            ELSE 'an object is expected, not ' || left(node::text, 100) END,
            'Write {"column": value}, {"and": [...]}, {"or": [...]} or {"not": {...}}.');
    END IF;
    FOR entry IN SELECT e.key, e.value FROM jsonb_each(node) AS e LOOP
        IF entry.key IN ('and', 'or') THEN
            r := pgembed._filter_list(source, entry.key, entry.value, qualifier, reference,
                depth, terms, arguments);
            terms := r.terms;
        ELSIF entry.key = 'not' THEN
            r := pgembed._filter_node(source, entry.value, qualifier, reference,
                depth + 1, terms, arguments);
            terms := r.terms;
            r.condition := format('(NOT %s)', r.condition);
        ELSE
            r := pgembed._filter_column(source, entry.key, entry.value, qualifier, reference, arguments);
            terms := terms + 1;
        END IF;
        arguments := r.arguments;
        parts := parts || r.condition;
    END LOOP;
    condition := CASE cardinality(parts) WHEN 0 THEN 'true' WHEN 1 THEN parts[1]
        ELSE '(' || array_to_string(parts, ' AND ') || ')' END;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_node(regclass, jsonb, text, text, integer, integer, text[]) IS
'An object of a filter as a condition: its columns and combinations, joined by AND.';


CREATE OR REPLACE FUNCTION pgembed._filter_list(
    source regclass, word text, list jsonb, qualifier text, reference text, depth integer,
    INOUT terms integer, INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts text[] := '{}';
    entry record;
    r record;
BEGIN
    IF jsonb_typeof(list) <> 'array' THEN
        PERFORM pgembed._refuse_filter(format('"%s" is no list: %s', word, left(list::text, 100)),
            format(E'Write {"%s": [{...}, {...}]}; a column called %s is "\\"%s\\"".', word, word, word));
    END IF;
    FOR entry IN SELECT e.value FROM jsonb_array_elements(list) AS e (value) LOOP
        r := pgembed._filter_node(source, entry.value, qualifier, reference, depth + 1, terms, arguments);
        terms := r.terms;
        arguments := r.arguments;
        parts := parts || r.condition;
        IF terms > 1000 THEN
            PERFORM pgembed._refuse_filter('more than 1000 conditions',
                'Use lists of values: {"column": [1, 2, 3]}.');
        END IF;
    END LOOP;
    condition := coalesce('(' || nullif(array_to_string(parts, format(' %s ', upper(word))), '') || ')',
        (word = 'and')::text);
END;
$$;
COMMENT ON FUNCTION pgembed._filter_list(regclass, text, jsonb, text, text, integer, integer, text[]) IS
'The filters of a list joined by AND or OR. Nothing in an empty "or" holds; everything in an empty "and" does.';


CREATE OR REPLACE FUNCTION pgembed._compile_filter(
    source regclass, filter jsonb, reference text DEFAULT '$3', qualifier text DEFAULT NULL,
    OUT condition text, OUT arguments text[]
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r record;
BEGIN
    arguments := '{}';
    IF filter IS NULL THEN
        RETURN;
    ELSIF octet_length(filter::text) > 1000000 THEN
        PERFORM pgembed._refuse_filter(format('%s bytes are more than 1000000',
            octet_length(filter::text)), 'Put the values in a table and use a predicate.');
    END IF;
    r := pgembed._filter_node(source, filter, coalesce(qualifier, pgembed._table_name(source)), reference, 1, 0, arguments);
    condition := r.condition;
    arguments := r.arguments;
END;
$$;
COMMENT ON FUNCTION pgembed._compile_filter(regclass, jsonb, text, text) IS
'A JSON filter as SQL: a condition on the source (under its own name, or the qualifier), whose values are elements of the text[] that the reference names. NULL for no filter. Column names come from the catalog, operators from the types, values only through the parameter.';
