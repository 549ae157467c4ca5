-- Declaring embeddings: what CREATE INDEX is for an index.

CREATE OR REPLACE FUNCTION pgembed.create_embedding(
    source regclass,
    content text,
    model text,
    name text DEFAULT NULL,
    target_column text DEFAULT NULL,
    chunk_tokens integer DEFAULT NULL,
    chunk_overlap integer DEFAULT 0,
    storage text DEFAULT 'vector',
    index text DEFAULT 'hnsw',
    on_change text DEFAULT 'keep'
)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    keys text[] := pgembed._check_source(source);
    m pgembed.model := pgembed._find_model(model);
    e pgembed.embedding;
    content_columns text[];
    stem text;
    vector_type text;
BEGIN
    IF coalesce(content, '') = '' THEN
        RAISE EXCEPTION 'the content of an embedding is NULL or empty'
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Name a column or write a template such as ''{title}: {body}''.';
    END IF;
    content_columns := pgembed._content_columns(source, content);
    PERFORM pgembed._check_option('storage', storage, ARRAY['vector', 'halfvec', 'bit']);
    PERFORM pgembed._check_option('index', index, ARRAY['hnsw', 'ivfflat', 'none']);
    PERFORM pgembed._check_option('on_change', on_change, ARRAY['keep', 'clear']);
    PERFORM pgembed._check_chunking(chunk_tokens, chunk_overlap, target_column, m.max_tokens);
    PERFORM pgembed._check_indexable(index, storage, m.dimensions);

    stem := CASE WHEN content = content_columns[1] THEN content ELSE 'content' END;
    vector_type := pgembed._vector_type(storage, m.dimensions);
    IF chunk_tokens IS NULL THEN
        e.target := source;
        e.target_column := coalesce(target_column, pgembed._shorten(stem, 53) || '_embedding');
        IF e.target_column = ANY (content_columns || pgembed._computed_from(source, content_columns)) THEN
            RAISE EXCEPTION 'column % would be its own content', quote_ident(e.target_column)
                USING ERRCODE = 'invalid_parameter_value',
                DETAIL = 'The content is that column, or a generated column that is computed from it.',
                HINT = 'Choose another column: target_column => ''...''.';
        END IF;
    END IF;
    PERFORM pgembed._refuse_stranger(source);
    PERFORM pgembed._lock_to_declare(source, CASE
        WHEN e.target_column <> ALL (pgembed._columns(source)) THEN 'ACCESS EXCLUSIVE'
        ELSE 'SHARE ROW EXCLUSIVE' END);
    name := pgembed._check_name(
        coalesce(name, (SELECT c.relname || '_' || stem FROM pg_class AS c WHERE c.oid = source)),
        CASE WHEN chunk_tokens IS NULL THEN 63 ELSE 57 END
    );
    IF chunk_tokens IS NULL THEN
        PERFORM pgembed._add_vector_column(source, e.target_column, vector_type);
    ELSE
        e.target := pgembed._create_chunk_table(source, name, vector_type);
        e.target_column := 'embedding';
    END IF;
    PERFORM pgembed._check_free(e.target, e.target_column);

    INSERT INTO pgembed.embedding AS n (
        name, kind, source, key_columns, content, content_columns, model, target,
        target_column, chunk_tokens, chunk_overlap, storage, dimensions, distance,
        on_change, index_method, index_name, index_state
    )
    VALUES (
        name, 'kept', source, keys, content, content_columns, m.name, e.target,
        e.target_column, chunk_tokens, coalesce(chunk_overlap, 0), storage, m.dimensions,
        m.distance, on_change, index, pgembed._index_name(e.target, e.target_column),
        CASE WHEN index = 'none' THEN 'none' ELSE 'waiting' END
    )
    RETURNING n.* INTO e;
    -- For others than the schema's owner, a trigger has done that.
    IF pgembed._administers() THEN
        PERFORM pgembed._create_job_table(e);
    END IF;
    PERFORM pgembed._create_capture(e);
    PERFORM pgembed._grant_source(e);
    PERFORM pgembed._wake();
    RETURN e.name;
END;
$$;
COMMENT ON FUNCTION pgembed.create_embedding(
    regclass, text, text, text, text, integer, integer, text, text, text
) IS
'Declare that a vector column is a model of a column or template of the source, and keep it true: existing rows are embedded by the workers, changed rows again. Returns the embedding''s name.';
