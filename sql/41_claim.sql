-- Claims: rows taken under a lease, prolonged, handed back, failed.

CREATE OR REPLACE FUNCTION pgembed._claim_size(attempts integer, max_rows integer)
RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN greatest(1, max_rows >> least(3 * attempts, 30));
COMMENT ON FUNCTION pgembed._claim_size(integer, integer) IS
'How many rows to claim together after so many attempts: an eighth each time, so that a row that kills its worker is soon alone.';


CREATE OR REPLACE FUNCTION pgembed._pick(e pgembed.embedding, max_rows integer, max_attempts integer)
RETURNS tid[]
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    tried integer;
    picked tid[];
    ended tid[];
BEGIN
    LOOP
        -- The first that can be locked: one that a user holds must not decide for the others.
        EXECUTE format('SELECT j.pgembed_attempts FROM %s AS j '
            'WHERE j.pgembed_available_at <= now() '
            'ORDER BY j.pgembed_available_at LIMIT 1 FOR UPDATE SKIP LOCKED', job) INTO tried;
        IF tried IS NULL THEN
            RETURN NULL;
        END IF;
        EXECUTE format('SELECT array_agg(p.tid) FROM (SELECT j.ctid AS tid FROM %s AS j '
            'WHERE j.pgembed_available_at <= now() AND j.pgembed_attempts = $1 '
            'ORDER BY j.pgembed_available_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS p', job)
            INTO picked USING tried, CASE WHEN tried < max_attempts
                THEN pgembed._claim_size(tried, max_rows) ELSE 1000 END;
        IF tried < max_attempts THEN
            RETURN picked;
        END IF;
        EXECUTE format('WITH u AS (UPDATE %s AS j SET pgembed_available_at = NULL, pgembed_lease = NULL, '
            'pgembed_slot = NULL, pgembed_changed_at = now(), '
            'pgembed_error = coalesce(j.pgembed_error, $2) WHERE j.ctid = ANY ($1) RETURNING j.ctid) '
            'SELECT array_agg(u.ctid) FROM u', job)
            INTO ended USING picked, format('%s workers died or stalled while they held this row', tried);
        PERFORM pgembed._clear_unknown(e, ended);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._pick(pgembed.embedding, integer, integer) IS
'Lock the jobs that have waited longest and were tried equally often; those whose attempts are used up end in pgembed.failures.';


CREATE OR REPLACE FUNCTION pgembed._delete_claimed_leftovers(e pgembed.embedding, lease bigint)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    gone text := format('WITH gone AS MATERIALIZED (SELECT %s FROM %s AS j WHERE j.pgembed_lease = $1 '
        'AND NOT EXISTS (SELECT FROM %s AS s WHERE %s))',
        pgembed._column_list(e.key_columns, 'j'), job, e.source, pgembed._key_match(e.source, 's', 'j'));
    -- Such a row may have two: that of a backfill which the transaction that deleted it did not see.
    forget text := format('DELETE FROM %1$s AS d WHERE d.ctid = ANY (ARRAY('
        'SELECT t.ctid FROM gone AS g INNER JOIN %1$s AS t ON %2$s FOR UPDATE OF t SKIP LOCKED))',
        job, pgembed._key_match(e.source, 't', 'g'));
BEGIN
    IF e.target <> e.source THEN
        forget := format(', forgotten AS (%s) DELETE FROM %s AS c USING gone AS g WHERE %s',
            forget, e.target, pgembed._key_match(e.source, 'c', 'g'));
    END IF;
    EXECUTE gone || forget USING lease;
END;
$$;
COMMENT ON FUNCTION pgembed._delete_claimed_leftovers(pgembed.embedding, bigint) IS
'Delete the jobs of claimed rows that are gone, and the chunks of those rows.';


CREATE OR REPLACE FUNCTION pgembed._read_claimed(
    e pgembed.embedding, lease bigint, first_slot integer, last_slot integer
)
RETURNS TABLE (slot integer, version integer, content text, attempts smallint)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
SET bytea_output = 'hex'
SET extra_float_digits = 1
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT j.pgembed_slot, j.pgembed_version, %s, j.pgembed_attempts '
        'FROM %s AS j INNER JOIN %s AS s ON %s '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot BETWEEN $2 AND $3',
        pgembed._content_expression(e, 's'), pgembed._job_table(e.id), e.source,
        pgembed._key_match(e.source, 'j', 's')
    ) USING lease, first_slot, last_slot;
END;
$$;
COMMENT ON FUNCTION pgembed._read_claimed(pgembed.embedding, bigint, integer, integer) IS
'The texts of claimed rows, and the versions that belong to them: of one moment, since the jobs are locked.';


CREATE OR REPLACE FUNCTION pgembed._fail_unreadable(
    e pgembed.embedding, lease bigint, last_slot integer
)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ended tid;
BEGIN
    FOR slot IN 1 .. last_slot LOOP
        BEGIN
            PERFORM length(r.content) FROM pgembed._read_claimed(e, lease, slot, slot) AS r;
        EXCEPTION
            WHEN data_exception OR data_corrupted OR program_limit_exceeded OR raise_exception THEN
                EXECUTE format('UPDATE %s AS j SET pgembed_available_at = NULL, '
                    'pgembed_changed_at = now(), pgembed_lease = NULL, pgembed_slot = NULL, '
                    'pgembed_error = $3 WHERE j.pgembed_lease = $1 AND j.pgembed_slot = $2 RETURNING j.ctid',
                    pgembed._job_table(e.id))
                    INTO ended USING lease, slot, 'its content cannot be read: ' || SQLERRM;
                PERFORM pgembed._clear_unknown(e, ARRAY[ended]);
        END;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._fail_unreadable(pgembed.embedding, bigint, integer) IS
'Set the claimed rows aside whose content raises an error when it is read, so that the others can be.';


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
AS $$
#variable_conflict use_variable
DECLARE
    e pgembed.embedding := pgembed._open_embedding(embedding);
    job text := pgembed._job_table(embedding);
    picked tid[];
    read record;
    attempt integer := 0;
BEGIN
    IF e.id IS NULL OR NOT pgembed._try_lock(e.source, 'ACCESS SHARE') OR NOT pgembed._fits(e) THEN
        RETURN;
    END IF;
    picked := pgembed._pick(e, max_rows, max_attempts);
    IF picked IS NULL THEN
        RETURN;
    END IF;
    PERFORM pgembed._commit_lazily();
    lease := pgembed._new_lease();
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = $2, pgembed_slot = p.slot, '
        'pgembed_attempts = j.pgembed_attempts + 1, pgembed_available_at = now() + $3, '
        'pgembed_changed_at = coalesce(j.pgembed_changed_at, j.pgembed_available_at) '
        'FROM unnest($1) WITH ORDINALITY AS p (tid, slot) WHERE j.ctid = p.tid', job)
        USING picked, lease, duration;

    -- From here on the versions stand still; what is read has a snapshot taken later.
    PERFORM pgembed._delete_claimed_leftovers(e, lease);
    BEGIN
        read := pgembed._read_until(e, lease, cardinality(picked), max_characters);
    EXCEPTION
        WHEN data_exception OR data_corrupted OR program_limit_exceeded OR raise_exception THEN
            PERFORM pgembed._fail_unreadable(e, lease, cardinality(picked));
            read := pgembed._read_until(e, lease, cardinality(picked), max_characters);
    END;
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_attempts = j.pgembed_attempts - 1, pgembed_available_at = now() '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot <> ALL ($2)', job)
        USING lease, read.slots;
    RETURN QUERY SELECT lease, r.*
        FROM unnest(read.slots, read.versions, read.contents, read.attempts) AS r;
EXCEPTION
    WHEN insufficient_privilege THEN
        PERFORM pgembed._block(embedding, SQLERRM);
END;
$$;
COMMENT ON FUNCTION pgembed._claim(integer, integer, bigint, interval, integer) IS
'Take the rows that have waited longest under a new lease, and read their texts: at most max_rows, and texts until max_characters are reached. A NULL content asks for a NULL vector.';


CREATE OR REPLACE FUNCTION pgembed._read_until(
    e pgembed.embedding,
    lease bigint,
    last_slot integer,
    max_characters bigint,
    OUT slots integer[],
    OUT versions integer[],
    OUT contents text[],
    OUT attempts smallint[]
)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    characters bigint := 0;
    first_slot integer := 1;
    -- Then as many as will do if the texts go on like this: what is not taken is not read.
    step integer := 16;
    part record;
BEGIN
    slots := '{}';
    versions := '{}';
    contents := '{}';
    attempts := '{}';
    WHILE first_slot <= last_slot AND characters < max_characters LOOP
        SELECT
            array_agg(t.slot ORDER BY t.slot) AS slots,
            array_agg(t.version ORDER BY t.slot) AS versions,
            array_agg(t.content ORDER BY t.slot) AS contents,
            array_agg(t.attempts ORDER BY t.slot) AS attempts,
            coalesce(sum(length(t.content)), 0) AS characters
        INTO part
        FROM (
            SELECT r.*, sum(length(r.content)) OVER (
                ORDER BY r.slot ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS before
            FROM pgembed._read_claimed(e, lease, first_slot, first_slot + step - 1) AS r
        ) AS t
        WHERE characters + coalesce(t.before, 0) < max_characters;
        slots := slots || part.slots;
        versions := versions || part.versions;
        contents := contents || part.contents;
        attempts := attempts || part.attempts;
        characters := characters + part.characters;
        first_slot := first_slot + step;
        step := least(
            (max_characters - characters) * first_slot / greatest(characters, 1) + 1, last_slot);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._read_until(pgembed.embedding, bigint, integer, bigint) IS
'The texts of claimed rows, until so many characters are reached.';


CREATE OR REPLACE FUNCTION pgembed._renew(embedding integer, lease bigint, duration interval)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held bigint;
BEGIN
    PERFORM pgembed._lock_jobs(embedding);
    EXECUTE format('UPDATE %1$s AS j SET pgembed_available_at = now() + $2 WHERE j.ctid = ANY (ARRAY('
        'SELECT r.ctid FROM %1$s AS r WHERE r.pgembed_lease = $1 FOR UPDATE SKIP LOCKED))',
        pgembed._job_table(embedding)) USING lease, duration;
    EXECUTE format('SELECT count(*) FROM %s AS j WHERE j.pgembed_lease = $1',
        pgembed._job_table(embedding)) INTO held USING lease;
    RETURN held;
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
    PERFORM pgembed._lock_jobs(embedding);
    EXECUTE format('UPDATE %1$s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_attempts = greatest(j.pgembed_attempts - 1, 0), '
        'pgembed_available_at = now() + $2 WHERE j.ctid = ANY (ARRAY('
        'SELECT r.ctid FROM %1$s AS r WHERE r.pgembed_lease = $1 FOR UPDATE SKIP LOCKED))',
        pgembed._job_table(embedding)) USING lease, delay;
    GET DIAGNOSTICS released = ROW_COUNT;
    RETURN released;
END;
$$;
COMMENT ON FUNCTION pgembed._release(integer, bigint, interval) IS
'Hand back what is still held under a lease, without counting an attempt. Rows that users have locked follow when the lease expires.';


CREATE OR REPLACE FUNCTION pgembed._clear_unknown(e pgembed.embedding, jobs tid[])
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    keys text := pgembed._key_match(e.source, 's', 'j');
    with_vector text := format('SELECT j.ctid FROM %s AS j INNER JOIN %s AS s ON %s '
        'WHERE j.ctid = ANY ($1) AND s.%I IS NOT NULL', job, e.source, keys, e.target_column);
    unknown tid[];
    locked tid[];
BEGIN
    IF e.target <> e.source THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT array_agg(j.ctid) FROM %s AS j WHERE j.ctid = ANY ($1) '
        'AND j.pgembed_available_at IS NULL AND j.pgembed_fingerprint IS NULL', job)
        INTO unknown USING jobs;
    IF unknown IS NULL THEN
        RETURN;
    END IF;
    IF pgembed._try_lock(e.source, 'ROW EXCLUSIVE') AND pgembed._fits(e) THEN
        EXECUTE format('SELECT array_agg(r.ctid) FROM (%s) AS r', with_vector) INTO unknown USING unknown;
        EXECUTE format('SELECT array_agg(r.ctid) FROM (%s FOR NO KEY UPDATE OF s SKIP LOCKED) AS r',
            with_vector) INTO locked USING unknown;
        EXECUTE format('UPDATE %s AS s SET %I = NULL FROM %s AS j WHERE j.ctid = ANY ($1) AND %s',
            e.source, e.target_column, job, keys) USING locked;
    END IF;
    -- When they are taken up again they fail at once, or are embedded after all.
    EXECUTE format('UPDATE %s AS j SET pgembed_available_at = now() + interval ''10 seconds'' '
        'WHERE j.ctid = ANY ($1) AND j.ctid <> ALL ($2)', job) USING unknown, coalesce(locked, '{}');
EXCEPTION
    WHEN OTHERS THEN
        -- A trigger of the table may refuse this as it refused the vector: the failure stands.
        RETURN;
END;
$$;
COMMENT ON FUNCTION pgembed._clear_unknown(pgembed.embedding, tid[]) IS
'Of these jobs, take away the vectors that rows held before their first, which failed: who knows of which model they are. Jobs of rows that users have locked wait, to end when that can be done.';


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
    ended tid[];
BEGIN
    PERFORM pgembed._lock_jobs(embedding);
    EXECUTE format('WITH f AS (UPDATE %1$s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_error = left(coalesce(r.error, ''unknown error''), 1000), '
        'pgembed_changed_at = CASE WHEN j.pgembed_attempts < $6 THEN j.pgembed_changed_at ELSE now() END, '
        'pgembed_available_at = CASE WHEN j.pgembed_attempts < $6 THEN '
        'now() + $5 * least(power(j.pgembed_attempts, 4) * (0.9 + 0.2 * random()), 3600) END '
        'FROM unnest($2, $3, $4) AS r (slot, version, error) '
        'WHERE j.pgembed_slot = r.slot AND j.pgembed_version = r.version AND j.ctid = ANY (ARRAY('
        'SELECT h.ctid FROM %1$s AS h WHERE h.pgembed_lease = $1 FOR UPDATE SKIP LOCKED)) '
        'RETURNING j.ctid) SELECT count(*), array_agg(f.ctid) FROM f',
        pgembed._job_table(embedding))
        INTO failed, ended USING lease, slots, versions, errors, base, max_attempts;
    PERFORM pgembed._clear_unknown(e, ended)
    FROM pgembed._kept_embedding(embedding) AS e
    WHERE e.id IS NOT NULL;
    RETURN failed;
END;
$$;
COMMENT ON FUNCTION pgembed._fail(integer, bigint, integer[], integer[], text[], interval, integer) IS
'Record why rows could not be embedded: tried again after base * attempts^4 (10 % jitter), or left in pgembed.failures when the attempts are used up.';
