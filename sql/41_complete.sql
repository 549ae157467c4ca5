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
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = NULL, pgembed_slot = NULL, '
        'pgembed_available_at = now() FROM unnest($2, $3) AS r (slot, version) '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = r.slot AND j.pgembed_version <> r.version',
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


CREATE OR REPLACE FUNCTION pgembed._end_jobs(
    e pgembed.embedding, lease bigint, slots integer[], versions integer[]
)
RETURNS integer[]
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
DECLARE
    ended integer[];
BEGIN
    EXECUTE format('WITH ended AS (UPDATE %s AS j SET pgembed_available_at = NULL, pgembed_changed_at = NULL, '
        'pgembed_attempts = 0, pgembed_error = NULL, '
        'pgembed_fingerprint = md5(%s)::uuid '
        'FROM unnest($2, $3) AS r (slot, version), %s AS s '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = r.slot '
        'AND j.pgembed_version = r.version AND %s RETURNING r.slot) '
        'SELECT array_agg(slot) FROM ended',
        pgembed._job_table(e.id), pgembed._content_expression(e, 's'), e.source,
        pgembed._key_match(e.source, 's', 'j'))
        INTO ended USING lease, slots, versions;
    RETURN coalesce(ended, '{}');
END;
$$;
COMMENT ON FUNCTION pgembed._end_jobs(pgembed.embedding, bigint, integer[], integer[]) IS
'End the jobs whose lease and version are still those that were read; returns their slots. They keep their lease number until the vectors are written.';


CREATE OR REPLACE FUNCTION pgembed._let_go(job text, lease bigint, slots integer[])
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = NULL, pgembed_slot = NULL '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2)', job) USING lease, slots;
END;
$$;
COMMENT ON FUNCTION pgembed._let_go(text, bigint, integer[]) IS
'Take the lease off jobs that have ended.';


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
SET row_security = off
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    e pgembed.embedding := pgembed._open_embedding(embedding);
    job text := pgembed._job_table(embedding);
    held integer[];
    written integer[];
BEGIN
    IF e.id IS NULL OR NOT pgembed._try_lock(e.source, 'ROW EXCLUSIVE') THEN
        RETURN '{}';
    END IF;
    held := pgembed._hand_back_stale(job, lease, slots, versions);
    EXECUTE format(
        'WITH ended AS (UPDATE %1$s AS j SET pgembed_available_at = NULL, '
        'pgembed_changed_at = NULL, pgembed_lease = NULL, '
        'pgembed_slot = NULL, pgembed_attempts = 0, pgembed_error = NULL, '
        'pgembed_fingerprint = md5(%2$s)::uuid '
        'FROM unnest($2, $3, $4) AS r (slot, version, vector), %3$s AS s '
        'WHERE r.slot = ANY ($5) AND j.pgembed_lease = $1 AND j.pgembed_slot = r.slot '
        'AND j.pgembed_version = r.version AND %4$s RETURNING %5$s, r.slot, r.vector), '
        'written AS (UPDATE %3$s AS s SET %6$I = %7$s FROM ended AS j WHERE %4$s '
        'AND (s.%6$I IS NOT NULL OR j.vector IS NOT NULL)) '
        'SELECT array_agg(slot) FROM ended',
        job, pgembed._content_expression(e, 's'), e.source,
        pgembed._key_match(e.source, 's', 'j'), pgembed._column_list(e.key_columns, 'j'),
        e.target_column, pgembed._stored_vector(e, 'j.vector')
    ) INTO written USING lease, slots, versions, vectors, pgembed._lock_sources(e, lease, held);
    PERFORM pgembed._record_progress(e.id, worker, cardinality(written));
    RETURN ARRAY(
        SELECT s FROM unnest(slots) AS s WHERE s <> ALL (held) OR s = ANY (written)
    );
EXCEPTION
    WHEN undefined_column OR undefined_table THEN
        PERFORM pgembed._block(embedding, SQLERRM);
        RETURN '{}';
END;
$$;
COMMENT ON FUNCTION pgembed._complete(
    integer, bigint, uuid, integer[], integer[], @extschema:vector@.vector[]
) IS
'Write vectors back. Returns the slots that are settled: written, changed meanwhile, or no longer held; the rest are locked by users and can be tried again.';


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


CREATE OR REPLACE FUNCTION pgembed._complete_chunks(
    embedding integer,
    lease bigint,
    worker uuid,
    slots integer[],
    versions integer[],
    chunk_slots integer[],
    chunk_texts text[],
    vectors @extschema:vector@.vector[]
)
RETURNS integer[]
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    e pgembed.embedding := pgembed._open_embedding(embedding);
    job text := pgembed._job_table(embedding);
    held integer[];
    ended integer[];
BEGIN
    IF e.id IS NULL OR NOT pgembed._try_lock(e.source, 'ROW EXCLUSIVE') THEN
        RETURN '{}';
    END IF;
    held := pgembed._hand_back_stale(job, lease, slots, versions);
    ended := pgembed._lock_sources(e, lease, held);
    ended := pgembed._end_jobs(e, lease,
        ARRAY(SELECT r.slot FROM unnest(slots, versions) AS r (slot, version) WHERE r.slot = ANY (ended)),
        ARRAY(SELECT r.version FROM unnest(slots, versions) AS r (slot, version) WHERE r.slot = ANY (ended)));
    EXECUTE format('DELETE FROM %s AS c USING %s AS j '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2) AND %s',
        e.target, job, pgembed._key_match(e.source, 'c', 'j')) USING lease, ended;
    EXECUTE format('INSERT INTO %s (%s, chunk, content, embedding) '
        'SELECT %s, row_number() OVER (PARTITION BY r.slot ORDER BY r.ordinal) - 1, r.content, %s '
        'FROM unnest($3, $4, $5) WITH ORDINALITY AS r (slot, content, vector, ordinal) '
        'INNER JOIN %s AS j ON j.pgembed_lease = $1 AND j.pgembed_slot = r.slot '
        'WHERE r.slot = ANY ($2)',
        e.target, (SELECT string_agg(quote_ident(k), ', ') FROM unnest(e.key_columns) AS k),
        pgembed._column_list(e.key_columns, 'j'), pgembed._stored_vector(e, 'r.vector'), job)
        USING lease, ended, chunk_slots, chunk_texts, vectors;
    PERFORM pgembed._let_go(job, lease, ended);
    PERFORM pgembed._record_progress(e.id, worker, cardinality(ended));
    RETURN ARRAY(SELECT s FROM unnest(slots) AS s WHERE s <> ALL (held) OR s = ANY (ended));
EXCEPTION
    WHEN undefined_column OR undefined_table THEN
        PERFORM pgembed._block(embedding, SQLERRM);
        RETURN '{}';
END;
$$;
COMMENT ON FUNCTION pgembed._complete_chunks(
    integer, bigint, uuid, integer[], integer[], integer[], text[], @extschema:vector@.vector[]
) IS
'Write the chunks of rows back, in place of their old ones. Returns the slots that are settled, as _complete does.';
