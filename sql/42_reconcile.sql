-- Setting things right by hand: failed rows again, and whatever escaped the triggers.

CREATE OR REPLACE FUNCTION pgembed.retry_failed(name text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_kept(name);
    retried bigint;
BEGIN
    EXECUTE format('UPDATE %1$s AS j SET pgembed_available_at = now(), pgembed_changed_at = NULL, '
        'pgembed_attempts = 0, pgembed_error = NULL WHERE j.ctid = ANY (ARRAY('
        'SELECT r.ctid FROM %1$s AS r WHERE r.pgembed_available_at IS NULL '
        'AND r.pgembed_error IS NOT NULL FOR UPDATE SKIP LOCKED))', pgembed._job_table(e.id));
    GET DIAGNOSTICS retried = ROW_COUNT;
    PERFORM pg_notify('pgembed_work', '');
    RETURN retried;
END;
$$;
COMMENT ON FUNCTION pgembed.retry_failed(text) IS
'Give the rows in pgembed.failures their attempts again; returns how many.';


CREATE OR REPLACE FUNCTION pgembed._find_kept(name text)
RETURNS pgembed.embedding
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(name);
BEGIN
    IF e.kind <> 'kept' THEN
        RAISE EXCEPTION 'the vectors of % are written by the application', quote_literal(name)
            USING ERRCODE = 'wrong_object_type',
            HINT = 'Only embeddings made with pgembed.create_embedding are kept by workers.';
    END IF;
    RETURN e;
END;
$$;
COMMENT ON FUNCTION pgembed._find_kept(text) IS
'The embedding of that name, when it is one that workers keep.';


CREATE OR REPLACE FUNCTION pgembed._delete_leftovers(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    left_over text := format('NOT EXISTS (SELECT FROM %s AS s WHERE %s)',
        e.source, pgembed._key_match(e.source, 's', 't'));
BEGIN
    EXECUTE format('DELETE FROM %1$s AS d WHERE d.ctid = ANY (ARRAY(SELECT t.ctid FROM %1$s AS t '
        'WHERE %2$s OR EXISTS (SELECT FROM %1$s AS o WHERE o.ctid > t.ctid AND %3$s) '
        'FOR UPDATE OF t SKIP LOCKED))', job, left_over, pgembed._key_match(e.source, 'o', 't'));
    IF e.target <> e.source THEN
        EXECUTE format('DELETE FROM %s AS t WHERE %s', e.target, left_over);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._delete_leftovers(pgembed.embedding) IS
'Delete jobs and chunks of rows that are gone, and jobs that a row has twice.';


CREATE OR REPLACE FUNCTION pgembed._has_vector(e pgembed.embedding, alias text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE
    WHEN e.target = e.source THEN format('%s.%I IS NOT NULL', alias, e.target_column)
    ELSE format('EXISTS (SELECT FROM %s AS c WHERE %s)',
        e.target, pgembed._key_match(e.source, 'c', alias))
END;
COMMENT ON FUNCTION pgembed._has_vector(pgembed.embedding, text) IS
'SQL: whether a source row has its vector, or chunks.';


CREATE OR REPLACE FUNCTION pgembed.reconcile(name text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_kept(name);
    job text := pgembed._job_table(e.id);
    match text := pgembed._key_match(e.source, 'j', 's');
    content text := pgembed._content_expression(e, 's');
    missing bigint;
    stale bigint;
BEGIN
    PERFORM pgembed._create_capture(e);
    PERFORM pgembed._delete_leftovers(e);
    EXECUTE format('INSERT INTO %1$s (%2$s) SELECT %3$s FROM %4$s AS s '
        'WHERE NOT EXISTS (SELECT FROM %1$s AS j WHERE %5$s)', job,
        (SELECT string_agg(quote_ident(k), ', ') FROM unnest(e.key_columns) AS k),
        pgembed._column_list(e.key_columns, 's'), e.source, match);
    GET DIAGNOSTICS missing = ROW_COUNT;
    EXECUTE format('UPDATE %1$s AS d SET pgembed_available_at = now(), pgembed_changed_at = NULL, '
        'pgembed_version = d.pgembed_version + 1, pgembed_attempts = 0 '
        'WHERE d.ctid = ANY (ARRAY(SELECT j.ctid FROM %1$s AS j INNER JOIN %2$s AS s ON %3$s '
        'WHERE j.pgembed_available_at IS NULL AND j.pgembed_error IS NULL '
        'AND (j.pgembed_fingerprint IS DISTINCT FROM md5(%4$s)::uuid '
        'OR (%4$s IS NOT NULL) <> (%5$s)) FOR UPDATE OF j SKIP LOCKED))',
        job, e.source, match, content, pgembed._has_vector(e, 's'));
    GET DIAGNOSTICS stale = ROW_COUNT;
    UPDATE pgembed.embedding AS u SET enqueued = true WHERE u.id = e.id;
    PERFORM pg_notify('pgembed_work', '');
    RETURN missing + stale;
END;
$$;
COMMENT ON FUNCTION pgembed.reconcile(text) IS
'Compare every row with what was embedded last and queue those that differ, repair the triggers, delete what was left over: after a restore, or whenever triggers were disabled. Returns the rows queued.';
