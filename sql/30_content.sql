-- What an embedding embeds: a column of the source, or a template such as '{title}: {body}'.

CREATE OR REPLACE FUNCTION pgembed._template_tokens(template text)
RETURNS TABLE (ordinal bigint, token text, column_name text)
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        m.ordinal,
        m.parts[1],
        CASE WHEN m.parts[1] LIKE '{%' AND m.parts[1] <> '{{' THEN btrim(m.parts[1], '{}') END
    FROM regexp_matches(template, '[{][{]|[}][}]|[{][^{}]*[}]|[^{}]+', 'g')
        WITH ORDINALITY AS m (parts, ordinal);
$$;
COMMENT ON FUNCTION pgembed._template_tokens(text) IS
'The parts of a template: literal text, doubled braces, and columns. A brace without its partner is left out.';


CREATE OR REPLACE FUNCTION pgembed._content_columns(source regclass, content text)
RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known text[] := pgembed._columns(source);
    named text[];
    whole text;
    missing text;
BEGIN
    IF content = ANY (known) THEN
        RETURN ARRAY[content];
    END IF;
    SELECT
        array_agg(DISTINCT t.column_name) FILTER (WHERE t.column_name IS NOT NULL),
        string_agg(t.token, '' ORDER BY t.ordinal)
    INTO named, whole
    FROM pgembed._template_tokens(content) AS t;
    IF whole IS DISTINCT FROM content THEN
        RAISE EXCEPTION 'the template % has an unmatched brace', quote_literal(content)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Write {column} for a column, {{ and }} for braces.';
    END IF;
    SELECT string_agg(quote_ident(n), ', ') INTO missing
    FROM unnest(coalesce(named, ARRAY[content])) AS n
    WHERE n <> ALL (known);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'table % has no column %', source, missing
            USING ERRCODE = 'undefined_column',
            HINT = format('Its columns are: %s. Content is a column or a template such as %s.',
                array_to_string(known, ', '), quote_literal('{title}: {body}'));
    END IF;
    RETURN named;
END;
$$;
COMMENT ON FUNCTION pgembed._content_columns(regclass, text) IS
'The columns that a content definition reads; an error when one does not exist.';


CREATE OR REPLACE FUNCTION pgembed._computed_from(source regclass, columns text[])
RETURNS text[]
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN ARRAY(
    SELECT DISTINCT r.attname::text
    FROM pg_catalog.pg_attribute AS a
    INNER JOIN pg_catalog.pg_attrdef AS g ON g.adrelid = a.attrelid AND g.adnum = a.attnum
    INNER JOIN pg_catalog.pg_depend AS d
        ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = g.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = a.attrelid
    INNER JOIN pg_catalog.pg_attribute AS r ON r.attrelid = d.refobjid AND r.attnum = d.refobjsubid
    WHERE a.attrelid = source AND a.attname = ANY (columns) AND a.attgenerated <> ''
        AND r.attnum <> a.attnum
);
COMMENT ON FUNCTION pgembed._computed_from(regclass, text[]) IS
'The columns that those among these columns which are generated are computed from.';


CREATE OR REPLACE FUNCTION pgembed._column_text(alias text, column_name text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format('pg_catalog.left(%s.%I::pg_catalog.text, 1000000)', alias, column_name);
COMMENT ON FUNCTION pgembed._column_text(text, text) IS
'SQL: a column as text, at most a million characters, so that no row exhausts the memory.';


CREATE OR REPLACE FUNCTION pgembed._template_expression(template text, alias text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        CASE
            WHEN t.column_name IS NOT NULL THEN
                format('coalesce(%s, %L)', pgembed._column_text(alias, t.column_name), '')
            WHEN t.token IN ('{{', '}}') THEN quote_literal(left(t.token, 1))
            ELSE quote_literal(t.token)
        END,
        ' OPERATOR(pg_catalog.||) ' ORDER BY t.ordinal
    )
    FROM pgembed._template_tokens(template) AS t
);
COMMENT ON FUNCTION pgembed._template_expression(text, text) IS
'SQL: the text that a template makes of a row; a NULL column counts as empty.';


CREATE OR REPLACE FUNCTION pgembed._content_expression(e pgembed.embedding, alias text)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    whole text := pgembed._column_text(alias, (e.content_columns)[1]);
    columns_text text;
BEGIN
    IF e.content <> (e.content_columns)[1] THEN
        whole := pgembed._template_expression(e.content, alias);
    END IF;
    SELECT string_agg(pgembed._column_text(alias, c), ', ') INTO columns_text
    FROM unnest(e.content_columns) AS c;
    -- An array, because functions take at most 100 arguments. The columns' own collations may
    -- contradict each other, or know no regular expressions.
    RETURN format(
        'CASE WHEN (pg_catalog.array_to_string(ARRAY[%s], '''') COLLATE pg_catalog."default") '
        'OPERATOR(pg_catalog.~) ''[^[:space:]]'' THEN pg_catalog.left(%s, 1000000) END',
        columns_text, whole
    );
END;
$$;
COMMENT ON FUNCTION pgembed._content_expression(pgembed.embedding, text) IS
'SQL: the text of a source row that is embedded, at most a million characters; NULL when its columns are NULL or blank.';


CREATE OR REPLACE FUNCTION pgembed._is_moved_out(source regclass, column_name text)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN to_regprocedure('pg_catalog.pg_column_toast_chunk_id("any")') IS NOT NULL AND EXISTS (
    SELECT
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = source AND a.attname = column_name AND a.attstorage IN ('x', 'e', 'm')
);
COMMENT ON FUNCTION pgembed._is_moved_out(regclass, text) IS
'Whether long values of a column lie outside of its row, under a number that this server (PostgreSQL 17 and later) can tell.';


CREATE OR REPLACE FUNCTION pgembed._change_condition(source regclass, columns text[])
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        format(
            -- A long value that was not touched need not be read to see that it is the same.
            CASE WHEN pgembed._is_moved_out(source, a.attname::text) THEN
                '(pg_catalog.pg_column_toast_chunk_id(OLD.%1$I) IS NULL OR '
                'pg_catalog.pg_column_toast_chunk_id(OLD.%1$I) IS DISTINCT FROM '
                'pg_catalog.pg_column_toast_chunk_id(NEW.%1$I)) AND '
            ELSE '' END
            || CASE t.typcategory
                WHEN 'S' THEN
                    'OLD.%1$I::pg_catalog.text COLLATE pg_catalog."C" IS DISTINCT FROM '
                    'NEW.%1$I::pg_catalog.text COLLATE pg_catalog."C"'
                ELSE 'ROW(OLD.%1$I)::pg_catalog.record OPERATOR(pg_catalog.*<>) '
                    'ROW(NEW.%1$I)::pg_catalog.record'
            END,
            a.attname
        ),
        ' OR ' ORDER BY a.attnum
    )
    FROM pg_catalog.pg_attribute AS a
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = source AND a.attname = ANY (columns) AND NOT a.attisdropped
);
COMMENT ON FUNCTION pgembed._change_condition(regclass, text[]) IS
'SQL for a trigger''s WHEN: whether one of the columns changed, byte for byte: neither a case-insensitive collation, nor a type without equality, nor extra_float_digits may hide a change.';


CREATE OR REPLACE FUNCTION pgembed._key_changed(source regclass)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format('NOT (%s)', pgembed._key_match(source, 'OLD', 'NEW'));
COMMENT ON FUNCTION pgembed._key_changed(regclass) IS
'SQL for a trigger: whether the key of the row changed, by the operators of the primary key.';
