-- The language of filters: what {"price": {"lt": 100}, "or": [...]} means.
-- SQL's logic holds: a comparison with NULL is unknown, and unknown rows do not pass.

CREATE OR REPLACE FUNCTION pgembed._refuse_filter(message text, hint text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = 'filter: ' || message, HINT = hint;
END;
$$;
COMMENT ON FUNCTION pgembed._refuse_filter(text, text) IS
'Raises the error of a filter that makes no sense.';


CREATE OR REPLACE FUNCTION pgembed._named_column(
    source regclass, name text, OUT bare text, OUT path text[]
)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known text[] := pgembed._columns(source);
BEGIN
    bare := CASE
        WHEN name LIKE '"_%"' THEN replace(substr(name, 2, length(name) - 2), '""', '"')
        ELSE name END;
    IF bare <> ALL (known) AND bare ~ E'.(\\.|->)' THEN
        SELECT coalesce(c.prefix, bare), regexp_split_to_array(
            substr(name, length(c.prefix) + length(s.mark) + 1), s.pattern)
        INTO bare, path
        FROM (VALUES ('.', E'\\.'), ('->', '->')) AS s (mark, pattern)
        LEFT JOIN unnest(known) AS c (prefix) ON starts_with(name, c.prefix || s.mark)
        ORDER BY length(c.prefix) DESC NULLS LAST LIMIT 1;
    END IF;
    IF bare <> ALL (known) THEN
        RAISE EXCEPTION 'filter: table % has no column %', source, left(quote_ident(bare), 100)
            USING ERRCODE = 'undefined_column',
            HINT = format('Its columns are: %s.', array_to_string(known, ', '));
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._named_column(regclass, text) IS
'The column that a name means which is no column''s own: one in double quotes, or with a path into a jsonb column; an error when there is none.';


CREATE OR REPLACE FUNCTION pgembed._filter_operand(
    source regclass, name text, qualifier text,
    OUT expression text, OUT kind oid, OUT path text[], OUT label text
)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    bare text := name;
    base oid;
    class "char";
    holds_vectors boolean;
BEGIN
    LOOP
        SELECT a.atttypid, t.typbasetype INTO kind, base
        FROM pg_catalog.pg_attribute AS a
        INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = source AND a.attname = bare AND a.attnum > 0 AND NOT a.attisdropped;
        EXIT WHEN FOUND;
        SELECT n.bare, n.path INTO bare, path FROM pgembed._named_column(source, name) AS n;
    END LOOP;
    WHILE base <> 0 LOOP
        kind := base;
        SELECT t.typbasetype, t.typtype INTO base, class FROM pg_catalog.pg_type AS t WHERE t.oid = kind;
    END LOOP;
    expression := format('%s.%I', qualifier, bare);
    IF class = 'e' THEN  -- Of a domain over an enum PostgreSQL does not see that it is one.
        expression := expression || '::' || kind::regtype;
    END IF;
    label := format('column %I (%s)', bare, format_type(kind, NULL));
    IF path IS NOT NULL AND kind <> 'jsonb'::regtype THEN
        PERFORM pgembed._refuse_filter(format('%s is not jsonb and has no inside %s', label,
            left(to_jsonb(path)::text, 100)), 'A path goes into a jsonb column: {"column.key": value}.');
    END IF;
    IF kind = 'bit'::regtype THEN
        holds_vectors := EXISTS (
            SELECT FROM pgembed.embedding AS e
            WHERE e.target = _filter_operand.source AND e.target_column = bare);
    END IF;
    IF holds_vectors OR kind IN ('@extschema:vector@.vector'::regtype,
        '@extschema:vector@.halfvec'::regtype, '@extschema:vector@.sparsevec'::regtype)
    THEN
        PERFORM pgembed._refuse_filter(format('%s holds vectors', label),
            'Vectors are what the search compares; filter by other columns.');
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._filter_operand(regclass, text, text) IS
'The column that a filter names: as SQL, its type (a domain''s base type) and a label for errors. A name in double quotes is read as SQL reads it, which reaches a column called "and", "or" or "not". column.key.key and column->key->key go into a jsonb column; a column of that very name comes first.';


CREATE OR REPLACE FUNCTION pgembed._read_value(given text, kind oid, name text)
RETURNS void
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    missing boolean;
BEGIN
    -- The frequent types by expressions that need no plan: a search waits for this.
    CASE kind
        WHEN 'text'::regtype THEN NULL;
        WHEN 'int4'::regtype THEN missing := given::int4 IS NULL;
        WHEN 'int8'::regtype THEN missing := given::int8 IS NULL;
        WHEN 'numeric'::regtype THEN missing := given::numeric IS NULL;
        WHEN 'float8'::regtype THEN missing := given::float8 IS NULL;
        WHEN 'bool'::regtype THEN missing := given::bool IS NULL;
        WHEN 'date'::regtype THEN missing := given::date IS NULL;
        WHEN 'timestamptz'::regtype THEN missing := given::timestamptz IS NULL;
        WHEN 'uuid'::regtype THEN missing := given::uuid IS NULL;
        WHEN 'int4[]'::regtype THEN missing := given::int4[] IS NULL;
        WHEN 'text[]'::regtype THEN missing := given::text[] IS NULL;
        ELSE EXECUTE format('SELECT pgembed._value($1, NULL::%s) IS NULL', name) USING given;
    END CASE;
END;
$$;
COMMENT ON FUNCTION pgembed._read_value(text, oid, text) IS
'An error when a text is no value of a type.';


CREATE OR REPLACE FUNCTION pgembed._filter_value(
    kind oid, label text, value jsonb, reference text,
    INOUT arguments text[], OUT expression text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f record := pgembed._frequent_value(value, kind);
    name text := f.name;
    volatility "char" := 'i';
    given text := f.given;
BEGIN
    IF given IS NULL THEN
        SELECT format('%I.%I', n.nspname, t.typname), i.provolatile INTO name, volatility
        FROM pg_catalog.pg_type AS t
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
        INNER JOIN pg_catalog.pg_proc AS i ON i.oid = t.typinput
        WHERE t.oid = kind;
        BEGIN
            given := pgembed._value_text(value, kind);
            PERFORM pgembed._read_value(given, kind, name);
        EXCEPTION WHEN OTHERS THEN
            PERFORM pgembed._refuse_filter(format('%s is no value of %s: %s',
                left(value::text, 100), label, left(regexp_replace(SQLERRM, '^filter: .* is no value', 'no value'), 200)),
                CASE WHEN jsonb_typeof(value) = 'object' AND value ? 'asking'
                    THEN 'A column of the row that asks, in a join, is named so: {"asking": {"gt": "column"}}.'
                    ELSE format('Give a value that PostgreSQL reads as %s.', format_type(kind, NULL)) END);
        END;
    END IF;
    arguments := arguments || given;
    expression := format(
        CASE volatility WHEN 'i'
            THEN '((%s)[%s])::%s' ELSE 'pgembed._value((%s)[%s], NULL::%s)' END,
        reference, cardinality(arguments), name);
END;
$$;
COMMENT ON FUNCTION pgembed._filter_value(oid, text, jsonb, text, text[]) IS
'Adds a value to the parameter and returns the SQL that reads it as the type; an error that names the value when it does not.';


CREATE OR REPLACE FUNCTION pgembed._filter_comparison(
    operand text, kind oid, label text, word text, value jsonb, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    operator text := pgembed._comparison(kind, word);
    v record;
BEGIN
    IF operator IS NULL THEN
        PERFORM pgembed._refuse_filter(format('%s cannot be compared by "%s"', label, word),
            'Its type has no such operator; is_null works on every column.');
    ELSIF jsonb_typeof(value) = 'null' THEN
        PERFORM pgembed._refuse_filter(format('%s is compared with null by "%s"', label, word),
            'Only eq, ne, in and not_in know null; is_null tests for it.');
    END IF;
    v := pgembed._filter_value(kind, label, value, reference, arguments);
    arguments := v.arguments;
    condition := format('(%s %s %s)', operand, operator, v.expression);
END;
$$;
COMMENT ON FUNCTION pgembed._filter_comparison(text, oid, text, text, jsonb, text, text[]) IS
'The condition that a column compares with one value as eq, ne, lt, lte, gt or gte say.';


CREATE OR REPLACE FUNCTION pgembed._null_test(operand text, wanted boolean)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE WHEN wanted THEN '(' || operand || ' IS NULL)' ELSE '(NOT (' || operand || ' IS NULL))' END;
COMMENT ON FUNCTION pgembed._null_test(text, boolean) IS
'SQL: whether a column is NULL, or not. A row of which a part is NULL is neither by IS NULL nor by IS NOT NULL.';


CREATE OR REPLACE FUNCTION pgembed._filter_in(
    operand text, kind oid, label text, word text, value jsonb, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    negated boolean := word = 'not_in';
    operator text := pgembed._comparison(kind, CASE WHEN negated THEN 'ne' ELSE 'eq' END);
    list_kind oid := (SELECT t.typarray FROM pg_catalog.pg_type AS t WHERE t.oid = kind);
    given jsonb;
    parts text[] := '{}';
    v record;
BEGIN
    IF jsonb_typeof(value) <> 'array' THEN
        PERFORM pgembed._refuse_filter(format('"%s" of %s is no list: %s', word, label,
            left(value::text, 100)), format('Write {"%s": [1, 2, 3]}.', word));
    ELSIF jsonb_array_length(value) > 10000 THEN
        PERFORM pgembed._refuse_filter(format('"%s" of %s lists %s values, more than 10000',
            word, label, jsonb_array_length(value)),
            'Put them in a table and use a predicate: id IN (SELECT ...).');
    ELSIF value @? 'strict $[*] ? (@.type() == "array")' AND kind NOT IN ('json'::regtype, 'jsonb'::regtype)
        AND (SELECT t.typcategory FROM pg_catalog.pg_type AS t WHERE t.oid = kind) <> 'A'
    THEN
        PERFORM pgembed._refuse_filter(format('"%s" of %s lists lists: %s', word, label,
            left(value::text, 100)), format('Write {"%s": [1, 2, 3]}.', word));
    ELSIF operator IS NULL THEN
        PERFORM pgembed._refuse_filter(format('%s cannot be compared by "%s"', label, word),
            'Its type has no such operator; is_null works on every column.');
    END IF;
    SELECT coalesce(jsonb_agg(e.value), '[]') INTO given
    FROM jsonb_array_elements(value) AS e (value) WHERE jsonb_typeof(e.value) <> 'null';
    IF list_kind <> 0 AND given <> '[]' THEN
        v := pgembed._filter_value(list_kind, label, given, reference, arguments);
        arguments := v.arguments;
        parts := ARRAY[format('%s %s %s (%s)', operand, operator,
            CASE WHEN negated THEN 'ALL' ELSE 'ANY' END, v.expression)];
    ELSE
        FOR v IN SELECT e.value FROM jsonb_array_elements(given) AS e (value) LOOP
            v := pgembed._filter_value(kind, label, v.value, reference, arguments);
            arguments := v.arguments;
            parts := parts || format('%s %s %s', operand, operator, v.expression);
        END LOOP;
    END IF;
    IF value @> '[null]' THEN
        parts := parts || pgembed._null_test(operand, NOT negated);
    END IF;
    condition := coalesce(
        '(' || nullif(array_to_string(parts, CASE WHEN negated THEN ' AND ' ELSE ' OR ' END), '') || ')',
        negated::text);
END;
$$;
COMMENT ON FUNCTION pgembed._filter_in(text, oid, text, text, jsonb, text, text[]) IS
'The condition that a column is one of a list, or for not_in none of it. null in the list stands for rows without a value; in an empty list there is nothing.';


CREATE OR REPLACE FUNCTION pgembed._filter_pattern(
    operand text, kind oid, label text, word text, value jsonb, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    operator record := pgembed._pattern_operator(
        kind, CASE word WHEN 'ilike' THEN '~~*' ELSE '~~' END);
    pattern text := value #>> '{}';
    v record;
BEGIN
    IF jsonb_typeof(value) <> 'string' THEN
        PERFORM pgembed._refuse_filter(format('"%s" of %s is no string: %s', word, label,
            left(value::text, 100)), format('Write {"%s": "text"}.', word));
    END IF;
    IF word = 'contains' THEN
        pattern := pgembed._like_pattern(pattern);
    ELSIF pattern ~ E'^(?:[^\\\\]|\\\\.)*\\\\$' THEN
        PERFORM pgembed._refuse_filter(format('the pattern %s for %s ends with a backslash',
            left(value::text, 100), label), 'A backslash escapes the next character: double it.');
    END IF;
    v := pgembed._filter_value(operator.right_kind, label, to_jsonb(pattern), reference, arguments);
    arguments := v.arguments;
    condition := format('(%s %s %s)', operand, operator.expression, v.expression);
END;
$$;
COMMENT ON FUNCTION pgembed._filter_pattern(text, oid, text, text, jsonb, text, text[]) IS
'The condition that a string is like, or contains, another one.';


CREATE OR REPLACE FUNCTION pgembed._filter_contains(
    operand text, kind oid, label text, value jsonb, reference text,
    INOUT arguments text[], OUT condition text
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t pg_catalog.pg_type;
    element oid;
    operator text := 'OPERATOR(pg_catalog.@>)';
    v record;
BEGIN
    SELECT k.* INTO t FROM pg_catalog.pg_type AS k WHERE k.oid = kind;
    IF t.typcategory = 'A' AND jsonb_typeof(value) <> 'array' THEN
        value := jsonb_build_array(value);
    ELSIF t.typtype IN ('r', 'm') AND value #>> '{}' !~ E'^\\s*([[({]|empty)' THEN
        SELECT r.rngsubtype INTO element
        FROM pg_catalog.pg_range AS r WHERE kind IN (r.rngtypid, r.rngmultitypid);
        kind := element;
    ELSIF kind IN ('inet'::regtype, 'cidr'::regtype) THEN
        operator := 'OPERATOR(pg_catalog.>>=)';
    ELSIF t.typnamespace <> 'pg_catalog'::regnamespace AND t.typtype = 'b' AND t.typcategory <> 'A' THEN
        SELECT format('OPERATOR(%I.@>)', n.nspname) INTO operator
        FROM pg_catalog.pg_operator AS o
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE o.oprname = '@>' AND o.oprleft = kind AND o.oprright = kind
            AND pgembed._belongs_to(o.oid, kind);
    ELSIF t.typcategory NOT IN ('A', 'R') AND kind <> 'jsonb'::regtype THEN
        operator := NULL;
    END IF;
    IF operator IS NULL THEN
        PERFORM pgembed._refuse_filter(format('"contains" does not work on %s', label),
            'It works on text, arrays, jsonb, ranges and networks.');
    END IF;
    v := pgembed._filter_value(kind, label, value, reference, arguments);
    arguments := v.arguments;
    condition := format('(%s %s %s)', operand, operator, v.expression);
END;
$$;
COMMENT ON FUNCTION pgembed._filter_contains(text, oid, text, jsonb, text, text[]) IS
'The condition that an array, a jsonb document, a range or a network contains a value: an element or another of its kind.';
