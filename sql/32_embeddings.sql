-- Declaring embeddings: what CREATE INDEX is for an index.

CREATE OR REPLACE FUNCTION pgembed._check_source(source regclass)
RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c pg_catalog.pg_class;
    keys text[];
BEGIN
    IF source IS NULL THEN
        RAISE EXCEPTION 'the source table is NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Name the table to embed.';
    END IF;
    SELECT r.* INTO c FROM pg_catalog.pg_class AS r WHERE r.oid = source;
    IF c.relkind NOT IN ('r', 'p') OR c.relpersistence = 't'
        OR c.relnamespace IN ('pg_catalog'::regnamespace, 'pgembed'::regnamespace)
    THEN
        RAISE EXCEPTION '% is not a table that rows can be kept for', source
            USING ERRCODE = 'wrong_object_type',
            HINT = 'A source is an ordinary or partitioned table; not a view, '
                'a temporary, a foreign or a system table.';
    END IF;
    keys := pgembed._key_columns(source);
    IF keys IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key', source
            USING ERRCODE = 'invalid_table_definition',
            HINT = format('Add one: ALTER TABLE %s ADD PRIMARY KEY (...).', source);
    END IF;
    RETURN keys;
END;
$$;
COMMENT ON FUNCTION pgembed._check_source(regclass) IS
'The key columns of a table that can be a source; an error that says why it cannot.';


CREATE OR REPLACE FUNCTION pgembed._check_option(name text, value text, allowed text[])
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF value IS NULL OR value <> ALL (allowed) THEN
        RAISE EXCEPTION '% is %, which is not a choice', name, coalesce(quote_literal(value), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = format('Choose one of: %s.', array_to_string(allowed, ', '));
    END IF;
    RETURN value;
END;
$$;
COMMENT ON FUNCTION pgembed._check_option(text, text, text[]) IS
'The value of an option, when it is one of those allowed.';


CREATE OR REPLACE FUNCTION pgembed._check_name(name text, longest integer)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF coalesce(name, '') = '' OR octet_length(name) > longest THEN
        RAISE EXCEPTION 'the embedding name % is empty or longer than % bytes',
            coalesce(quote_literal(name), 'NULL'), longest
            USING ERRCODE = 'invalid_name', HINT = 'Choose another: name => ''...''.';
    END IF;
    IF EXISTS (SELECT FROM pgembed.embedding AS e WHERE e.name = _check_name.name) THEN
        RAISE EXCEPTION 'there is already an embedding %', quote_literal(name)
            USING ERRCODE = 'duplicate_object',
            HINT = 'Choose another name (name => ''...''), or drop it first: '
                'SELECT pgembed.drop_embedding(...).';
    END IF;
    RETURN name;
END;
$$;
COMMENT ON FUNCTION pgembed._check_name(text, integer) IS
'The name of a new embedding: not empty, short enough, not taken.';


CREATE OR REPLACE FUNCTION pgembed._vector_type(storage text, dimensions integer)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE storage
    WHEN 'bit' THEN format('bit(%s)', dimensions)
    WHEN 'halfvec' THEN format('@extschema:vector@.halfvec(%s)', dimensions)
    ELSE format('@extschema:vector@.vector(%s)', dimensions)
END;
COMMENT ON FUNCTION pgembed._vector_type(text, integer) IS
'SQL: the type of a vector column, qualified.';


CREATE OR REPLACE FUNCTION pgembed._check_indexable(index text, storage text, dimensions integer)
RETURNS void
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    most integer := CASE storage WHEN 'vector' THEN 2000 WHEN 'halfvec' THEN 4000 ELSE 64000 END;
BEGIN
    IF index <> 'none' AND dimensions > most THEN
        RAISE EXCEPTION 'an index on % holds at most % dimensions, this model has %',
            storage, most, dimensions
            USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Use storage => ''halfvec'' (4,000) or ''bit'' (64,000), or index => ''none''.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_indexable(text, text, integer) IS
'An error when pgvector cannot index a vector of so many dimensions.';


CREATE OR REPLACE FUNCTION pgembed._column_type(relation regclass, column_name text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format_type(a.atttypid, a.atttypmod)
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = column_name AND NOT a.attisdropped
);
COMMENT ON FUNCTION pgembed._column_type(regclass, text) IS
'The type of a column as SQL, qualified unless it is built in; NULL when there is no such column.';


CREATE OR REPLACE FUNCTION pgembed._add_vector_column(source regclass, column_name text, vector_type text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    present text := pgembed._column_type(source, column_name);
BEGIN
    IF present IS NULL THEN
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', source, column_name, vector_type);
    ELSIF replace(present, '"', '') <> replace(vector_type, '"', '') THEN
        RAISE EXCEPTION 'column % of table % has type %, not %',
            quote_ident(column_name), source, present, vector_type
            USING ERRCODE = 'datatype_mismatch',
            HINT = 'Choose another column (target_column => ''...''), or change its type.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._add_vector_column(regclass, text, text) IS
'Add the vector column to the source, or accept one of exactly that type.';


CREATE OR REPLACE FUNCTION pgembed._key_definitions(source regclass)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        format(
            '%I %s%s NOT NULL', k.name, pgembed._column_type(source, k.name),
            CASE WHEN a.attcollation <> t.typcollation THEN
                ' COLLATE ' || a.attcollation::regcollation::text ELSE '' END
        ),
        ', ' ORDER BY k.ordinal
    )
    FROM unnest(pgembed._key_columns(source)) WITH ORDINALITY AS k (name, ordinal)
    INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = source AND a.attname = k.name
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
);
COMMENT ON FUNCTION pgembed._key_definitions(regclass) IS
'SQL: column definitions that repeat the primary key''s names, types and collations.';


CREATE OR REPLACE FUNCTION pgembed._create_chunk_table(source regclass, name text, vector_type text)
RETURNS regclass
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text[] := pgembed._key_columns(source);
    chunk_table text;
BEGIN
    SELECT format('%I.%I', n.nspname, name || '_chunk') INTO chunk_table
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = source;
    IF to_regclass(chunk_table) IS NOT NULL OR keys && ARRAY['chunk', 'content', 'embedding'] THEN
        RAISE EXCEPTION 'the chunk table % cannot be created', chunk_table
            USING ERRCODE = 'duplicate_table',
            DETAIL = 'It exists, or a key column of the source is named chunk, content or embedding.',
            HINT = 'Choose another name (name => ''...''), or drop what is in the way.';
    END IF;
    EXECUTE format(
        'CREATE TABLE %s (%s, chunk integer NOT NULL, content text NOT NULL, '
        'embedding %s NOT NULL, PRIMARY KEY (%s, chunk))',
        chunk_table, pgembed._key_definitions(source), vector_type,
        (SELECT string_agg(quote_ident(k), ', ') FROM unnest(keys) AS k)
    );
    EXECUTE format('COMMENT ON TABLE %s IS %L', chunk_table,
        format('Chunks of %s and their vectors, kept by pgembed.', source));
    RETURN chunk_table::regclass;
END;
$$;
COMMENT ON FUNCTION pgembed._create_chunk_table(regclass, text, text) IS
'Create NAME_chunk beside the source: its key, the chunk''s number, text and vector.';


CREATE OR REPLACE FUNCTION pgembed._create_job_table(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    stem text := 'job_' || e.id;
BEGIN
    EXECUTE format(
        'CREATE TABLE %s (%s, '
        'pgembed_changed_at timestamptz, '
        'pgembed_available_at timestamptz DEFAULT now(), '
        'pgembed_version integer NOT NULL DEFAULT 0, '
        'pgembed_attempts smallint NOT NULL DEFAULT 0, '
        'pgembed_slot integer, pgembed_lease bigint, '
        'pgembed_fingerprint uuid, pgembed_error text)',
        job, pgembed._key_definitions(e.source)
    );
    EXECUTE format('CREATE INDEX %I ON %s (%s)', stem || '_key', job,
        (SELECT string_agg(quote_ident(k), ', ') FROM unnest(e.key_columns) AS k));
    EXECUTE format('CREATE INDEX %I ON %s (pgembed_available_at) '
        'WHERE pgembed_available_at IS NOT NULL', stem || '_available', job);
    EXECUTE format('CREATE INDEX %I ON %s (pgembed_lease, pgembed_slot) '
        'WHERE pgembed_lease IS NOT NULL', stem || '_lease', job);
    EXECUTE format('COMMENT ON TABLE %s IS %L', job, format(
        'The state of each row of %s in the embedding %s: when to work on it '
        '(pgembed_available_at; NULL: nothing to do), who holds it (pgembed_lease, '
        'pgembed_slot), what was embedded (pgembed_fingerprint), what went wrong '
        '(pgembed_error).', e.source, e.name));
END;
$$;
COMMENT ON FUNCTION pgembed._create_job_table(pgembed.embedding) IS
'Create the job table of an embedding, with the types of the source''s key.';


CREATE OR REPLACE FUNCTION pgembed._index_name(target regclass, column_name text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT left(c.relname || '_' || column_name, 45)
        || '_' || left(md5(n.nspname || '.' || c.relname || '.' || column_name), 6) || '_idx'
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = target
);
COMMENT ON FUNCTION pgembed._index_name(regclass, text) IS
'A name for the vector index: short enough, and always the same for the same column.';


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
    name := pgembed._check_name(
        coalesce(name, (SELECT c.relname || '_' || stem FROM pg_class AS c WHERE c.oid = source)),
        CASE WHEN chunk_tokens IS NULL THEN 63 ELSE 57 END
    );
    vector_type := pgembed._vector_type(storage, m.dimensions);
    e.source := source;
    IF chunk_tokens IS NULL THEN
        e.target := source;
        e.target_column := coalesce(target_column, stem || '_embedding');
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
    PERFORM pgembed._create_job_table(e);
    PERFORM pgembed._create_capture(e);
    PERFORM pg_notify('pgembed_work', '');
    RETURN e.name;
END;
$$;
COMMENT ON FUNCTION pgembed.create_embedding(
    regclass, text, text, text, text, integer, integer, text, text, text
) IS
'Declare that a vector column is a model of a column or template of the source, and keep it true: existing rows are embedded by the workers, changed rows again. Returns the embedding''s name.';


CREATE OR REPLACE FUNCTION pgembed._check_chunking(
    chunk_tokens integer, chunk_overlap integer, target_column text, max_tokens integer
)
RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF chunk_tokens IS NULL THEN
        IF coalesce(chunk_overlap, 0) <> 0 THEN
            RAISE EXCEPTION 'chunk_overlap is % without chunk_tokens', chunk_overlap
                USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Set chunk_tokens to cut the content into chunks.';
        END IF;
    ELSIF chunk_tokens NOT BETWEEN 8 AND max_tokens
        OR coalesce(chunk_overlap, 0) NOT BETWEEN 0 AND chunk_tokens - 1
    THEN
        RAISE EXCEPTION 'chunk_tokens % with chunk_overlap % does not fit the model',
            chunk_tokens, chunk_overlap
            USING ERRCODE = 'invalid_parameter_value',
            HINT = format('chunk_tokens is from 8 to the model''s %s; chunk_overlap is less than chunk_tokens.', max_tokens);
    ELSIF target_column IS NOT NULL THEN
        RAISE EXCEPTION 'target_column % with chunk_tokens', quote_literal(target_column)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Chunks have a table of their own: leave target_column out.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_chunking(integer, integer, text, integer) IS
'An error when the chunking options contradict each other or the model.';


CREATE OR REPLACE FUNCTION pgembed._check_free(target regclass, target_column text)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    other text;
BEGIN
    SELECT e.name INTO other
    FROM pgembed.embedding AS e
    WHERE e.target = _check_free.target AND e.target_column = _check_free.target_column;
    IF FOUND THEN
        RAISE EXCEPTION 'column % of table % already belongs to the embedding %',
            quote_ident(target_column), target, quote_literal(other)
            USING ERRCODE = 'duplicate_object',
            HINT = 'Choose another column (target_column => ''...''), or drop that embedding first.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_free(regclass, text) IS
'An error when another embedding owns the vector column.';


CREATE OR REPLACE FUNCTION pgembed._adopted_type(source regclass, vector_column text)
RETURNS TABLE (storage text, dimensions integer)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT
        t.typname::text,
        nullif(a.atttypmod, -1)
    INTO storage, dimensions
    FROM pg_catalog.pg_attribute AS a
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = source AND a.attname = vector_column AND NOT a.attisdropped
        AND a.atttypid IN (
            '@extschema:vector@.vector'::regtype, '@extschema:vector@.halfvec'::regtype,
            'pg_catalog.bit'::regtype
        );
    IF NOT FOUND THEN
        RAISE EXCEPTION 'table % has no vector column %', source, coalesce(quote_ident(vector_column), 'NULL')
            USING ERRCODE = 'undefined_column',
            HINT = format('Its columns are: %s. A vector column is of type vector, halfvec or bit.',
                array_to_string(pgembed._columns(source), ', '));
    END IF;
    IF dimensions IS NULL AND storage <> 'bit' THEN
        EXECUTE format('SELECT @extschema:vector@.vector_dims(%1$I) FROM %2$s WHERE %1$I IS NOT NULL LIMIT 1',
            vector_column, source) INTO dimensions;
    END IF;
    IF dimensions IS NULL THEN
        RAISE EXCEPTION 'the dimensions of column % of table % are not known', quote_ident(vector_column), source
            USING ERRCODE = 'invalid_table_definition',
            HINT = format('State them: ALTER TABLE %s ALTER COLUMN %I TYPE %s(N).', source, vector_column, storage);
    END IF;
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION pgembed._adopted_type(regclass, text) IS
'Storage and dimensions of a vector column that the application fills.';


CREATE OR REPLACE FUNCTION pgembed._present_index(target regclass, target_column text, distance text)
RETURNS TABLE (method text, index_name text)
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.amname::text, c.relname::text
    FROM pg_catalog.pg_index AS i
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    INNER JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
    INNER JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
    INNER JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = target AND i.indisvalid AND i.indpred IS NULL AND i.indnatts = 1
        AND m.amname IN ('hnsw', 'ivfflat') AND a.attname = target_column
        AND o.opcname LIKE '%\_' || CASE distance WHEN 'inner_product' THEN 'ip' ELSE distance END
            || '\_ops'
    ORDER BY m.amname, c.relname
    LIMIT 1;
$$;
COMMENT ON FUNCTION pgembed._present_index(regclass, text, text) IS
'A valid vector index over the whole column that serves the distance, if there is one.';


CREATE OR REPLACE FUNCTION pgembed.adopt_vectors(
    source regclass,
    vector_column text,
    name text DEFAULT NULL,
    distance text DEFAULT 'cosine',
    model text DEFAULT NULL
)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    keys text[] := pgembed._check_source(source);
    m pgembed.model;
    t record;
    present record;
BEGIN
    PERFORM pgembed._check_option('distance', distance, ARRAY['cosine', 'l2', 'inner_product']);
    SELECT a.storage, a.dimensions INTO t FROM pgembed._adopted_type(source, vector_column) AS a;
    IF model IS NOT NULL THEN
        m := pgembed._find_model(model);
        IF m.dimensions <> t.dimensions THEN
            RAISE EXCEPTION 'model % has % dimensions, column % has %',
                quote_literal(model), m.dimensions, quote_ident(vector_column), t.dimensions
                USING ERRCODE = 'datatype_mismatch',
                HINT = 'Name the model that made these vectors, or none.';
        END IF;
    END IF;
    name := pgembed._check_name(
        coalesce(name, (SELECT c.relname || '_' || vector_column FROM pg_class AS c WHERE c.oid = source)),
        63
    );
    PERFORM pgembed._check_free(source, vector_column);
    SELECT p.method, p.index_name INTO present
    FROM pgembed._present_index(source, vector_column, distance) AS p;
    INSERT INTO pgembed.embedding (
        name, kind, source, key_columns, model, target, target_column, storage,
        dimensions, distance, index_method, index_name, index_state, enqueued
    )
    VALUES (
        name, 'adopted', source, keys, model, source, vector_column, t.storage,
        t.dimensions, distance, coalesce(present.method, 'none'), present.index_name,
        CASE WHEN present.method IS NULL THEN 'none' ELSE 'ready' END, true
    );
    RETURN name;
END;
$$;
COMMENT ON FUNCTION pgembed.adopt_vectors(regclass, text, text, text, text) IS
'Let pgembed search a vector column that the application fills; with a model, by text as well. Returns the embedding''s name.';


CREATE OR REPLACE FUNCTION pgembed.drop_embedding(name text, drop_vectors boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(name);
    source_exists boolean := pgembed._exists(e.source);
BEGIN
    IF e.kind = 'kept' THEN
        IF source_exists THEN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', e.source);
        END IF;
        PERFORM pgembed._drop_capture(e);
        EXECUTE format('DROP TABLE IF EXISTS %s', pgembed._job_table(e.id));
        IF drop_vectors AND pgembed._exists(e.target) THEN
            IF e.target <> e.source THEN
                EXECUTE format('DROP TABLE %s', e.target);
            ELSE
                EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', e.target, e.target_column);
            END IF;
        END IF;
    END IF;
    DELETE FROM pgembed.embedding AS d WHERE d.id = e.id;
END;
$$;
COMMENT ON FUNCTION pgembed.drop_embedding(text, boolean) IS
'Stop keeping an embedding. The vectors stay where they are, unless drop_vectors is true; vectors that the application wrote always stay.';


CREATE OR REPLACE FUNCTION pgembed.pause_embedding(name text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(name);
BEGIN
    UPDATE pgembed.embedding AS u SET paused = true WHERE u.id = e.id;
END;
$$;
COMMENT ON FUNCTION pgembed.pause_embedding(text) IS
'Let the workers leave an embedding alone; changes go on being captured.';


CREATE OR REPLACE FUNCTION pgembed.resume_embedding(name text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(name);
BEGIN
    UPDATE pgembed.embedding AS u SET paused = false, blocked = NULL WHERE u.id = e.id;
    PERFORM pg_notify('pgembed_work', '');
END;
$$;
COMMENT ON FUNCTION pgembed.resume_embedding(text) IS
'Let the workers go on with an embedding that was paused or blocked.';
