-- The ranking by words of a hybrid search: full text, trigrams or BM25.

CREATE OR REPLACE FUNCTION pgembed._lexemes(language regconfig, query text)
RETURNS TABLE (term tsquery)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT ROWS 8
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT ('''' || replace(replace(l.lexeme, E'\\', E'\\\\'), '''', '''''') || '''')::tsquery
    FROM unnest(to_tsvector(language, left(query, 10000))) AS l
    ORDER BY l.lexeme LIMIT 100;
END;
$$;
COMMENT ON FUNCTION pgembed._lexemes(regconfig, text) IS
'The words of a text as a text search configuration reads them, each as a query; at most a hundred.';


CREATE OR REPLACE FUNCTION pgembed._document_words(language regconfig, document text)
RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL UNSAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fitting integer;
BEGIN
    -- The words of so short a document surely fit into a tsvector.
    IF octet_length(document) < 100000 THEN
        RETURN to_tsvector(language, document);
    END IF;
    fitting := length(document);
    LOOP
        BEGIN
            RETURN to_tsvector(language, left(document, fitting));
        EXCEPTION
            WHEN program_limit_exceeded THEN
                fitting := fitting / 4 * 3;
        END;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._document_words(regconfig, text) IS
'The words of a document; of one with more than a tsvector can hold, those from its beginning that fit, to three quarters at least.';


CREATE OR REPLACE FUNCTION pgembed._check_words(e pgembed.embedding, words text)
RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT words = ANY (pgembed._columns(e.source)) THEN
        RAISE EXCEPTION 'table % has no column %', e.source, quote_ident(words)
            USING ERRCODE = 'undefined_column', HINT = format('Its columns are: %s.',
                array_to_string(pgembed._columns(e.source), ', '));
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_words(pgembed.embedding, text) IS
'An error when the source table has no column of that name to read words from.';


CREATE OR REPLACE FUNCTION pgembed._words_document(e pgembed.embedding, words text, lexical text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_name text := pgembed._table_name(e.source);
    vectors text[] := ARRAY(
        SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = e.source AND a.attnum > 0 AND NOT a.attisdropped
            AND a.atttypid = 'tsvector'::regtype);
    read text := CASE lexical WHEN 'trigram' THEN '%s' ELSE 'pgembed._document_words($6, %s)' END;
BEGIN
    PERFORM pgembed._check_words(e, words);
    IF lexical = 'trigram' AND words = ANY (vectors) THEN
        RAISE EXCEPTION 'column % is a tsvector, which has no trigrams', quote_ident(words)
            USING ERRCODE = 'datatype_mismatch', HINT = 'Name a column of text: words => ''...''.';
    ELSIF lexical = 'fulltext' AND words IS NULL AND cardinality(vectors) = 1 THEN
        words := vectors[1];
    ELSIF lexical = 'trigram' AND words IS NULL AND e.content = e.content_columns[1] THEN
        -- Named as itself, so that an index on it serves.
        words := e.content;
    END IF;
    IF words = ANY (vectors) THEN
        RETURN format('%s.%I', table_name, words);
    ELSIF words IS NOT NULL THEN
        RETURN format(read, format('%s.%I::pg_catalog.text', table_name, words));
    ELSIF e.content IS NULL THEN
        RAISE EXCEPTION 'the embedding % does not say where its words are', quote_literal(e.name)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Name a tsvector or text column: words => ''...''.';
    END IF;
    RETURN format(read, pgembed._content_expression(e, table_name));
END;
$$;
COMMENT ON FUNCTION pgembed._words_document(pgembed.embedding, text, text) IS
'SQL: the words of a source row, a tsvector or for trigrams a text: the column named; else its only tsvector column; else its content, read anew for every search.';


CREATE OR REPLACE FUNCTION pgembed._fulltext_statement(e pgembed.embedding, condition text, words text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text := pgembed._column_list(e.key_columns, 'm');
    document text := pgembed._words_document(e, words, 'fulltext');
BEGIN
    -- The inverse document frequency of each word, over the rows that pass, times how
    -- often the row says it (with diminishing returns), for the row's length.
    RETURN format('SELECT %1$s, pg_catalog.sum(m.pgembed_tf OPERATOR(pg_catalog.*) '
        'pg_catalog.ln(1::pg_catalog.float8 OPERATOR(pg_catalog.+) ((GREATEST($14, m.pgembed_df) '
        'OPERATOR(pg_catalog.-) m.pgembed_df OPERATOR(pg_catalog.+) 0.5::pg_catalog.float8) OPERATOR(pg_catalog./) '
        '(m.pgembed_df OPERATOR(pg_catalog.+) 0.5::pg_catalog.float8)))) AS pgembed_score '
        'FROM (SELECT s.*, pg_catalog.ts_rank(s.pgembed_document, l.term, 1)::pg_catalog.float8 AS pgembed_tf, '
        '(pg_catalog.count(*) OVER (PARTITION BY l.term))::pg_catalog.float8 AS pgembed_df '
        'FROM pgembed._lexemes($6, $5) AS l INNER JOIN (%2$s%3$s) AS s '
        'ON s.pgembed_document OPERATOR(pg_catalog.@@) l.term) AS m '
        'GROUP BY %1$s ORDER BY pgembed_score DESC, %1$s LIMIT $2',
        keys, pgembed._search_rows(e, condition, document), CASE WHEN document LIKE 'pgembed._document_words(%' THEN ' OFFSET 0' ELSE '' END);
END;
$$;
COMMENT ON FUNCTION pgembed._fulltext_statement(pgembed.embedding, text, text) IS
'SQL: the keys of the rows that say the query''s words, best first; any word will do, rare ones count more.';


CREATE OR REPLACE FUNCTION pgembed._words_extension(lexical text, extension text, steps text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home text := (
        SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension AS x
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace
        WHERE x.extname = extension);
BEGIN
    IF home IS NULL THEN
        RAISE EXCEPTION 'lexical is %, but this database does not have %', quote_literal(lexical), extension
            USING ERRCODE = 'undefined_object',
            HINT = format('%s; or search with lexical => ''fulltext''.', steps);
    END IF;
    RETURN home;
END;
$$;
COMMENT ON FUNCTION pgembed._words_extension(text, text, text) IS
'The schema, quoted, of the extension that a ranking by words takes; an error with the steps to it when it is not there.';


CREATE OR REPLACE FUNCTION pgembed._trigrams_statement(e pgembed.embedding, condition text, words text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    document text := pgembed._words_document(e, words, 'trigram');
    home text := pgembed._words_extension('trigram', 'pg_trgm', 'Create it: CREATE EXTENSION pg_trgm');
BEGIN
    RETURN format('SELECT %1$s, '
        '%3$s.word_similarity($5, m.pgembed_document)::pg_catalog.float8 AS pgembed_score '
        'FROM (SELECT s.* FROM (%2$s) AS s WHERE $5 OPERATOR(%3$s.<%%) s.pgembed_document) AS m '
        'ORDER BY pgembed_score DESC, %1$s LIMIT $2',
        pgembed._column_list(e.key_columns, 'm'), pgembed._search_rows(e, condition, document), home);
END;
$$;
COMMENT ON FUNCTION pgembed._trigrams_statement(pgembed.embedding, text, text) IS
'SQL: the keys of the rows of which a part is spelt like the query, by pg_trgm''s word similarity, most similar first.';


CREATE OR REPLACE FUNCTION pgembed._named_config(name text)
RETURNS regconfig
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts text[] := parse_ident(name);
BEGIN
    RETURN (
        SELECT g.oid FROM pg_catalog.pg_ts_config AS g
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = g.cfgnamespace
        WHERE g.cfgname = parts[cardinality(parts)] AND (cardinality(parts) = 1 OR n.nspname = parts[1])
        ORDER BY n.nspname = 'pg_catalog' DESC, n.nspname LIMIT 1);
END;
$$;
COMMENT ON FUNCTION pgembed._named_config(text) IS
'The text search configuration that an index names: without a schema PostgreSQL''s own, if it has one of that name.';


CREATE OR REPLACE FUNCTION pgembed._bm25_index(
    e pgembed.embedding, words text, language regconfig, OUT index regclass, OUT document name
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    described text := coalesce('column ' || quote_ident(words), 'table ' || e.source)
        || coalesce(' in the language ' || language, '');
    several text;
    is_text boolean := (
        SELECT t.typcategory = 'S' FROM pg_catalog.pg_attribute AS a
        INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = e.source AND a.attname = words);
BEGIN
    PERFORM pgembed._check_words(e, words);
    IF (SELECT c.relkind = 'p' FROM pg_catalog.pg_class AS c WHERE c.oid = e.source) THEN
        RAISE EXCEPTION 'lexical is ''bm25'', but table % has partitions, each of which counts words of its own', e.source
            USING ERRCODE = 'feature_not_supported', HINT = 'Search with lexical => ''fulltext''.';
    END IF;
    -- Of several for the same the newest: who replaces an index has two for a while.
    WITH found AS (
        SELECT DISTINCT ON (a.attname, o.config) i.indexrelid::regclass AS index, a.attname AS document
        FROM pg_catalog.pg_index AS i
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        INNER JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'bm25'
        -- None for an expression, whose functions the caller's search_path would choose.
        INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        CROSS JOIN LATERAL (
            SELECT pgembed._named_config(max(p.option_value) FILTER (WHERE p.option_name = 'text_config')) AS config
            FROM pg_catalog.pg_options_to_table(c.reloptions) AS p) AS o
        WHERE i.indrelid = e.source AND i.indisvalid AND i.indpred IS NULL AND i.indnatts = 1
            AND (words IS NULL OR a.attname = words) AND (language IS NULL OR o.config = language)
        ORDER BY a.attname, o.config, i.indexrelid DESC
    )
    SELECT min(f.index::oid)::regclass, min(f.document::text),
        CASE WHEN count(*) > 1 THEN string_agg(f.index::text, ', ' ORDER BY f.index::text) END
    INTO index, document, several FROM found AS f;
    IF several IS NOT NULL THEN
        RAISE EXCEPTION '% has several BM25 indexes: %', described, several
            USING ERRCODE = 'ambiguous_parameter',
            HINT = 'Say which by the column and the language: words => ''...'', language => ''...''.';
    ELSIF index IS NULL THEN
        RAISE EXCEPTION '% has no BM25 index that holds all rows', described
            USING ERRCODE = 'undefined_object', HINT = CASE WHEN is_text IS DISTINCT FROM false THEN format(
                'Create one: CREATE INDEX ON %s USING bm25 (%s) WITH (text_config = %L); of several columns a generated one is made.',
                e.source, coalesce(quote_ident(words), quote_ident(e.content_columns[1]), '...'),
                coalesce(language, get_current_ts_config()))
            ELSE 'Name a column of text: words => ''...''.' END;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._bm25_index(pgembed.embedding, text, regconfig) IS
'The index of pg_textsearch to rank words by, and its column: the only one of the source table that holds all its rows, on the column and in the language that are named, if any are.';


CREATE OR REPLACE FUNCTION pgembed._bm25_statement(
    e pgembed.embedding, condition text, words text, language regconfig
)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home text := pgembed._words_extension('bm25', 'pg_textsearch', 'Add it to '
        'shared_preload_libraries, restart the server and create it: CREATE EXTENSION pg_textsearch');
    chosen record := pgembed._bm25_index(e, words, language);
BEGIN
    -- The distance is the score below zero, and zero for rows that say none of the words.
    -- Where no index serves, the query is read anew for each row: a long one takes seconds.
    RETURN format('SELECT %1$s, OPERATOR(pg_catalog.-) m.pgembed_distance AS pgembed_score '
        'FROM (SELECT s.*, s.pgembed_document OPERATOR(%3$s.<@>) '
        '%3$s.to_bm25query(pg_catalog.left($5, 2000), %4$L) AS pgembed_distance '
        'FROM (%2$s) AS s ORDER BY pgembed_distance LIMIT $2) AS m '
        'WHERE m.pgembed_distance OPERATOR(pg_catalog.<) 0::pg_catalog.float8 ORDER BY pgembed_score DESC, %1$s',
        pgembed._column_list(e.key_columns, 'm'),
        pgembed._search_rows(e, condition, format('%s.%I', pgembed._table_name(e.source), chosen.document)), home,
        chosen.index);
END;
$$;
COMMENT ON FUNCTION pgembed._bm25_statement(pgembed.embedding, text, text, regconfig) IS
'SQL: the keys of the rows that say the query''s words (of its first 2,000 characters), best first by BM25 over all rows of the table, in an order that an index of pg_textsearch serves.';


CREATE OR REPLACE FUNCTION pgembed._words_statement(
    e pgembed.embedding, condition text, words text, lexical text, language regconfig
)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE lexical
        WHEN 'trigram' THEN pgembed._trigrams_statement(e, condition, words)
        WHEN 'bm25' THEN pgembed._bm25_statement(e, condition, words, language)
        ELSE pgembed._fulltext_statement(e, condition, words) END;
END;
$$;
COMMENT ON FUNCTION pgembed._words_statement(pgembed.embedding, text, text, text, regconfig) IS
'SQL: the keys of the rows that pass and have to do with the query''s words (pgembed_score says how much), best first.';
