-- What an embedding embeds: a column of the source, or a template such as '{title}: {body}'.

CREATE OR REPLACE FUNCTION pgembed._content_columns(source regclass, content text)
RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known text[] := pgembed._columns(source);
    bare text := replace(replace(content, '{{', ''), '}}', '');
    named text[];
    missing text;
BEGIN
    IF content = ANY (known) THEN
        RETURN ARRAY[content];
    END IF;
    SELECT array_agg(DISTINCT m.parts[1]) INTO named
    FROM regexp_matches(bare, '\{([^{}]*)\}', 'g') AS m (parts);
    IF regexp_replace(bare, '\{[^{}]*\}', '', 'g') ~ '[{}]' THEN
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


CREATE OR REPLACE FUNCTION pgembed._template_expression(template text, alias text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        CASE
            WHEN t.token IN ('{{', '}}') THEN quote_literal(left(t.token, 1))
            WHEN t.token LIKE '{%' THEN
                format('coalesce(%s.%I::pg_catalog.text, %L)', alias, btrim(t.token, '{}'), '')
            ELSE quote_literal(t.token)
        END,
        ' OPERATOR(pg_catalog.||) ' ORDER BY t.ordinal
    )
    FROM regexp_matches(template, '\{\{|\}\}|\{[^{}]*\}|[^{}]+', 'g')
        WITH ORDINALITY AS m (parts, ordinal)
    CROSS JOIN LATERAL (SELECT m.parts[1], m.ordinal) AS t (token, ordinal)
);
COMMENT ON FUNCTION pgembed._template_expression(text, text) IS
'SQL: the text that a template makes of a row; a NULL column counts as empty.';


CREATE OR REPLACE FUNCTION pgembed._content_expression(e pgembed.embedding, alias text)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    whole text := format('%s.%I::pg_catalog.text', alias, (e.content_columns)[1]);
    columns_text text;
BEGIN
    IF e.content <> (e.content_columns)[1] THEN
        whole := pgembed._template_expression(e.content, alias);
    END IF;
    SELECT string_agg(format('%s.%I::pg_catalog.text', alias, c), ', ') INTO columns_text
    FROM unnest(e.content_columns) AS c;
    RETURN format(
        'CASE WHEN pg_catalog.concat(%s) OPERATOR(pg_catalog.~) ''\S'' '
        'THEN pg_catalog.left(%s, 1000000) END',
        columns_text, whole
    );
END;
$$;
COMMENT ON FUNCTION pgembed._content_expression(pgembed.embedding, text) IS
'SQL: the text of a source row that is embedded, at most a million characters; NULL when its columns are NULL or blank.';


CREATE OR REPLACE FUNCTION pgembed._change_condition(columns text[])
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        format(
            'OLD.%1$I::pg_catalog.text COLLATE pg_catalog."C" IS DISTINCT FROM '
            'NEW.%1$I::pg_catalog.text COLLATE pg_catalog."C"', c
        ),
        ' OR '
    )
    FROM unnest(columns) AS c
);
COMMENT ON FUNCTION pgembed._change_condition(text[]) IS
'SQL for a trigger''s WHEN: whether one of the columns changed, byte for byte (a case-insensitive collation must not hide a change).';


CREATE OR REPLACE FUNCTION pgembed._key_changed(source regclass)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format('NOT (%s)', pgembed._key_match(source, 'OLD', 'NEW'));
COMMENT ON FUNCTION pgembed._key_changed(regclass) IS
'SQL for a trigger: whether the key of the row changed, by the operators of the primary key.';
