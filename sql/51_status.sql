-- How the embeddings are doing. Whoever looks runs no code of the tables' owners: neither
-- policies, nor casts or operators of their types. Nor does he wait for what others have locked.

CREATE OR REPLACE FUNCTION pgembed._rate(embedding integer)
RETURNS double precision
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT coalesce(
        sum(p.rows) / greatest(extract(epoch FROM now() - min(p.bucket)), 1), 0
    )::double precision
    FROM pgembed.progress AS p
    WHERE p.embedding = $1 AND p.bucket > now() - interval '1 minute'
);
COMMENT ON FUNCTION pgembed._rate(integer) IS
'Rows embedded per second during the last minute.';


CREATE OR REPLACE FUNCTION pgembed._count_rows(
    e pgembed.embedding, OUT rows bigint, OUT embedded bigint
)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET lock_timeout = '200ms'
AS $$
DECLARE
    -- Before PostgreSQL 16 a rule makes a view of a table, which can have no sample.
    whole CONSTANT text := CASE WHEN current_setting('server_version_num')::integer < 160000
        THEN ' TABLESAMPLE SYSTEM (100)' ELSE '' END;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s%s', e.source, whole) INTO rows;
    IF NOT pgembed._exists(e.target)
        OR e.target_column <> ALL (pgembed._columns(e.target))
    THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT count(t.%I) FROM %s AS t%s%s', e.target_column, e.target, whole,
        CASE WHEN e.target <> e.source THEN
            ' WHERE ROW(t.chunk)::record OPERATOR(pg_catalog.*=) ROW(0)::record' ELSE '' END) INTO embedded;
END;
$$;
COMMENT ON FUNCTION pgembed._count_rows(pgembed.embedding) IS
'How many rows the source has, and how many of them have a vector, or chunks; an error where policies hide rows, or when a table stays locked.';


CREATE OR REPLACE FUNCTION pgembed._count_jobs(
    e pgembed.embedding, OUT pending bigint, OUT failed bigint, OUT oldest_pending interval
)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '200ms'
AS $$
BEGIN
    EXECUTE format(
        'SELECT count(*) FILTER (WHERE j.pgembed_available_at IS NOT NULL), '
        'count(*) FILTER (WHERE j.pgembed_available_at IS NULL), '
        'greatest(now() - min(coalesce(j.pgembed_changed_at, j.pgembed_available_at)) '
        'FILTER (WHERE j.pgembed_available_at IS NOT NULL), ''0'') '
        'FROM %s AS j WHERE j.pgembed_available_at IS NOT NULL OR j.pgembed_error IS NOT NULL',
        pgembed._job_table(e.id)
    ) INTO pending, failed, oldest_pending;
    IF pending = 0 THEN
        oldest_pending := NULL;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._count_jobs(pgembed.embedding) IS
'How many rows wait and how many failed, and how long the first has waited; an error when the job table stays locked.';


CREATE OR REPLACE FUNCTION pgembed._state(
    e pgembed.embedding, fault text, pending bigint, failed bigint
)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE
    WHEN fault IS NOT NULL THEN 'blocked: ' || fault
    WHEN e.kind = 'adopted' THEN 'adopted'
    WHEN e.blocked IS NOT NULL THEN 'blocked: ' || e.blocked
    WHEN e.paused THEN 'paused'
    WHEN pending IS NULL THEN 'unknown'
    WHEN pending > 0 THEN 'embedding'
    WHEN failed > 0 THEN 'current but for failures'
    ELSE 'current'
END || coalesce('; index: ' || e.index_error, '');
COMMENT ON FUNCTION pgembed._state(pgembed.embedding, text, bigint, bigint) IS
'How an embedding is doing, in words.';


CREATE OR REPLACE FUNCTION pgembed._status(
    OUT name text,
    OUT source text,
    OUT model text,
    OUT rows bigint,
    OUT embedded bigint,
    OUT pending bigint,
    OUT failed bigint,
    OUT oldest_pending interval,
    OUT rows_per_second double precision,
    OUT index_state text,
    OUT state text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    trouble text;
BEGIN
    FOR e IN SELECT n.* FROM pgembed.embedding AS n ORDER BY n.name LOOP
        name := e.name;
        source := e.source::text;
        model := e.model;
        index_state := CASE WHEN e.kind = 'kept' THEN e.index_state
            WHEN (pgembed._usable_index(e, '{}')).index IS NULL THEN 'none' ELSE 'ready' END;
        rows := NULL;
        embedded := NULL;
        pending := 0;
        failed := 0;
        oldest_pending := NULL;
        rows_per_second := pgembed._rate(e.id);
        trouble := NULL;
        IF NOT pgembed._has_source(e) THEN
            state := 'source dropped' || coalesce('; blocked: ' || e.blocked, '');
            RETURN NEXT;
            CONTINUE;
        END IF;
        BEGIN
            IF e.kind = 'kept' THEN
                pending := NULL;
                failed := NULL;
                SELECT c.pending, c.failed, c.oldest_pending INTO pending, failed, oldest_pending
                FROM pgembed._count_jobs(e) AS c;
            END IF;
            SELECT c.rows, c.embedded INTO rows, embedded FROM pgembed._count_rows(e) AS c;
        EXCEPTION
            -- One table that cannot be read must not hide the others.
            WHEN lock_not_available THEN
                trouble := 'another transaction has locked its tables';
            WHEN OTHERS THEN
                trouble := SQLERRM;
        END;
        IF e.kind = 'kept' AND NOT e.enqueued THEN
            pending := rows;
            oldest_pending := CASE WHEN rows > 0 THEN now() - e.created_at END;
        END IF;
        state := pgembed._state(e, pgembed._fault(e), pending, failed) || coalesce('; not counted: ' || trouble, '');
        RETURN NEXT;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._status() IS
'The rows of pgembed.embedding_status.';


CREATE OR REPLACE VIEW pgembed.embedding_status AS
SELECT
    s.name,
    s.source,
    s.model,
    s.rows,
    s.embedded,
    s.pending,
    s.failed,
    s.oldest_pending,
    s.rows_per_second,
    s.index_state,
    s.state
FROM pgembed._status() AS s;
COMMENT ON VIEW pgembed.embedding_status IS
'Each embedding: rows of its source, how many have a vector, wait or failed, how long the oldest waits, the rate of the last minute, its index. Counted exactly, so it reads the sources; those that its reader may not see whole, or that are locked, it leaves uncounted, and state says why.';


CREATE OR REPLACE FUNCTION pgembed._is_built_in(kind oid)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    WITH RECURSIVE base AS (
        SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type AS t WHERE t.oid = kind
        UNION ALL
        SELECT t.oid, t.typbasetype
        FROM base AS b
        INNER JOIN pg_catalog.pg_type AS t ON t.oid = b.typbasetype
    )
    SELECT b.oid < 16384 FROM base AS b WHERE b.typbasetype = 0
);
COMMENT ON FUNCTION pgembed._is_built_in(oid) IS
'Whether a type, or what a domain is over, is PostgreSQL''s own: only such a type has no casts that users made.';


-- A cast of the type's owner would run as whoever looks; an output function is a superuser's.
CREATE OR REPLACE FUNCTION pgembed._key_object(relation regclass, columns text[], alias text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format('jsonb_build_object(%s)', string_agg(
        format(
            CASE WHEN pgembed._is_built_in(a.atttypid) THEN '%1$L, %2$s.%3$I'
                ELSE '%1$L, format(''%%s'', %2$s.%3$I)' END,
            a.attname, alias, a.attname
        ),
        ', ' ORDER BY array_position(columns, a.attname::text)
    ))
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = ANY (columns) AND NOT a.attisdropped
);
COMMENT ON FUNCTION pgembed._key_object(regclass, text[], text) IS
'SQL: the columns of a key as a jsonb object; values of types that are not built in are text, as their output functions write them.';


CREATE OR REPLACE FUNCTION pgembed._failures(
    OUT embedding text,
    OUT key jsonb,
    OUT attempts integer,
    OUT error text,
    OUT failed_at timestamptz
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '200ms'
AS $$
DECLARE
    e pgembed.embedding;
    job regclass;
BEGIN
    FOR e IN SELECT n.* FROM pgembed.embedding AS n WHERE n.kind = 'kept' ORDER BY n.name LOOP
        job := to_regclass(pgembed._job_table(e.id));
        CONTINUE WHEN has_table_privilege(job, 'SELECT') IS NOT TRUE;
        BEGIN
            RETURN QUERY EXECUTE format('SELECT $1, %s, j.pgembed_attempts::integer, '
                'j.pgembed_error, j.pgembed_changed_at FROM %s AS j '
                'WHERE j.pgembed_available_at IS NULL AND j.pgembed_error IS NOT NULL',
                pgembed._key_object(job, e.key_columns, 'j'), job) USING e.name;
        EXCEPTION
            WHEN lock_not_available THEN
                RAISE WARNING 'the failures of % are left out: another transaction has locked its queue',
                    quote_literal(e.name)
                    USING HINT = 'Look again when that transaction has ended.';
            WHEN undefined_table THEN
                NULL;  -- That transaction dropped the embedding.
        END;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._failures() IS
'The rows of pgembed.failures.';


CREATE OR REPLACE VIEW pgembed.failures AS
SELECT
    f.embedding,
    f.key,
    f.attempts,
    f.error,
    f.failed_at
FROM pgembed._failures() AS f;
COMMENT ON VIEW pgembed.failures IS
'Rows whose attempts are used up, with the last error. pgembed.retry_failed(embedding) tries them again.';


CREATE OR REPLACE FUNCTION pgembed._queue_depths()
RETURNS TABLE (name text, pending bigint, failed bigint, age double precision)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    waits interval;
BEGIN
    FOR e IN
        SELECT n.* FROM pgembed.embedding AS n
        WHERE n.kind = 'kept' AND to_regclass(pgembed._job_table(n.id)) IS NOT NULL
        ORDER BY n.name
    LOOP
        BEGIN
            SELECT j.pending, j.failed, j.oldest_pending INTO pending, failed, waits
            FROM pgembed._count_jobs(e) AS j;
            IF NOT e.enqueued THEN
                SELECT c.rows, now() - e.created_at INTO pending, waits FROM pgembed._count_rows(e) AS c;
            END IF;
        EXCEPTION
            -- One that is locked must not hide the others.
            WHEN OTHERS THEN
                CONTINUE;
        END;
        name := e.name;
        age := CASE WHEN pending > 0 THEN extract(epoch FROM waits) ELSE 0 END;
        RETURN NEXT;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._queue_depths() IS
'Of each kept embedding that can be read at once: rows that wait, rows that failed, and for how many seconds the first has waited. Cheaper than embedding_status: it counts the rows of a source only as long as they are not enqueued.';
