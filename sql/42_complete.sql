-- Write-back: vector and job end in one transaction, only for rows that are still what was read.

CREATE OR REPLACE FUNCTION pgembed._hand_back_stale(
    job text, lease bigint, slots integer[], versions integer[]
)
RETURNS integer[]
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held integer[];
BEGIN
    EXECUTE format('UPDATE %1$s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_available_at = now() WHERE j.ctid = ANY (ARRAY(SELECT h.ctid '
        'FROM %1$s AS h INNER JOIN unnest($2, $3) AS r (slot, version) ON h.pgembed_slot = r.slot '
        'WHERE h.pgembed_lease = $1 AND h.pgembed_version <> r.version FOR UPDATE OF h SKIP LOCKED))',
        job) USING lease, slots, versions;
    EXECUTE format('SELECT array_agg(j.pgembed_slot) FROM %s AS j '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2)', job)
        INTO held USING lease, slots;
    RETURN coalesce(held, '{}');
END;
$$;
COMMENT ON FUNCTION pgembed._hand_back_stale(text, bigint, integer[], integer[]) IS
'Give rows that changed since they were read back to the queue; returns the slots that the lease still holds.';


CREATE OR REPLACE FUNCTION pgembed._lock_sources(
    e pgembed.embedding, lease bigint, slots integer[]
)
RETURNS integer[]
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    locked integer[];
BEGIN
    EXECUTE format('SELECT array_agg(r.slot) FROM (SELECT j.pgembed_slot AS slot '
        'FROM %s AS j INNER JOIN %s AS s ON %s '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2) '
        'FOR NO KEY UPDATE OF s SKIP LOCKED) AS r',
        pgembed._job_table(e.id), e.source, pgembed._key_match(e.source, 'j', 's'))
        INTO locked USING lease, slots;
    RETURN coalesce(locked, '{}');
END;
$$;
COMMENT ON FUNCTION pgembed._lock_sources(pgembed.embedding, bigint, integer[]) IS
'Lock the source rows that nobody else has locked; returns their slots. From here on their content cannot change until the transaction ends.';


CREATE OR REPLACE FUNCTION pgembed._merge_twins(
    e pgembed.embedding, lease bigint, slots integer[]
)
RETURNS integer[]
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    twins text := format('j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2) '
        'AND o.ctid <> j.ctid AND %s', pgembed._key_match(e.source, 'o', 'j'));
    merged integer[];
BEGIN
    EXECUTE format('SELECT array_agg(DISTINCT j.pgembed_slot) FROM %1$s AS j, %1$s AS o WHERE %2$s',
        job, twins) INTO merged USING lease, slots;
    IF merged IS NULL THEN
        RETURN '{}';
    END IF;
    EXECUTE format('UPDATE %1$s AS o SET pgembed_version = o.pgembed_version %% 2147483647 + 1, '
        'pgembed_available_at = now(), pgembed_attempts = 0, pgembed_error = NULL '
        'FROM %1$s AS j WHERE %2$s', job, twins) USING lease, merged;
    EXECUTE format('DELETE FROM %1$s AS j USING %1$s AS o WHERE %2$s '
        'AND (o.pgembed_lease IS DISTINCT FROM $1 OR o.ctid > j.ctid)', job, twins)
        USING lease, merged;
    RETURN merged;
END;
$$;
COMMENT ON FUNCTION pgembed._merge_twins(pgembed.embedding, bigint, integer[]) IS
'Keep one job, to be done anew, of rows that have two: one of them may not know of a change that the other recorded. Their source rows are locked, so that no more can come. Returns the slots.';


CREATE OR REPLACE FUNCTION pgembed._hold(
    e pgembed.embedding,
    lease bigint,
    slots integer[],
    versions integer[],
    OUT waiting integer[],
    OUT locked integer[]
)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    merged integer[];
BEGIN
    waiting := pgembed._hand_back_stale(pgembed._job_table(e.id), lease, slots, versions);
    locked := pgembed._lock_sources(e, lease, waiting);
    merged := pgembed._merge_twins(e, lease, locked);
    waiting := ARRAY(SELECT w FROM unnest(waiting) AS w WHERE w <> ALL (merged));
END;
$$;
COMMENT ON FUNCTION pgembed._hold(pgembed.embedding, bigint, integer[], integer[]) IS
'Before write-back: settle the rows that changed meanwhile and lock the others. waiting: slots still to be written; locked: those among them that can be.';


CREATE OR REPLACE FUNCTION pgembed._settled(
    slots integer[], waiting integer[], ended integer[]
)
RETURNS integer[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN ARRAY(SELECT s FROM unnest(slots) AS s WHERE s <> ALL (waiting) OR s = ANY (ended));
COMMENT ON FUNCTION pgembed._settled(integer[], integer[], integer[]) IS
'The slots that need no other try: ended, or not waiting any more.';


CREATE OR REPLACE FUNCTION pgembed._check_lengths(VARIADIC lengths integer[])
RETURNS void
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF lengths[1] <> ANY (lengths) THEN
        RAISE EXCEPTION 'arrays that belong together have % elements', array_to_string(lengths, ', ')
            USING ERRCODE = 'array_subscript_error', HINT = 'They are parallel.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_lengths(integer[]) IS
'An error unless parallel arrays have the same length: a vector must not be taken for NULL because it is missing.';


CREATE OR REPLACE FUNCTION pgembed._record_progress(embedding integer, worker uuid, rows integer)
RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO pgembed.progress AS p (embedding, worker, bucket, rows)
    SELECT $1, $2, date_bin('10 seconds', now(), timestamptz '2000-01-01'), $3
    WHERE $3 > 0 AND $2 IS NOT NULL
    ON CONFLICT (embedding, worker, bucket) DO UPDATE SET rows = p.rows + excluded.rows;
$$;
COMMENT ON FUNCTION pgembed._record_progress(integer, uuid, integer) IS
'Count embedded rows, for the rate in the status.';


CREATE OR REPLACE FUNCTION pgembed._stored_vector(e pgembed.embedding, expression text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE e.storage
    WHEN 'bit' THEN format('@extschema:vector@.binary_quantize(%s)', expression)
    WHEN 'halfvec' THEN format('%s::@extschema:vector@.halfvec', expression)
    ELSE expression
END;
COMMENT ON FUNCTION pgembed._stored_vector(pgembed.embedding, text) IS
'SQL: a float32 vector as the embedding stores it.';


CREATE OR REPLACE FUNCTION pgembed._fail_left_out(
    e pgembed.embedding, jobs tid[], vectors @extschema:vector@.vector[]
)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
BEGIN
    -- A blank row without a vector is not written; suppress_redundant_updates_trigger() leaves out
    -- those that hold theirs.
    EXECUTE format('UPDATE %1$s AS j SET pgembed_attempts = 1, pgembed_changed_at = now(), pgembed_error = $3 '
        'FROM unnest($1, $2) AS r (job, vector), %2$s AS s WHERE j.ctid = r.job AND %3$s '
        'AND ROW(s.%4$I)::record OPERATOR(pg_catalog.*<>) ROW(%5$s)::record',
        pgembed._job_table(e.id), e.source, pgembed._key_match(e.source, 's', 'j'),
        e.target_column, pgembed._stored_vector(e, 'r.vector'))
        USING jobs, vectors, 'the table did not take the vector: a trigger left the row out of the UPDATE';
END;
$$;
COMMENT ON FUNCTION pgembed._fail_left_out(pgembed.embedding, tid[], @extschema:vector@.vector[]) IS
'Of jobs that have ended though their rows were not written, let those fail whose rows do not hold the vector: not their worker but a trigger of the table decided so, and would again.';


CREATE OR REPLACE FUNCTION pgembed._write_vectors(
    e pgembed.embedding,
    lease bigint,
    slots integer[],
    versions integer[],
    vectors @extschema:vector@.vector[],
    locked integer[]
)
RETURNS integer[]
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
DECLARE
    written integer[];
    left_out tid[];
    lost @extschema:vector@.vector[];
BEGIN
    EXECUTE format(
        'WITH ended AS (UPDATE %1$s AS j SET pgembed_available_at = NULL, '
        'pgembed_changed_at = NULL, pgembed_lease = NULL, '
        'pgembed_slot = NULL, pgembed_attempts = 0, pgembed_error = NULL, '
        'pgembed_fingerprint = md5(%2$s)::uuid '
        'FROM unnest($2, $3, $4) AS r (slot, version, vector), %3$s AS s '
        'WHERE r.slot = ANY ($5) AND j.pgembed_lease = $1 AND j.pgembed_slot = r.slot '
        'AND j.pgembed_version = r.version AND %4$s '
        'RETURNING %5$s, j.ctid AS pgembed_job, r.slot AS pgembed_done, r.vector AS pgembed_vector), '
        'written AS (UPDATE %3$s AS s SET %6$I = %7$s FROM ended AS j WHERE %4$s '
        'AND (s.%6$I IS NOT NULL OR j.pgembed_vector IS NOT NULL) RETURNING j.pgembed_done) '
        -- No join: without those by hash it would compare every row with every other.
        'SELECT array_agg(o.pgembed_done), array_agg(o.pgembed_job) FILTER (WHERE o.pgembed_left_out), '
        'array_agg(o.pgembed_vector) FILTER (WHERE o.pgembed_left_out) '
        'FROM (SELECT d.*, d.pgembed_done NOT IN (SELECT w.pgembed_done FROM written AS w) AS pgembed_left_out '
        'FROM ended AS d) AS o',
        pgembed._job_table(e.id), pgembed._content_expression(e, 's'), e.source,
        pgembed._key_match(e.source, 's', 'j'), pgembed._column_list(e.key_columns, 'j'),
        e.target_column, pgembed._stored_vector(e, 'j.pgembed_vector')
    ) INTO written, left_out, lost USING lease, slots, versions, vectors, locked;
    PERFORM pgembed._fail_left_out(e, left_out, lost) WHERE left_out IS NOT NULL;
    RETURN coalesce(written, '{}');
END;
$$;
COMMENT ON FUNCTION pgembed._write_vectors(
    pgembed.embedding, bigint, integer[], integer[], @extschema:vector@.vector[], integer[]
) IS
'End the jobs whose lease and version are still those that were read, and write their vectors; returns their slots.';


CREATE OR REPLACE FUNCTION pgembed._may_write(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN NOT EXISTS (
        SELECT FROM unnest(e.key_columns || e.content_columns) AS k
        WHERE NOT has_column_privilege(e.source, k, 'SELECT')
    )
    AND CASE
        WHEN e.target = e.source THEN has_column_privilege(e.source, e.target_column, 'SELECT')
            AND has_column_privilege(e.source, e.target_column, 'UPDATE')
        -- To lock a row takes UPDATE on some column.
        ELSE has_any_column_privilege(e.source, 'UPDATE')
            AND (SELECT bool_and(has_table_privilege(e.target, p)) FROM unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS p)
    END;
COMMENT ON FUNCTION pgembed._may_write(pgembed.embedding) IS
'Whether this role has the rights on the tables that writing vectors back takes.';


CREATE OR REPLACE FUNCTION pgembed._refuse_rows(e pgembed.embedding, state text, message text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regclass(pgembed._job_table(e.id)) IS NULL OR NOT pgembed._has_source(e) THEN
        RETURN;
    ELSIF state = '42501' AND NOT pgembed._may_write(e) THEN
        PERFORM pgembed._block(e.id, message);
    ELSE
        -- Some trigger's of the table, at some row: the worker finds out at which.
        RAISE EXCEPTION '%', message;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._refuse_rows(pgembed.embedding, text, text) IS
'After a write-back that failed for want of a privilege or an object: set the embedding aside when its worker lacks rights; an error about rows when it is the table''s triggers.';


CREATE OR REPLACE FUNCTION pgembed._complete(
    embedding integer,
    lease bigint,
    worker uuid,
    slots integer[],
    versions integer[],
    vectors @extschema:vector@.vector[]
)
RETURNS integer[]
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._kept_embedding(embedding);
    held record;
    written integer[];
BEGIN
    PERFORM pgembed._check_lengths(cardinality(slots), cardinality(versions), cardinality(vectors));
    IF e.id IS NULL THEN
        RETURN slots;
    END IF;
    IF NOT pgembed._try_lock(e.source, 'ROW EXCLUSIVE') OR NOT pgembed._fits(e) THEN
        RETURN '{}';
    END IF;
    PERFORM pgembed._commit_lazily();
    held := pgembed._hold(e, lease, slots, versions);
    written := pgembed._write_vectors(e, lease, slots, versions, vectors, held.locked);
    PERFORM pgembed._record_progress(e.id, worker, cardinality(written));
    RETURN pgembed._settled(slots, held.waiting, written);
EXCEPTION
    WHEN insufficient_privilege OR undefined_table OR undefined_column OR undefined_function THEN
        PERFORM pgembed._refuse_rows(e, SQLSTATE, SQLERRM);
        RETURN '{}';
END;
$$;
COMMENT ON FUNCTION pgembed._complete(
    integer, bigint, uuid, integer[], integer[], @extschema:vector@.vector[]
) IS
'Write vectors back. Returns the slots that are settled: written, changed meanwhile, or no longer held; the rest are locked by users and can be tried again.';
