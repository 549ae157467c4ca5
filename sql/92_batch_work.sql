-- Batches, as workers see them: claim, renew, end.

CREATE OR REPLACE FUNCTION pgembed._claim_batch(worker uuid, lease interval, max_attempts integer)
RETURNS SETOF pgembed.batch
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    chosen pgembed.batch;
BEGIN
    DELETE FROM pgembed.batch AS b
    WHERE b.state IN ('done', 'failed', 'cancelled') AND b.ended_at < now() - interval '30 days';
    -- A caller comes first whose batches began longest ago: nobody's hundred delay another's one.
    SELECT b.* INTO chosen
    FROM pgembed.batch AS b
    LEFT JOIN pgembed.batch_progress AS p ON p.batch = b.id
    WHERE (b.state = 'waiting' AND (b.due_at <= clock_timestamp() OR b.cancel_requested))
        OR (b.state = 'running' AND coalesce(p.leased_until, '-infinity') < clock_timestamp())
    ORDER BY
        b.cancel_requested DESC,
        (SELECT max(o.started_at) FROM pgembed.batch AS o WHERE o.caller = b.caller) NULLS FIRST,
        b.id
    LIMIT 1
    FOR UPDATE OF b SKIP LOCKED;
    -- What was locked may be newer than what was looked at: claimed a moment ago, say.
    IF NOT FOUND OR EXISTS (
        SELECT FROM pgembed.batch_progress AS p
        WHERE p.batch = chosen.id AND chosen.state = 'running' AND p.leased_until >= clock_timestamp()
    ) THEN
        RETURN;
    END IF;
    IF chosen.cancel_requested OR chosen.attempts >= max_attempts THEN
        UPDATE pgembed.batch AS b
        SET state = CASE WHEN b.cancel_requested THEN 'cancelled' ELSE 'failed' END,
            error = CASE WHEN NOT b.cancel_requested THEN coalesce(b.error || '; ', '')
                || format('its worker died (%s attempts)', b.attempts) END,
            lease = NULL, worker = NULL, ended_at = clock_timestamp()
        WHERE b.id = chosen.id
        RETURNING b.* INTO chosen;
        RETURN NEXT chosen;
        RETURN;
    END IF;
    INSERT INTO pgembed.batch_progress AS p (batch, leased_until)
    VALUES (chosen.id, clock_timestamp() + _claim_batch.lease)
    ON CONFLICT (batch) DO UPDATE SET
        leased_until = excluded.leased_until, stage = NULL, share = NULL,
        queries = NULL, queries_done = NULL;
    UPDATE pgembed.batch AS b
    SET state = 'running', worker = _claim_batch.worker, lease = pgembed._new_lease(),
        attempts = b.attempts + 1, started_at = clock_timestamp(), error = NULL
    WHERE b.id = chosen.id
    RETURNING b.* INTO chosen;
    RETURN NEXT chosen;
END;
$$;
COMMENT ON FUNCTION pgembed._claim_batch(uuid, interval, integer) IS
'The next batch, running under a new lease: one that waits, or whose worker has died. One that is cancelled, or died too often, is ended instead, and returned as such.';


CREATE OR REPLACE FUNCTION pgembed._renew_batch(
    batch bigint, lease bigint, duration interval,
    stage text, share float8, queries bigint, queries_done bigint
)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    b pgembed.batch;
BEGIN
    SELECT o.* INTO b FROM pgembed.batch AS o
    WHERE o.id = _renew_batch.batch AND o.lease = _renew_batch.lease AND o.state = 'running';
    IF NOT FOUND THEN
        RETURN 'lost';
    END IF;
    UPDATE pgembed.batch_progress AS p
    SET leased_until = clock_timestamp() + duration, stage = _renew_batch.stage,
        share = _renew_batch.share, queries = _renew_batch.queries,
        queries_done = _renew_batch.queries_done
    WHERE p.batch = _renew_batch.batch;
    RETURN CASE WHEN b.cancel_requested THEN 'cancel' ELSE 'held' END;
END;
$$;
COMMENT ON FUNCTION pgembed._renew_batch(bigint, bigint, interval, text, float8, bigint, bigint) IS
'The batch is still worked on, so far: held, lost (to another worker, or ended), or cancel.';


-- Called in the transaction that writes the results, in the session of the caller: the
-- one statement there that is not done with the caller's rights. The transaction is
-- REPEATABLE READ: when the batch was taken over or cancelled since its snapshot, the
-- update fails, and nothing of the results is left.
CREATE OR REPLACE FUNCTION pgembed._finish_batch(
    batch bigint, lease bigint, rows bigint, report jsonb
)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE pgembed.batch AS b
    SET state = 'done', rows = _finish_batch.rows, report = _finish_batch.report,
        lease = NULL, worker = NULL, ended_at = clock_timestamp()
    WHERE b.id = _finish_batch.batch AND b.lease = _finish_batch.lease AND b.state = 'running'
        AND NOT b.cancel_requested
        AND b.caller = quote_ident(session_user)::regrole AND b.caller_name = session_user;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'batch % is not held any more', batch USING ERRCODE = 'serialization_failure';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._finish_batch(bigint, bigint, bigint, jsonb) IS
'The batch is done, if it is still held under this lease and is one of this session''s role; else an error.';


CREATE OR REPLACE FUNCTION pgembed._end_batch(
    batch bigint, lease bigint, state text, error text, delay interval
)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ended text;
BEGIN
    UPDATE pgembed.batch AS b
    SET state = CASE WHEN b.cancel_requested THEN 'cancelled' ELSE _end_batch.state END,
        error = CASE WHEN NOT b.cancel_requested THEN _end_batch.error END,
        attempts = b.attempts - CASE WHEN _end_batch.state = 'waiting' AND _end_batch.error IS NULL THEN 1 ELSE 0 END,
        due_at = clock_timestamp() + delay,
        ended_at = CASE WHEN b.cancel_requested OR _end_batch.state <> 'waiting' THEN clock_timestamp() END,
        lease = NULL, worker = NULL
    WHERE b.id = _end_batch.batch AND b.lease = _end_batch.lease AND b.state = 'running'
    RETURNING b.state INTO ended;
    RETURN ended;
END;
$$;
COMMENT ON FUNCTION pgembed._end_batch(bigint, bigint, text, text, interval) IS
'End a batch that left no results: failed, or waiting for another attempt after the delay (one without an error did not count). Returns the state, NULL when it was not held any more.';
