-- Words and vectors: two rankings of the rows that pass, fused into one.

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
    ELSIF words = ANY (pgembed._columns(e.source)) THEN
        RETURN format(read, format('%s.%I::pg_catalog.text', table_name, words));
    ELSIF words IS NOT NULL THEN
        RAISE EXCEPTION 'table % has no column %', e.source, quote_ident(words)
            USING ERRCODE = 'undefined_column', HINT = format('Its columns are: %s.',
                array_to_string(pgembed._columns(e.source), ', '));
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


CREATE OR REPLACE FUNCTION pgembed._words_statement(e pgembed.embedding, condition text, document text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text := pgembed._column_list(e.key_columns, 'm');
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
COMMENT ON FUNCTION pgembed._words_statement(pgembed.embedding, text, text) IS
'SQL: the keys of the rows that say the query''s words, best first; any word will do, rare ones count more.';


CREATE OR REPLACE FUNCTION pgembed._trigrams_statement(e pgembed.embedding, condition text, document text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home text := (
        SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension AS x
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace
        WHERE x.extname = 'pg_trgm');
BEGIN
    IF home IS NULL THEN
        RAISE EXCEPTION 'lexical is ''trigram'', but this database does not have pg_trgm'
            USING ERRCODE = 'undefined_object',
            HINT = 'Create it: CREATE EXTENSION pg_trgm; or search with lexical => ''fulltext''.';
    END IF;
    RETURN format('SELECT %1$s, '
        '%3$s.word_similarity($5, m.pgembed_document)::pg_catalog.float8 AS pgembed_score '
        'FROM (SELECT s.* FROM (%2$s) AS s WHERE $5 OPERATOR(%3$s.<%%) s.pgembed_document) AS m '
        'ORDER BY pgembed_score DESC, %1$s LIMIT $2',
        pgembed._column_list(e.key_columns, 'm'), pgembed._search_rows(e, condition, document), home);
END;
$$;
COMMENT ON FUNCTION pgembed._trigrams_statement(pgembed.embedding, text, text) IS
'SQL: the keys of the rows of which a part is spelt like the query, by pg_trgm''s word similarity, most similar first.';


CREATE OR REPLACE FUNCTION pgembed._hybrid_statement(
    e pgembed.embedding, condition text, words text, lexical text, fusion text
)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    document text := pgembed._words_document(e, words, lexical);
    keys text := pgembed._column_list(e.key_columns, '(u.item)');
    score text := CASE fusion
        WHEN 'rrf' THEN 'u.weight OPERATOR(pg_catalog./) (60 OPERATOR(pg_catalog.+) u.place)'
        -- What is infinitely far or near is at the end of the scale, which is that of the others.
        ELSE 'COALESCE(u.weight OPERATOR(pg_catalog.*) '
            '(LEAST(GREATEST(u.score, u.low), u.high) OPERATOR(pg_catalog.-) u.low) OPERATOR(pg_catalog./) '
            'GREATEST(u.high OPERATOR(pg_catalog.-) u.low, 1e-12::pg_catalog.float8), 0)' END;
    finite text := 'FILTER (WHERE s.distance OPERATOR(pg_catalog.*) 0 OPERATOR(pg_catalog.=) 0)';
BEGIN
    RETURN format('WITH w AS MATERIALIZED (%1$s), u AS ('
        'SELECT s.item, $13 AS weight, pg_catalog.row_number() OVER () AS place, '
        'OPERATOR(pg_catalog.-) s.distance AS score, '
        'pg_catalog.min(OPERATOR(pg_catalog.-) s.distance) %7$s OVER () AS low, '
        'pg_catalog.max(OPERATOR(pg_catalog.-) s.distance) %7$s OVER () AS high '
        'FROM pgembed.search(NULL::%2$s, $1, $2, $7, $8, $9, $10, $11) AS s '
        'UNION ALL SELECT (t.*)::%2$s, $12, '
        'pg_catalog.row_number() OVER (ORDER BY w.pgembed_score DESC, %5$s), w.pgembed_score, '
        '0::pg_catalog.float8, pg_catalog.max(w.pgembed_score) OVER () '
        'FROM w INNER JOIN %2$s AS t ON %3$s) '
        'SELECT (pg_catalog.array_agg(u.item))[1], pg_catalog.sum(%6$s)::pg_catalog.float8 AS score '
        'FROM u GROUP BY %4$s ORDER BY score DESC, %4$s LIMIT $4',
        CASE lexical WHEN 'trigram' THEN pgembed._trigrams_statement(e, condition, document)
            ELSE pgembed._words_statement(e, condition, document) END,
        e.source, pgembed._same_key(e, 't', 'w'), keys, pgembed._column_list(e.key_columns, 'w'), score,
        finite);
END;
$$;
COMMENT ON FUNCTION pgembed._hybrid_statement(pgembed.embedding, text, text, text, text) IS
'SQL: the ranking by words and the ranking by vectors, fused. Its parameters: $1 vector, $2 depth of the rankings, $3 values of the filter, $4 k, $5 query text, $6 language, $7 to $11 the rest of search, $12 and $13 weights of words and vectors, $14 rows of the table.';


CREATE OR REPLACE FUNCTION pgembed._check_hybrid(
    query text, k integer, depth integer, lexical text, fusion text,
    word_weight float8, vector_weight float8
)
RETURNS integer
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._check_option('lexical', lexical, ARRAY['fulltext', 'trigram']);
    PERFORM pgembed._check_option('fusion', fusion, ARRAY['rrf', 'scores']);
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query is NULL'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass the text to search for.';
    ELSIF coalesce(depth, k) NOT BETWEEN k AND 10000 THEN
        RAISE EXCEPTION 'depth is %, but must be from k (%) to 10000', depth, k
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'That many rows of each ranking are fused.';
    ELSIF NOT coalesce(word_weight BETWEEN 0 AND 1e6 AND vector_weight BETWEEN 0 AND 1e6, false) THEN
        RAISE EXCEPTION 'the weights are % and %, but must be from 0 to 1000000', word_weight, vector_weight
            USING ERRCODE = 'invalid_parameter_value', HINT = '1 and 1 count both alike.';
    END IF;
    RETURN coalesce(depth, least(greatest(50, 5 * k), 10000));
END;
$$;
COMMENT ON FUNCTION pgembed._check_hybrid(text, integer, integer, text, text, float8, float8) IS
'The depth of the rankings to fuse; an error when the arguments make no sense.';


CREATE OR REPLACE FUNCTION pgembed.hybrid_search(
    source anyelement,
    query text,
    k integer DEFAULT 10,
    filter jsonb DEFAULT NULL,
    predicate text DEFAULT NULL,
    embedding text DEFAULT NULL,
    mode text DEFAULT 'auto',
    recall float8 DEFAULT 0.99,
    query_vector @extschema:vector@.vector DEFAULT NULL,
    words text DEFAULT NULL,
    language regconfig DEFAULT NULL,
    fusion text DEFAULT 'rrf',
    word_weight float8 DEFAULT 1,
    vector_weight float8 DEFAULT 1,
    depth integer DEFAULT NULL,
    lexical text DEFAULT 'fulltext'
)
RETURNS TABLE (item anyelement, score float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10 COST 100000
AS $$
DECLARE
    e pgembed.embedding := pgembed._search_embedding(pg_catalog.pg_typeof(source), embedding);
    c pg_catalog.record;
BEGIN
    PERFORM pgembed._check_arguments(k, predicate, mode, recall);
    depth := pgembed._check_hybrid(query, k, depth, lexical, fusion, word_weight, vector_weight);
    query_vector := COALESCE(query_vector,
        pgembed._query_vector(pg_catalog.pg_typeof(source), query, embedding));
    PERFORM pgembed._check_query(e, query_vector);
    c := pgembed._search_condition(e, filter, predicate);
    IF predicate IS NOT NULL THEN
        PERFORM pgembed._estimate(c.probe, query_vector, k, c.arguments);
        PERFORM pgembed._estimate(c.probe_predicate, query_vector, k, c.arguments);
    END IF;
    RETURN QUERY EXECUTE pgembed._hybrid_statement(e, c.condition, words, lexical, fusion)
    USING query_vector, depth, c.arguments, k, query,
        COALESCE(language, pg_catalog.get_current_ts_config()),
        filter, predicate, e.name, mode, recall, word_weight, vector_weight,
        (SELECT t.rows FROM pgembed._table_size(e.source) AS t);
EXCEPTION
    WHEN undefined_column OR syntax_error OR cardinality_violation OR null_value_not_allowed THEN
        PERFORM pgembed._check_fits(e);
        RAISE;
END;
$$;
COMMENT ON FUNCTION pgembed.hybrid_search(
    anyelement, text, integer, jsonb, text, text, text, float8, @extschema:vector@.vector, text,
    regconfig, text, float8, float8, integer, text
) IS
'The k rows that are best by words and by vectors together, best first. Words: any word of the query, in the tsvector or text column that words names, else the only tsvector column, else the content of the embedding, under the text search configuration language. lexical => trigram ranks by spelling instead: by the word similarity of pg_trgm, which must be installed, from pg_trgm.word_similarity_threshold on; it finds misspelt words, and has no language. fusion: rrf adds weight / (60 + rank) over both rankings; scores adds the weighted scores, each scaled to 0 to 1. depth rows of each ranking are fused (5 k, at least 50). The rest as in search.';
