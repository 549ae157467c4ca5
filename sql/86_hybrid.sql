-- Words and vectors: two rankings of the rows that pass, fused into one.

CREATE OR REPLACE FUNCTION pgembed._hybrid_statement(
    e pgembed.embedding, condition text, words text, lexical text, language regconfig, fusion text
)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
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
        pgembed._words_statement(e, condition, words, lexical, language), e.source,
        pgembed._same_key(e, 't', 'w'), keys, pgembed._column_list(e.key_columns, 'w'), score, finite);
END;
$$;
COMMENT ON FUNCTION pgembed._hybrid_statement(pgembed.embedding, text, text, text, regconfig, text) IS
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
    PERFORM pgembed._check_option('lexical', lexical, ARRAY['fulltext', 'trigram', 'bm25']);
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
    RETURN QUERY EXECUTE pgembed._hybrid_statement(e, c.condition, words, lexical, language, fusion)
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
'The k rows that are best by words and by vectors together, best first. Words: any word of the query, in the tsvector or text column that words names, else the only tsvector column, else the content of the embedding, under the text search configuration language. lexical => trigram ranks by spelling instead: by the word similarity of pg_trgm, which must be installed, from pg_trgm.word_similarity_threshold on; it finds misspelt words, and has no language. lexical => bm25 ranks by BM25 over all rows of the table, as an index of pg_textsearch, which must be installed, has them: the only one on a column and not partial, or that on the column words in the configuration language; the first 2,000 characters of the query are read, and tables with partitions refused. fusion: rrf adds weight / (60 + rank) over both rankings; scores adds the weighted scores, each scaled to 0 to 1. depth rows of each ranking are fused (5 k, at least 50). The rest as in search.';
