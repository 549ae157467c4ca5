-- Jobs: what workers do. Every state change is guarded by what the worker read: the lease
-- it holds and the version of the row. Keys stay in the database: a claim numbers its rows
-- (slot), and workers speak of (lease, slot, version).
--
-- Lock order, for users and workers alike: source table, source row, job row. Workers never
-- wait for a source (NOWAIT, SKIP LOCKED), so that they can never be part of a deadlock.

CREATE OR REPLACE FUNCTION pgembed._open_embedding(embedding integer)
RETURNS pgembed.embedding
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.*
    FROM pgembed.embedding AS e
    WHERE e.id = embedding AND e.kind = 'kept' AND NOT e.paused AND e.blocked IS NULL
        AND pgembed._exists(e.source);
$$;
COMMENT ON FUNCTION pgembed._open_embedding(integer) IS
'The embedding, when workers may work on it.';


CREATE OR REPLACE FUNCTION pgembed._block(embedding integer, reason text)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE pgembed.embedding AS e SET blocked = reason WHERE e.id = embedding;
$$;
COMMENT ON FUNCTION pgembed._block(integer, text) IS
'Set an embedding aside because no worker can go on with it; its jobs wait, others run.';


CREATE OR REPLACE FUNCTION pgembed._unblock(embedding integer)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE pgembed.embedding AS e SET blocked = NULL
    WHERE e.id = embedding AND e.blocked IS NOT NULL;
$$;
COMMENT ON FUNCTION pgembed._unblock(integer) IS
'Let workers go on with an embedding that was set aside.';


CREATE OR REPLACE FUNCTION pgembed._enqueue_all(embedding integer)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
    added bigint;
BEGIN
    SELECT n.* INTO e
    FROM pgembed.embedding AS n
    WHERE n.id = embedding AND NOT n.enqueued
    FOR UPDATE SKIP LOCKED;
    IF NOT FOUND OR NOT pgembed._try_lock(e.source, 'ACCESS SHARE') THEN
        RETURN 0;
    END IF;
    EXECUTE format(
        'INSERT INTO %1$s (%2$s) SELECT %3$s FROM %4$s AS s '
        'WHERE NOT EXISTS (SELECT FROM %1$s AS j WHERE %5$s)',
        pgembed._job_table(e.id),
        (SELECT string_agg(quote_ident(k), ', ') FROM unnest(e.key_columns) AS k),
        pgembed._column_list(e.key_columns, 's'), e.source,
        pgembed._key_match(e.source, 'j', 's')
    );
    GET DIAGNOSTICS added = ROW_COUNT;
    UPDATE pgembed.embedding AS n SET enqueued = true WHERE n.id = e.id;
    RETURN added;
END;
$$;
COMMENT ON FUNCTION pgembed._enqueue_all(integer) IS
'Give the rows that were there before the embedding their jobs. Done by a worker, so that declaring an embedding locks the source for a moment only.';


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
BEGIN
    FOR e IN
        SELECT n.*, m.hash
        FROM pgembed.embedding AS n
        INNER JOIN pgembed.model AS m ON m.name = n.model
        WHERE n.kind = 'kept' AND NOT n.paused AND n.blocked IS NULL
        ORDER BY n.id
    LOOP
        IF NOT pgembed._exists(e.source) THEN
            PERFORM pgembed.drop_embedding(e.name);
            CONTINUE;
        END IF;
        IF NOT e.enqueued THEN
            PERFORM pgembed._enqueue_all(e.id);
        END IF;
        EXECUTE format(
            'SELECT (SELECT count(*) FROM (SELECT FROM %1$s '
            'WHERE pgembed_available_at <= now() LIMIT 1000) AS r), '
            '(SELECT min(pgembed_available_at) FROM %1$s)',
            pgembed._job_table(e.id)
        ) INTO ready, next_at;
        IF next_at IS NULL THEN
            CONTINUE;
        END IF;
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
'The embeddings that have jobs: how many can be claimed now (at most 1,000 are counted) and when the next one can. Also enqueues the rows of new embeddings and forgets embeddings whose source was dropped.';


CREATE OR REPLACE FUNCTION pgembed._claim_size(attempts integer, max_rows integer)
RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN greatest(1, max_rows >> least(3 * attempts, 30));
COMMENT ON FUNCTION pgembed._claim_size(integer, integer) IS
'How many rows to claim together after so many attempts: an eighth each time, so that a row that kills its worker is soon alone.';


CREATE OR REPLACE FUNCTION pgembed._claim(
    embedding integer,
    max_rows integer,
    max_characters bigint,
    duration interval,
    max_attempts integer
)
RETURNS TABLE (lease bigint, slot integer, version integer, content text, attempts smallint)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    e pgembed.embedding := pgembed._open_embedding(embedding);
    job text := pgembed._job_table(embedding);
    tried smallint;
    picked tid[];
    slots integer[];
    versions integer[];
    contents text[];
    held_attempts smallint[];
BEGIN
    IF e.id IS NULL OR NOT pgembed._try_lock(e.source, 'ACCESS SHARE') THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT j.pgembed_attempts FROM %s AS j '
        'WHERE j.pgembed_available_at <= now() '
        'ORDER BY j.pgembed_available_at LIMIT 1', job) INTO tried;
    IF tried IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT array_agg(p.tid) FROM (SELECT j.ctid AS tid FROM %s AS j '
        'WHERE j.pgembed_available_at <= now() AND j.pgembed_attempts = $1 '
        'ORDER BY j.pgembed_available_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS p', job)
        INTO picked USING tried, pgembed._claim_size(tried, max_rows);

    IF tried >= max_attempts THEN
        EXECUTE format('UPDATE %s AS j SET pgembed_available_at = NULL, pgembed_lease = NULL, '
            'pgembed_slot = NULL, pgembed_changed_at = now(), '
            'pgembed_error = coalesce(j.pgembed_error, $2) '
            'WHERE j.ctid = ANY ($1)', job)
            USING picked, format('%s workers died or stalled while they held this row', tried);
        RETURN;
    END IF;

    lease := nextval('pgembed.lease_seq');
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = $2, pgembed_slot = p.slot, '
        'pgembed_attempts = j.pgembed_attempts + 1, pgembed_available_at = now() + $3, '
        'pgembed_changed_at = coalesce(j.pgembed_changed_at, j.pgembed_available_at) '
        'FROM unnest($1) WITH ORDINALITY AS p (tid, slot) WHERE j.ctid = p.tid', job)
        USING picked, lease, duration;

    -- A second statement with a snapshot of its own: content and version of the same moment.
    EXECUTE format('DELETE FROM %s AS j WHERE j.pgembed_lease = $1 '
        'AND NOT EXISTS (SELECT FROM %s AS s WHERE %s)',
        job, e.source, pgembed._key_match(e.source, 's', 'j')) USING lease;
    EXECUTE format(
        'SELECT array_agg(t.slot), array_agg(t.version), array_agg(t.content), array_agg(t.attempts) '
        'FROM (SELECT r.*, sum(length(r.content)) OVER (ORDER BY r.slot '
        'ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before '
        'FROM (SELECT j.pgembed_slot AS slot, j.pgembed_version AS version, '
        'j.pgembed_attempts AS attempts, %s AS content '
        'FROM %s AS j INNER JOIN %s AS s ON %s WHERE j.pgembed_lease = $1) AS r '
        'ORDER BY r.slot) AS t WHERE coalesce(t.before, 0) < $2',
        pgembed._content_expression(e, 's'), job, e.source,
        pgembed._key_match(e.source, 'j', 's')
    ) INTO slots, versions, contents, held_attempts USING lease, max_characters;
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_attempts = j.pgembed_attempts - 1, pgembed_available_at = now() '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot <> ALL ($2)', job)
        USING lease, coalesce(slots, '{}');
    RETURN QUERY SELECT lease, r.* FROM unnest(slots, versions, contents, held_attempts) AS r;
EXCEPTION
    WHEN undefined_column OR undefined_table THEN
        PERFORM pgembed._block(embedding, SQLERRM);
END;
$$;
COMMENT ON FUNCTION pgembed._claim(integer, integer, bigint, interval, integer) IS
'Take the rows that have waited longest under a new lease, and read their texts: at most max_rows, and texts until max_characters are reached. A NULL content asks for a NULL vector.';


CREATE OR REPLACE FUNCTION pgembed._renew(embedding integer, lease bigint, duration interval)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    renewed bigint;
BEGIN
    EXECUTE format('UPDATE %1$s AS j SET pgembed_available_at = now() + $2 WHERE j.ctid = ANY (ARRAY('
        'SELECT r.ctid FROM %1$s AS r WHERE r.pgembed_lease = $1 FOR UPDATE SKIP LOCKED))',
        pgembed._job_table(embedding)) USING lease, duration;
    GET DIAGNOSTICS renewed = ROW_COUNT;
    RETURN renewed;
END;
$$;
COMMENT ON FUNCTION pgembed._renew(integer, bigint, interval) IS
'Prolong a lease; the number of rows still held under it.';


CREATE OR REPLACE FUNCTION pgembed._release(embedding integer, lease bigint, delay interval)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    released bigint;
BEGIN
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_attempts = greatest(j.pgembed_attempts - 1, 0), '
        'pgembed_available_at = now() + $2 WHERE j.pgembed_lease = $1',
        pgembed._job_table(embedding)) USING lease, delay;
    GET DIAGNOSTICS released = ROW_COUNT;
    RETURN released;
END;
$$;
COMMENT ON FUNCTION pgembed._release(integer, bigint, interval) IS
'Hand back what is still held under a lease, without counting an attempt.';


CREATE OR REPLACE FUNCTION pgembed._fail(
    embedding integer,
    lease bigint,
    slots integer[],
    versions integer[],
    errors text[],
    base interval,
    max_attempts integer
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    failed bigint;
BEGIN
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_error = left(r.error, 1000), '
        'pgembed_changed_at = CASE WHEN j.pgembed_attempts < $6 THEN j.pgembed_changed_at ELSE now() END, '
        'pgembed_available_at = CASE WHEN j.pgembed_attempts < $6 THEN '
        'now() + $5 * least(power(j.pgembed_attempts, 4) * (0.9 + 0.2 * random()), 3600) END '
        'FROM unnest($2, $3, $4) AS r (slot, version, error) '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = r.slot AND j.pgembed_version = r.version',
        pgembed._job_table(embedding)) USING lease, slots, versions, errors, base, max_attempts;
    GET DIAGNOSTICS failed = ROW_COUNT;
    RETURN failed;
END;
$$;
COMMENT ON FUNCTION pgembed._fail(integer, bigint, integer[], integer[], text[], interval, integer) IS
'Record why rows could not be embedded: tried again after base * attempts^4 (10 % jitter), or left in pgembed.failures when the attempts are used up.';
