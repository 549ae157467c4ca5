-- What a declaration makes: the vector column or chunk table, and the job table.

CREATE OR REPLACE FUNCTION pgembed._operator_class(storage text, distance text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE
    WHEN storage = 'bit' THEN 'bit_hamming_ops'
    ELSE storage || CASE distance
        WHEN 'cosine' THEN '_cosine_ops'
        WHEN 'l2' THEN '_l2_ops'
        ELSE '_ip_ops'
    END
END;
COMMENT ON FUNCTION pgembed._operator_class(text, text) IS
'The name of pgvector''s operator class that serves a distance on a storage.';


CREATE OR REPLACE FUNCTION pgembed._lock_to_declare(source regclass, lock_mode text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE %s IN %s MODE', source, lock_mode);
            IF pg_try_advisory_xact_lock(pgembed._declaration_lock()) THEN
                RETURN;
            END IF;
            RAISE SQLSTATE 'PE001';
        EXCEPTION
            WHEN SQLSTATE 'PE001' THEN NULL;  -- The table is let go of.
            WHEN insufficient_privilege THEN
                RETURN;  -- What is to be done with the table will say what is missing.
        END;
        BEGIN
            PERFORM pg_advisory_xact_lock(pgembed._declaration_lock());
            -- Its turn has come: if this were let go of again, of many that wait none would get on.
            BEGIN
                EXECUTE format('LOCK TABLE %s IN %s MODE NOWAIT', source, lock_mode);
                RETURN;
            EXCEPTION
                WHEN lock_not_available THEN RAISE SQLSTATE 'PE001';
            END;
        EXCEPTION
            WHEN SQLSTATE 'PE001' THEN NULL;  -- So is the other lock, which was waited for.
        END;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._lock_to_declare(regclass, text) IS
'Lock a table, and other declarations out. While it waits for one of both, it does not hold the other: another transaction may have declared something and then ask for this table, or the reverse.';


CREATE OR REPLACE FUNCTION pgembed._add_vector_column(source regclass, column_name text, vector_type text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    present text := pgembed._column_type(source, column_name);
    writable boolean;
BEGIN
    IF octet_length(column_name) NOT BETWEEN 1 AND 63 THEN
        RAISE EXCEPTION 'the target column % is empty or longer than 63 bytes', quote_literal(column_name)
            USING ERRCODE = 'invalid_name',
            HINT = 'Choose another: target_column => ''...''.';
    END IF;
    IF present IS NULL THEN
        -- Another transaction may add it while this one waits for the table.
        EXECUTE format('ALTER TABLE %s ADD COLUMN IF NOT EXISTS %I %s', source, column_name, vector_type);
        present := pgembed._column_type(source, column_name);
    END IF;
    IF replace(present, '"', '') <> replace(vector_type, '"', '') THEN
        RAISE EXCEPTION 'column % of table % has type %, not %',
            quote_ident(column_name), source, present, vector_type
            USING ERRCODE = 'datatype_mismatch',
            HINT = 'Choose another column (target_column => ''...''), or change its type.';
    END IF;
    SELECT NOT a.attnotnull AND a.attgenerated = '' INTO writable
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = source AND a.attname = column_name;
    IF NOT writable THEN
        RAISE EXCEPTION 'column % of table % is generated, or cannot be NULL',
            quote_ident(column_name), source
            USING ERRCODE = 'invalid_table_definition',
            HINT = 'A row has no vector until a worker wrote it: choose another column '
                '(target_column => ''...''), or drop NOT NULL.';
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
    chunk_table text := pgembed._in_schema_of(source, name || '_chunk');
BEGIN
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
        pgembed._key_list(keys)
    );
    EXECUTE format('COMMENT ON TABLE %s IS %L', chunk_table,
        format('Chunks of %s and their vectors, kept by pgembed.', source));
    RETURN chunk_table::regclass;
END;
$$;
COMMENT ON FUNCTION pgembed._create_chunk_table(regclass, text, text) IS
'Create NAME_chunk beside the source: its key, the chunk''s number, text and vector.';


CREATE OR REPLACE FUNCTION pgembed._open_to_hidden(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN e.target <> e.source AND EXISTS (
    SELECT
    FROM pg_catalog.pg_class AS s
    INNER JOIN pg_catalog.pg_class AS t ON t.oid = e.target
    WHERE s.oid = e.source AND s.relrowsecurity AND NOT t.relrowsecurity
);
COMMENT ON FUNCTION pgembed._open_to_hidden(pgembed.embedding) IS
'Whether whoever may read the chunk table reads there what row-level security of the source hides from him.';


CREATE OR REPLACE FUNCTION pgembed._closed_to_all(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN e.target <> e.source AND EXISTS (
    SELECT
    FROM pg_catalog.pg_class AS s
    INNER JOIN pg_catalog.pg_class AS t ON t.oid = e.target
    WHERE s.oid = e.source AND s.relrowsecurity AND t.relrowsecurity
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_policy AS p WHERE p.polrelid = e.target)
);
COMMENT ON FUNCTION pgembed._closed_to_all(pgembed.embedding) IS
'Whether the chunk table has row-level security without a policy: its own was dropped, as it must be before the key changes its type.';


CREATE OR REPLACE FUNCTION pgembed._is_leakproof(source regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN NOT EXISTS (
    SELECT
    FROM pg_catalog.pg_index AS i
    CROSS JOIN LATERAL unnest(i.indclass::oid[]) AS k (opclass)
    INNER JOIN pg_catalog.pg_opclass AS c ON c.oid = k.opclass
    INNER JOIN pg_catalog.pg_amop AS m
        ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3
        AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
    INNER JOIN pg_catalog.pg_operator AS o ON o.oid = m.amopopr
    INNER JOIN pg_catalog.pg_proc AS p ON p.oid = o.oprcode
    WHERE i.indrelid = source AND i.indisprimary AND NOT p.proleakproof
);
COMMENT ON FUNCTION pgembed._is_leakproof(regclass) IS
'Whether the equality of a primary key tells nothing about its operands: only then PostgreSQL looks a key up in the index of a table with policies.';


CREATE OR REPLACE FUNCTION pgembed._follow_row_security(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    guarded boolean := EXISTS (
        SELECT FROM pg_catalog.pg_policy AS p
        WHERE p.polrelid = e.target AND p.polname = 'pgembed_source' AND e.target <> e.source
    );
    -- Those would end with row-level security; of rows that are not hidden, ours shows all chunks.
    has_others boolean := EXISTS (
        SELECT FROM pg_catalog.pg_policy AS p
        WHERE p.polrelid = e.target AND p.polname <> 'pgembed_source'
    );
BEGIN
    IF guarded AND NOT has_others AND NOT (SELECT c.relrowsecurity FROM pg_catalog.pg_class AS c WHERE c.oid = e.source) THEN
        EXECUTE format('DROP POLICY pgembed_source ON %s', e.target);
        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', e.target);
    ELSIF pgembed._open_to_hidden(e) OR pgembed._closed_to_all(e) THEN
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', e.target);
        IF guarded THEN
            RETURN;
        END IF;
        -- The subquery reads the source as whoever reads the chunks. OFFSET has it look the key of
        -- each chunk up: else a search through an index would first read all keys of the source.
        EXECUTE format('CREATE POLICY pgembed_source ON %1$s FOR SELECT '
            'USING (EXISTS (SELECT FROM %2$s AS s WHERE %3$s%4$s))',
            e.target, e.source, pgembed._key_match(e.source, 's', e.target::text),
            CASE WHEN pgembed._is_leakproof(e.source) THEN ' OFFSET 0' ELSE '' END);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._follow_row_security(pgembed.embedding) IS
'Let whoever reads chunks see those of the rows that he may see, as long as the source has row-level security, or the chunk table policies of its owner''s.';


CREATE OR REPLACE FUNCTION pgembed._create_job_table(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    stem text := 'job_' || e.id;
BEGIN
    -- A dump of the schema alone brings the table, and not the row of the embedding that it was of.
    IF to_regclass(job) IS NOT NULL THEN
        EXECUTE format('DROP TABLE %s', job);
    END IF;
    EXECUTE format('CREATE TABLE %s (%s) INHERITS (pgembed.job)', job, pgembed._key_definitions(e.source));
    -- A publication FOR ALL TABLES forbids to update a table whose rows it cannot tell apart.
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', job);
    EXECUTE format('CREATE INDEX %I ON %s (%s)', stem || '_key', job, pgembed._key_list(e.key_columns));
    EXECUTE format('CREATE INDEX %I ON %s (pgembed_available_at) '
        'WHERE pgembed_available_at IS NOT NULL', stem || '_available', job);
    EXECUTE format('CREATE INDEX %I ON %s (pgembed_lease, pgembed_slot) '
        'WHERE pgembed_lease IS NOT NULL', stem || '_lease', job);
    EXECUTE format('COMMENT ON TABLE %s IS %L', job, format(
        'The state of each row of %s in the embedding %s: when to work on it '
        '(pgembed_available_at; NULL: nothing to do), who holds it (pgembed_lease, '
        'pgembed_slot), what was embedded (pgembed_fingerprint), what went wrong '
        '(pgembed_error).', e.source, e.name));
    PERFORM pgembed._grant_queue(e);
END;
$$;
COMMENT ON FUNCTION pgembed._create_job_table(pgembed.embedding) IS
'Create the job table of an embedding, with the types of the source''s key.';


CREATE OR REPLACE FUNCTION pgembed._index_name(target regclass, column_name text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT v.name
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN generate_series(0, 99) AS i
    CROSS JOIN LATERAL (
        -- 63 bytes, less what is added here, less an underscore and the oid of a partition.
        SELECT pgembed._shorten(c.relname || '_' || column_name, 41) || '_'
            || left(md5(concat(n.nspname, '.', c.relname, '.', column_name, nullif(i, 0))), 6) || '_idx'
    ) AS v (name)
    WHERE c.oid = target AND NOT EXISTS (
        -- Tables swap names, and keep their indexes.
        SELECT
        FROM pg_catalog.pg_class AS o
        LEFT JOIN pg_catalog.pg_index AS x ON x.indexrelid = o.oid
        WHERE o.relname = v.name AND o.relnamespace = c.relnamespace
            AND x.indrelid IS DISTINCT FROM target::oid
    ) AND NOT EXISTS (
        SELECT FROM pgembed.embedding AS e WHERE e.index_name = v.name AND e.target <> _index_name.target
    )
    ORDER BY i LIMIT 1
);
COMMENT ON FUNCTION pgembed._index_name(regclass, text) IS
'A name for the vector index: short enough, and the same for the same column, unless another table has an index of that name or is to get one.';
