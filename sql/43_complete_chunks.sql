-- Write-back of chunks: the row's chunks are replaced as a whole.

CREATE OR REPLACE FUNCTION pgembed._end_jobs(
    e pgembed.embedding, lease bigint, slots integer[], versions integer[], locked integer[]
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
    ended integer[];
BEGIN
    EXECUTE format('WITH ended AS (UPDATE %s AS j SET pgembed_available_at = NULL, '
        'pgembed_changed_at = NULL, pgembed_attempts = 0, pgembed_error = NULL, '
        'pgembed_fingerprint = md5(%s)::uuid '
        'FROM unnest($2, $3) AS r (slot, version), %s AS s '
        'WHERE r.slot = ANY ($4) AND j.pgembed_lease = $1 AND j.pgembed_slot = r.slot '
        'AND j.pgembed_version = r.version AND %s RETURNING r.slot) '
        'SELECT array_agg(slot) FROM ended',
        pgembed._job_table(e.id), pgembed._content_expression(e, 's'), e.source,
        pgembed._key_match(e.source, 's', 'j'))
        INTO ended USING lease, slots, versions, locked;
    RETURN coalesce(ended, '{}');
END;
$$;
COMMENT ON FUNCTION pgembed._end_jobs(pgembed.embedding, bigint, integer[], integer[], integer[]) IS
'End the jobs whose lease and version are still those that were read; returns their slots. They keep their lease number until the chunks are written.';


CREATE OR REPLACE FUNCTION pgembed._replace_chunks(
    e pgembed.embedding,
    lease bigint,
    ended integer[],
    chunk_slots integer[],
    chunk_texts text[],
    vectors @extschema:vector@.vector[]
)
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
BEGIN
    EXECUTE format('DELETE FROM %s AS c USING %s AS j '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2) AND %s',
        e.target, job, pgembed._key_match(e.source, 'c', 'j')) USING lease, ended;
    EXECUTE format('INSERT INTO %s (%s, chunk, content, embedding) '
        'SELECT %s, row_number() OVER (PARTITION BY r.slot ORDER BY r.ordinal) - 1, r.content, %s '
        'FROM unnest($3, $4, $5) WITH ORDINALITY AS r (slot, content, vector, ordinal) '
        'INNER JOIN %s AS j ON j.pgembed_lease = $1 AND j.pgembed_slot = r.slot '
        'WHERE r.slot = ANY ($2)',
        e.target, pgembed._key_list(e.key_columns), pgembed._column_list(e.key_columns, 'j'),
        pgembed._stored_vector(e, 'r.vector'), job)
        USING lease, ended, chunk_slots, chunk_texts, vectors;
    EXECUTE format('UPDATE %s AS j SET pgembed_lease = NULL, pgembed_slot = NULL '
        'WHERE j.pgembed_lease = $1 AND j.pgembed_slot = ANY ($2)', job) USING lease, ended;
END;
$$;
COMMENT ON FUNCTION pgembed._replace_chunks(
    pgembed.embedding, bigint, integer[], integer[], text[], @extschema:vector@.vector[]
) IS
'Put new chunks in place of the old ones of jobs that have ended, and take the lease off these.';


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
AS $$
DECLARE
    e pgembed.embedding := pgembed._kept_embedding(embedding);
    held record;
    ended integer[];
BEGIN
    PERFORM pgembed._check_lengths(cardinality(slots), cardinality(versions));
    PERFORM pgembed._check_lengths(
        cardinality(chunk_slots), cardinality(chunk_texts), cardinality(vectors));
    IF e.id IS NULL THEN
        RETURN slots;
    END IF;
    IF NOT pgembed._try_lock(e.source, 'ROW EXCLUSIVE') OR NOT pgembed._fits(e) THEN
        RETURN '{}';
    END IF;
    PERFORM pgembed._commit_lazily();
    held := pgembed._hold(e, lease, slots, versions);
    ended := pgembed._end_jobs(e, lease, slots, versions, held.locked);
    PERFORM pgembed._replace_chunks(e, lease, ended, chunk_slots, chunk_texts, vectors);
    PERFORM pgembed._record_progress(e.id, worker, cardinality(ended));
    RETURN pgembed._settled(slots, held.waiting, ended);
EXCEPTION
    WHEN insufficient_privilege OR undefined_table OR undefined_column OR undefined_function THEN
        PERFORM pgembed._refuse_rows(e, SQLSTATE, SQLERRM);
        RETURN '{}';
END;
$$;
COMMENT ON FUNCTION pgembed._complete_chunks(
    integer, bigint, uuid, integer[], integer[], integer[], text[], @extschema:vector@.vector[]
) IS
'Write the chunks of rows back, in place of their old ones. Returns the slots that are settled, as _complete does.';
