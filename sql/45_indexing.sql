-- Vector indexes: built by a worker when the backfill is done, CONCURRENTLY.

CREATE OR REPLACE FUNCTION pgembed._index_options(e pgembed.embedding, relation regclass)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    vectors bigint;
BEGIN
    IF e.index_method <> 'ivfflat' THEN
        RETURN '';
    END IF;
    EXECUTE format('SELECT count(%I) FROM %s', e.target_column, relation) INTO vectors;
    RETURN format(' WITH (lists = %s)', CASE
        WHEN vectors > 1000000 THEN least(sqrt(vectors)::bigint, 32768)
        ELSE greatest(vectors / 1000, 1)
    END);
END;
$$;
COMMENT ON FUNCTION pgembed._index_options(pgembed.embedding, regclass) IS
'SQL: the WITH clause of the index of a table or partition. IVFFlat lists as pgvector advises: rows / 1000 up to a million rows, then their square root.';


CREATE OR REPLACE FUNCTION pgembed._index_state(
    e pgembed.embedding, relation regclass, index_name text
)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN coalesce((
    SELECT CASE
        WHEN m.amname <> e.index_method OR a.attname <> e.target_column
            OR o.opcname <> pgembed._operator_class(e.storage, e.distance) THEN 'wrong'
        -- A partitioned index is invalid until all its parts are attached.
        WHEN NOT i.indisvalid AND c.relkind = 'i' THEN 'wrong'
        ELSE 'there'
    END
    FROM pg_catalog.pg_index AS i
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    INNER JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
    INNER JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
    INNER JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE c.relname = index_name AND i.indrelid = relation
), 'missing');
COMMENT ON FUNCTION pgembed._index_state(pgembed.embedding, regclass, text) IS
'Whether that index of the table is there, missing, or wrong: left over from a build that was interrupted, or made for another method or distance.';


CREATE OR REPLACE FUNCTION pgembed._attached_index(relation regclass, parent regclass, parent_index text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT c.relname::text
    FROM pg_catalog.pg_index AS i
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhrelid = i.indexrelid
    INNER JOIN pg_catalog.pg_class AS p ON p.oid = h.inhparent
    INNER JOIN pg_catalog.pg_index AS x ON x.indexrelid = p.oid
    WHERE i.indrelid = relation AND x.indrelid = parent AND p.relname = parent_index
);
COMMENT ON FUNCTION pgembed._attached_index(regclass, regclass, text) IS
'The index of a partition that is part of its parent''s index, whatever its name; NULL when there is none.';


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


CREATE OR REPLACE FUNCTION pgembed._index_parts(e pgembed.embedding)
RETURNS TABLE (relation regclass, parent regclass, level integer, is_parent boolean)
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.relid, CASE WHEN t.level > 0 THEN t.parentrelid END, t.level, NOT t.isleaf
    FROM pg_catalog.pg_partition_tree(e.target) AS t
    UNION ALL
    SELECT e.target, NULL, 0, false
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(e.target))
    ORDER BY 3, 1;
$$;
COMMENT ON FUNCTION pgembed._index_parts(pgembed.embedding) IS
'The target and, when it is partitioned, all its partitions, parents first.';


CREATE OR REPLACE FUNCTION pgembed._drop_unfinished_indexes(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unfinished regclass;
BEGIN
    FOR unfinished IN
        SELECT i.indexrelid
        FROM pgembed._index_parts(e) AS p
        INNER JOIN pg_catalog.pg_index AS i ON i.indrelid = p.relation AND NOT i.indisvalid
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
            AND c.relkind = 'i' AND NOT c.relispartition
        WHERE c.relname IN (e.index_name, e.index_name || '_' || p.relation::oid)
    LOOP
        EXECUTE format('DROP INDEX %s', unfinished);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._drop_unfinished_indexes(pgembed.embedding) IS
'Drop what a build of an embedding''s index left that did not end: each write would pay for it, and no search could use it.';


CREATE OR REPLACE FUNCTION pgembed._index_statements(embedding integer)
RETURNS TABLE (ordinal integer, statement text)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    part record;
    names jsonb := '{}';
    parent_index text;
    part_index text;
    attached text;
    state text;
    anew boolean := false;
    statements text[] := '{}';
BEGIN
    SELECT n.* INTO e FROM pgembed.embedding AS n WHERE n.id = embedding;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no embedding number %', embedding
            USING ERRCODE = 'undefined_object', HINT = 'It was dropped meanwhile.';
    END IF;
    FOR part IN SELECT p.* FROM pgembed._index_parts(e) AS p WHERE e.index_method <> 'none' LOOP
        parent_index := names ->> part.parent::oid::text;
        attached := pgembed._attached_index(part.relation, part.parent, parent_index);
        part_index := coalesce(
            attached, e.index_name || CASE WHEN part.level > 0 THEN '_' || part.relation::oid ELSE '' END);
        names := names || jsonb_build_object(part.relation::oid::text, part_index);
        state := pgembed._index_state(e, part.relation, part_index);
        -- What is attached to a wrong index goes with it.
        anew := anew OR (part.level = 0 AND state = 'wrong');
        IF state = 'wrong' OR (anew AND state = 'there') THEN
            statements := statements || format('DROP INDEX %sIF EXISTS %s',
                CASE WHEN part.is_parent THEN '' ELSE 'CONCURRENTLY ' END,
                pgembed._in_schema_of(part.relation, part_index));
        END IF;
        IF state <> 'there' OR anew THEN
            statements := statements || format('CREATE INDEX %s%I ON %s%s USING %s (%I %s)%s',
                CASE WHEN part.is_parent THEN '' ELSE 'CONCURRENTLY ' END, part_index,
                CASE WHEN part.is_parent THEN 'ONLY ' ELSE '' END, part.relation, e.index_method,
                e.target_column,
                '@extschema:vector@.' || pgembed._operator_class(e.storage, e.distance),
                pgembed._index_options(e, part.relation));
        END IF;
        IF part.level > 0 AND (attached IS NULL OR anew) THEN
            statements := statements || format('ALTER INDEX %s ATTACH PARTITION %s',
                pgembed._in_schema_of(part.parent, parent_index),
                pgembed._in_schema_of(part.relation, part_index));
        END IF;
    END LOOP;
    RETURN QUERY SELECT s.ordinal::integer, s.statement
        FROM unnest(statements) WITH ORDINALITY AS s (statement, ordinal);
END;
$$;
COMMENT ON FUNCTION pgembed._index_statements(integer) IS
'The statements that build an embedding''s index, to be run one by one outside a transaction: partition by partition on a partitioned table, what is there already left out. Those without CONCURRENTLY lock a partitioned table, or the index of a partition, for a moment: run them with a short lock_timeout, lest writers and readers queue up behind one that waits.';


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
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    pending bigint;
    few bigint;
    job regclass;
BEGIN
    FOR e IN
        SELECT n.*
        FROM pgembed.embedding AS n
        WHERE n.kind = 'kept' AND n.enqueued AND NOT n.paused AND n.blocked IS NULL
            AND pgembed._has_source(n)
            AND (n.index_state = 'waiting'
                OR (n.index_state = 'building' AND NOT pgembed._live(n.index_worker)))
    LOOP
        job := to_regclass(pgembed._job_table(e.id));
        CONTINUE WHEN job IS NULL OR NOT pgembed._try_lock(job, 'ACCESS SHARE');
        SELECT greatest(c.reltuples, 0) / 100 INTO few FROM pg_catalog.pg_class AS c WHERE c.oid = job;
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %s AS j '
            'WHERE j.pgembed_available_at IS NOT NULL LIMIT $1 + 1) AS p', job)
            INTO pending USING few;
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
        WHERE e.id = ANY (ARRAY(
            SELECT n.id
            FROM pgembed.embedding AS n
            WHERE n.id = embedding
                AND (n.index_state = 'waiting'
                    OR (n.index_state = 'building' AND NOT pgembed._live(n.index_worker)))
            FOR NO KEY UPDATE SKIP LOCKED
        ))
        RETURNING e.id
    )
    SELECT EXISTS (SELECT FROM begun);
$$;
COMMENT ON FUNCTION pgembed._begin_index(integer, uuid) IS
'Take on the building of an index; true for one worker at a time, and for none while a user holds the embedding''s row.';


CREATE OR REPLACE FUNCTION pgembed._set_index_state(
    embedding integer, state text, error text, worker uuid DEFAULT NULL
)
RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM pgembed.embedding AS e WHERE e.id = embedding FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NOT EXISTS (SELECT FROM pgembed.embedding AS e WHERE e.id = embedding);
    END IF;
    UPDATE pgembed.embedding AS e
    SET index_state = state, index_error = error, index_worker = NULL
    -- Another index may have been asked for meanwhile, or none.
    WHERE e.id = embedding AND e.index_state <> 'none' AND (e.index_state = 'building' OR state <> 'ready')
        AND (worker IS NULL OR e.index_worker = worker);
    RETURN true;
END;
$$;
COMMENT ON FUNCTION pgembed._set_index_state(integer, text, text, uuid) IS
'Record how the building of an index ended, if it is still the one that is wanted, and that worker''s when one is given. False while a user holds the embedding''s row: to be recorded later.';
