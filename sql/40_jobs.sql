-- Jobs: which there are, and looking after what workers work on. Every state change is guarded
-- by what the worker read: the lease it holds and the version of the row. Keys stay in the
-- database: a claim numbers its rows (slot), and workers speak of (lease, slot, version).
--
-- Lock order, for users and workers alike: source table, source row, job table, job row. Workers
-- never wait for what users hold (NOWAIT, SKIP LOCKED), so that they can never be part of a
-- deadlock, and a user's long transaction never stops the work on other tables. Only the building
-- of an index waits, as CREATE INDEX CONCURRENTLY does.

CREATE OR REPLACE FUNCTION pgembed._kept_embedding(embedding integer)
RETURNS pgembed.embedding
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.*
    FROM pgembed.embedding AS e
    WHERE e.id = embedding AND e.kind = 'kept' AND pgembed._has_source(e);
$$;
COMMENT ON FUNCTION pgembed._kept_embedding(integer) IS
'The embedding, when it is kept and its source is there.';


CREATE OR REPLACE FUNCTION pgembed._open_embedding(embedding integer)
RETURNS pgembed.embedding
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.*
    FROM pgembed._kept_embedding(embedding) AS e
    WHERE NOT e.paused AND e.blocked IS NULL;
$$;
COMMENT ON FUNCTION pgembed._open_embedding(integer) IS
'The embedding, when workers may take work from it.';


CREATE OR REPLACE FUNCTION pgembed._block(embedding integer, reason text)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE pgembed.embedding AS e
    SET blocked = reason
    WHERE e.id = ANY (ARRAY(
        SELECT n.id
        FROM pgembed.embedding AS n
        WHERE n.id = embedding AND n.blocked IS DISTINCT FROM reason
        FOR NO KEY UPDATE SKIP LOCKED
    ));
$$;
COMMENT ON FUNCTION pgembed._block(integer, text) IS
'Set an embedding aside because no worker can go on with it; its jobs wait, others run. Left for the next time while a user holds its row.';


CREATE OR REPLACE FUNCTION pgembed._unblock(embedding integer)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE pgembed.embedding AS e
    SET blocked = NULL
    WHERE e.id = ANY (ARRAY(
        SELECT n.id
        FROM pgembed.embedding AS n
        WHERE n.id = embedding AND n.blocked IS NOT NULL
        FOR NO KEY UPDATE SKIP LOCKED
    ));
$$;
COMMENT ON FUNCTION pgembed._unblock(integer) IS
'Let workers go on with an embedding that was set aside, unless a user holds its row.';


CREATE OR REPLACE FUNCTION pgembed._fits(e pgembed.embedding)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fault text := pgembed._fault(e);
BEGIN
    IF fault IS NULL AND (row_security_active(e.source) OR row_security_active(e.target)) THEN
        fault := format('row-level security hides rows of table %s from role %I, whose worker this is: '
            'GRANT %s TO %I, or ALTER ROLE %I BYPASSRLS, which FORCE ROW LEVEL SECURITY asks for',
            CASE WHEN row_security_active(e.source) THEN e.source ELSE e.target END,
            current_user, pgembed._owner(e.source), current_user, current_user);
    END IF;
    IF fault IS NULL THEN
        RETURN true;
    END IF;
    PERFORM pgembed._block(e.id, fault);
    RETURN false;
END;
$$;
COMMENT ON FUNCTION pgembed._fits(pgembed.embedding) IS
'Whether an embedding still fits its table, which the caller has locked; blocks it when it does not.';


CREATE OR REPLACE FUNCTION pgembed._commit_lazily()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Only for the transaction: a session may be a pooler's.
    PERFORM set_config('synchronous_commit', 'off', true);
END;
$$;
COMMENT ON FUNCTION pgembed._commit_lazily() IS
'Let this transaction end without waiting for the disk: users wait for the rows that workers lock. What a crash of the server takes back is done again, since it takes vector and job end together.';


CREATE OR REPLACE FUNCTION pgembed._new_lease()
RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT hashtextextended(gen_random_uuid()::text, 0);
$$;
COMMENT ON FUNCTION pgembed._new_lease() IS
'A lease token. At random: a sequence would give the same one twice after a crash that took the first back.';


CREATE OR REPLACE FUNCTION pgembed._lock_jobs(embedding integer)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._commit_lazily();
    EXECUTE format('LOCK TABLE %s IN ROW EXCLUSIVE MODE NOWAIT', pgembed._job_table(embedding));
END;
$$;
COMMENT ON FUNCTION pgembed._lock_jobs(integer) IS
'Lock a job table for writing, in a worker''s transaction; an error (55P03) when a user who truncates the source holds it.';


CREATE OR REPLACE FUNCTION pgembed._add_missing_jobs(e pgembed.embedding)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
AS $$
DECLARE
    added bigint;
BEGIN
    EXECUTE format(
        'INSERT INTO %1$s (%2$s) SELECT %3$s FROM %4$s AS s '
        'WHERE NOT EXISTS (SELECT FROM %1$s AS j WHERE %5$s)',
        pgembed._job_table(e.id), pgembed._key_list(e.key_columns),
        pgembed._column_list(e.key_columns, 's'), e.source,
        pgembed._key_match(e.source, 'j', 's')
    );
    GET DIAGNOSTICS added = ROW_COUNT;
    UPDATE pgembed.embedding AS n SET enqueued = true WHERE n.id = e.id;
    RETURN added;
END;
$$;
COMMENT ON FUNCTION pgembed._add_missing_jobs(pgembed.embedding) IS
'Give the rows that have no job one. A row that is written meanwhile can get two: write-back merges them.';


CREATE OR REPLACE FUNCTION pgembed._enqueue_all(embedding integer)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
BEGIN
    -- Not FOR UPDATE: that would make the write-back of other workers wait.
    SELECT n.* INTO e
    FROM pgembed.embedding AS n
    WHERE n.id = embedding AND NOT n.enqueued
    FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND OR NOT pgembed._try_lock(e.source, 'ACCESS SHARE') OR NOT pgembed._fits(e) THEN
        RETURN 0;
    END IF;
    RETURN pgembed._add_missing_jobs(e);
END;
$$;
COMMENT ON FUNCTION pgembed._enqueue_all(integer) IS
'Give the rows that were there before the embedding their jobs. Done by a worker, so that declaring an embedding locks the source for a moment only.';


CREATE OR REPLACE FUNCTION pgembed._tend(embedding integer)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
BEGIN
    SELECT n.* INTO e FROM pgembed.embedding AS n WHERE n.id = embedding;
    IF NOT pgembed._has_source(e) THEN
        PERFORM FROM pgembed.embedding AS n WHERE n.id = embedding FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        -- Who reads them is not waited for: he may ask for a table that was locked before this.
        IF EXISTS (
            SELECT
            FROM (VALUES (to_regclass(pgembed._job_table(e.id))), (CASE WHEN pgembed._has_chunks(e) THEN e.target END)) AS t (r)
            WHERE NOT pgembed._try_lock(t.r, 'ACCESS EXCLUSIVE')
        ) THEN
            RETURN false;
        END IF;
        PERFORM pgembed._forget_embedding(e.name);
        RETURN true;
    END IF;
    IF (
            pgembed._captures_wrongly(e)
            OR EXISTS (SELECT FROM pg_catalog.pg_partitioned_table AS p WHERE p.partrelid = e.source)
        )
        AND pgembed._try_lock(e.source, 'ACCESS SHARE') AND pgembed._follow_partitions(e)
    THEN
        RETURN true;
    END IF;
    RETURN pgembed._enqueue_all(embedding) > 0;
EXCEPTION
    WHEN undefined_table OR undefined_function OR lock_not_available OR transaction_rollback THEN
        RETURN false;
    WHEN insufficient_resources OR operator_intervention OR system_error THEN
        RAISE;  -- the server's, and nothing about this embedding
    WHEN OTHERS THEN
        -- What DDL beside it does to any statement is over the next time. PostgreSQL says these in English alone.
        IF SQLSTATE = 'XX000'
            AND SQLERRM ~ '^(tuple concurrently|cache lookup failed for|could not open relation with OID) '
        THEN
            RETURN false;
        END IF;
        -- Of this embedding's tables, types or triggers: the others go on.
        PERFORM pgembed._block(embedding, SQLERRM);
        RETURN false;
END;
$$;
COMMENT ON FUNCTION pgembed._tend(integer) IS
'Look after an embedding before its jobs are counted: forget it when its source was dropped, follow its partitions, enqueue its rows. True when that took locks or time.';


CREATE OR REPLACE FUNCTION pgembed._work()
RETURNS TABLE (
    embedding integer,
    name text,
    model text,
    model_hash bytea,
    chunk_tokens integer,
    chunk_overlap integer,
    ready bigint,
    next_at timestamptz
)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e record;
    job regclass;
    tended integer[] := '{}';
BEGIN
    -- The locks of the first must not be held while a large one is enqueued.
    FOR e IN
        SELECT n.id, c.relkind = 'p' OR c.relpages > 1000 AS large
        FROM pgembed.embedding AS n
        LEFT JOIN pg_catalog.pg_class AS c ON c.oid = n.source
        WHERE n.kind = 'kept'
            AND ((NOT n.paused AND n.blocked IS NULL) OR NOT pgembed._has_source(n))
        ORDER BY n.id
    LOOP
        EXIT WHEN tended <> '{}'
            AND (e.large OR clock_timestamp() > statement_timestamp() + interval '0.5 seconds');
        IF pgembed._tend(e.id) THEN
            tended := tended || e.id;
            EXIT WHEN e.large;
        END IF;
    END LOOP;
    FOR e IN
        SELECT n.*, m.hash
        FROM pgembed.embedding AS n
        INNER JOIN pgembed.model AS m ON m.name = n.model
        WHERE n.kind = 'kept' AND NOT n.paused AND n.blocked IS NULL
        ORDER BY n.id
    LOOP
        job := to_regclass(pgembed._job_table(e.id));
        CONTINUE WHEN job IS NULL OR NOT pgembed._try_lock(job, 'ACCESS SHARE');
        EXECUTE format(
            'SELECT (SELECT count(*) FROM (SELECT FROM %1$s '
            'WHERE pgembed_available_at <= now() LIMIT 1000) AS r), '
            '(SELECT min(pgembed_available_at) FROM %1$s)',
            job
        ) INTO ready, next_at;
        IF e.id = ANY (tended) THEN
            -- There may be more to be done than jobs say.
            next_at := now();
        END IF;
        CONTINUE WHEN next_at IS NULL;
        embedding := e.id;
        name := e.name;
        model := e.model;
        model_hash := e.hash;
        chunk_tokens := e.chunk_tokens;
        chunk_overlap := e.chunk_overlap;
        RETURN NEXT;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._work() IS
'The embeddings that have jobs: how many can be claimed now (at most 1,000 are counted) and when the next one can, or this function is to be called again. Those that a user has locked are left out. Also enqueues the rows of new embeddings and forgets embeddings whose source was dropped.';
