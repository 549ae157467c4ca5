-- Vector indexes: built by a worker when the backfill is done, CONCURRENTLY.

CREATE OR REPLACE FUNCTION pgembed._operator_class(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN '@extschema:vector@.' || CASE
    WHEN e.storage = 'bit' THEN 'bit_hamming_ops'
    ELSE e.storage || CASE e.distance
        WHEN 'cosine' THEN '_cosine_ops'
        WHEN 'l2' THEN '_l2_ops'
        ELSE '_ip_ops'
    END
END;
COMMENT ON FUNCTION pgembed._operator_class(pgembed.embedding) IS
'SQL: the operator class that serves the embedding''s distance on its storage.';


CREATE OR REPLACE FUNCTION pgembed._index_options(e pgembed.embedding)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows bigint;
BEGIN
    IF e.index_method <> 'ivfflat' THEN
        RETURN '';
    END IF;
    EXECUTE format('SELECT count(%I) FROM %s', e.target_column, e.target) INTO rows;
    RETURN format(' WITH (lists = %s)',
        greatest(1, CASE WHEN rows > 1000000 THEN sqrt(rows)::bigint ELSE rows / 1000 END));
END;
$$;
COMMENT ON FUNCTION pgembed._index_options(pgembed.embedding) IS
'SQL: the WITH clause of the index. IVFFlat lists as pgvector advises: rows / 1000 up to a million rows, then their square root.';


CREATE OR REPLACE FUNCTION pgembed._index_is_valid(index_name text, target regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT i.indisvalid
    FROM pg_catalog.pg_index AS i
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relname = index_name AND i.indrelid = target
);
COMMENT ON FUNCTION pgembed._index_is_valid(text, regclass) IS
'Whether that index of the table is valid; NULL when there is none.';


CREATE OR REPLACE FUNCTION pgembed._index_statements(embedding integer)
RETURNS TABLE (ordinal integer, statement text)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._open_embedding(embedding);
    definition text := format('USING %s (%I %s)%s', e.index_method, e.target_column,
        pgembed._operator_class(e), pgembed._index_options(e));
    part record;
    part_index text;
    parent_index text;
    schema_name text;
BEGIN
    ordinal := 0;
    FOR part IN
        SELECT t.relid, t.parentrelid, c.relkind = 'p' AS is_parent, n.nspname, t.level
        FROM (
            SELECT * FROM pg_catalog.pg_partition_tree(e.target)
            UNION ALL
            SELECT e.target, NULL, true, 0
            WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(e.target))
        ) AS t
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        ORDER BY t.level, t.relid
    LOOP
        part_index := e.index_name || CASE WHEN part.level > 0 THEN '_' || part.relid::oid ELSE '' END;
        schema_name := quote_ident(part.nspname);
        IF pgembed._index_is_valid(part_index, part.relid) IS FALSE AND NOT part.is_parent THEN
            ordinal := ordinal + 1;
            statement := format('DROP INDEX CONCURRENTLY IF EXISTS %s.%I', schema_name, part_index);
            RETURN NEXT;
        END IF;
        IF pgembed._index_is_valid(part_index, part.relid) IS NULL
            OR (pgembed._index_is_valid(part_index, part.relid) IS FALSE AND NOT part.is_parent)
        THEN
            ordinal := ordinal + 1;
            statement := CASE
                WHEN part.is_parent THEN format('CREATE INDEX %I ON ONLY %s %s', part_index, part.relid, definition)
                ELSE format('CREATE INDEX CONCURRENTLY %I ON %s %s', part_index, part.relid, definition)
            END;
            RETURN NEXT;
        END IF;
        IF part.level > 0 AND NOT pgembed._is_attached(part_index, part.relid) THEN
            parent_index := e.index_name
                || CASE WHEN part.level > 1 THEN '_' || part.parentrelid::oid ELSE '' END;
            ordinal := ordinal + 1;
            statement := format('ALTER INDEX %s ATTACH PARTITION %s.%I',
                pgembed._in_schema_of(part.parentrelid, parent_index), schema_name, part_index);
            RETURN NEXT;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._index_statements(integer) IS
'The statements that build an embedding''s index without blocking writers, to be run one by one outside a transaction: partition by partition on a partitioned table, what is there already left out.';


CREATE OR REPLACE FUNCTION pgembed._is_attached(index_name text, target regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT
    FROM pg_catalog.pg_index AS i
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relname = index_name AND i.indrelid = target AND c.relispartition
);
COMMENT ON FUNCTION pgembed._is_attached(text, regclass) IS
'Whether a partition''s index is already part of its parent''s.';


CREATE OR REPLACE FUNCTION pgembed._in_schema_of(relation regclass, name text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format('%I.%I', n.nspname, name)
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = relation
);
COMMENT ON FUNCTION pgembed._in_schema_of(regclass, text) IS
'SQL: the name, qualified with the schema of a relation.';


CREATE OR REPLACE FUNCTION pgembed._live(worker uuid)
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT
    FROM pgembed.worker AS w
    WHERE w.id = worker AND w.seen_at > now() - interval '1 minute'
);
COMMENT ON FUNCTION pgembed._live(uuid) IS
'Whether that worker was seen during the last minute.';


CREATE OR REPLACE FUNCTION pgembed._index_work()
RETURNS TABLE (embedding integer, name text)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    pending bigint;
    few bigint;
BEGIN
    FOR e IN
        SELECT n.*
        FROM pgembed.embedding AS n
        WHERE n.kind = 'kept' AND n.enqueued AND NOT n.paused AND n.blocked IS NULL
            AND pgembed._exists(n.source)
            AND (n.index_state = 'waiting'
                OR (n.index_state = 'building' AND NOT pgembed._live(n.index_worker)))
    LOOP
        SELECT greatest(c.reltuples, 0) / 100 INTO few
        FROM pg_catalog.pg_class AS c
        WHERE c.oid = pgembed._job_table(e.id)::regclass;
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %s AS j '
            'WHERE j.pgembed_available_at IS NOT NULL LIMIT $1 + 1) AS p',
            pgembed._job_table(e.id)) INTO pending USING few;
        IF pending <= few THEN
            embedding := e.id;
            name := e.name;
            RETURN NEXT;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._index_work() IS
'Embeddings whose index can be built: their backfill is done, and at most one row in a hundred waits, so that steady writes cannot put it off for ever.';


CREATE OR REPLACE FUNCTION pgembed._begin_index(embedding integer, worker uuid)
RETURNS boolean
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH begun AS (
        UPDATE pgembed.embedding AS e
        SET index_state = 'building', index_worker = worker, index_error = NULL
        WHERE e.id = embedding
            AND (e.index_state = 'waiting'
                OR (e.index_state = 'building' AND NOT pgembed._live(e.index_worker)))
        RETURNING e.id
    )
    SELECT EXISTS (SELECT FROM begun);
$$;
COMMENT ON FUNCTION pgembed._begin_index(integer, uuid) IS
'Take on the building of an index; true for one worker at a time.';


CREATE OR REPLACE FUNCTION pgembed._set_index_state(embedding integer, state text, error text)
RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE pgembed.embedding AS e
    SET index_state = state, index_error = error, index_worker = NULL
    WHERE e.id = embedding;
$$;
COMMENT ON FUNCTION pgembed._set_index_state(integer, text, text) IS
'Record how the building of an index ended.';
