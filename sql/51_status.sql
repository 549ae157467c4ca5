-- How the embeddings are doing.

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
AS $$
BEGIN
    EXECUTE format('SELECT count(*) FROM %s', e.source) INTO rows;
    IF NOT pgembed._exists(e.target)
        OR e.target_column <> ALL (pgembed._columns(e.target))
    THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT count(t.%I) FROM %s AS t%s', e.target_column, e.target,
        CASE WHEN e.target <> e.source THEN ' WHERE t.chunk = 0' ELSE '' END) INTO embedded;
END;
$$;
COMMENT ON FUNCTION pgembed._count_rows(pgembed.embedding) IS
'How many rows the source has, and how many of them have a vector, or chunks.';


CREATE OR REPLACE FUNCTION pgembed._count_jobs(
    e pgembed.embedding, OUT pending bigint, OUT failed bigint, OUT oldest_pending interval
)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
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
'How many rows wait and how many failed, and how long the first has waited.';


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
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    fault text;
BEGIN
    FOR e IN SELECT n.* FROM pgembed.embedding AS n ORDER BY n.name LOOP
        name := e.name;
        source := e.source::text;
        model := e.model;
        index_state := e.index_state;
        rows := NULL;
        embedded := NULL;
        pending := 0;
        failed := 0;
        oldest_pending := NULL;
        rows_per_second := pgembed._rate(e.id);
        IF NOT pgembed._exists(e.source) THEN
            state := 'source dropped';
            RETURN NEXT;
            CONTINUE;
        END IF;
        fault := pgembed._fault(e);
        BEGIN
            SELECT c.rows, c.embedded INTO rows, embedded FROM pgembed._count_rows(e) AS c;
            IF e.kind = 'kept' THEN
                SELECT c.pending, c.failed, c.oldest_pending INTO pending, failed, oldest_pending
                FROM pgembed._count_jobs(e) AS c;
            END IF;
        EXCEPTION
            -- One table that cannot be read must not hide the others.
            WHEN insufficient_privilege OR undefined_table THEN
                fault := SQLERRM;
        END;
        IF e.kind = 'kept' AND NOT e.enqueued THEN
            pending := rows;
            oldest_pending := CASE WHEN rows > 0 THEN now() - e.created_at END;
        END IF;
        state := pgembed._state(e, fault, pending, failed);
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
'Each embedding: rows of its source, how many have a vector, wait or failed, how long the oldest waits, the rate of the last minute, its index. Counted exactly, so it reads the sources.';


CREATE OR REPLACE FUNCTION pgembed._failures(
    OUT embedding text,
    OUT key jsonb,
    OUT attempts integer,
    OUT error text,
    OUT failed_at timestamptz
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
BEGIN
    FOR e IN SELECT n.* FROM pgembed.embedding AS n WHERE n.kind = 'kept' ORDER BY n.name LOOP
        CONTINUE WHEN has_table_privilege(to_regclass(pgembed._job_table(e.id)), 'SELECT') IS NOT TRUE;
        RETURN QUERY EXECUTE format('SELECT $1, jsonb_build_object(%s), j.pgembed_attempts::integer, '
            'j.pgembed_error, j.pgembed_changed_at FROM %s AS j '
            'WHERE j.pgembed_available_at IS NULL AND j.pgembed_error IS NOT NULL',
            (SELECT string_agg(format('%L, j.%I', k, k), ', ') FROM unnest(e.key_columns) AS k),
            pgembed._job_table(e.id)) USING e.name;
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
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT e.name, j.pending, j.failed, coalesce(extract(epoch FROM j.oldest_pending), 0)::double precision
    FROM pgembed.embedding AS e
    CROSS JOIN LATERAL pgembed._count_jobs(e) AS j
    WHERE e.kind = 'kept' AND to_regclass(pgembed._job_table(e.id)) IS NOT NULL
    ORDER BY e.name;
END;
$$;
COMMENT ON FUNCTION pgembed._queue_depths() IS
'Of each kept embedding: rows that wait, rows that failed, and for how many seconds the first has waited. Cheaper than embedding_status, which counts the rows of the sources.';
