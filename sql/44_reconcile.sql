-- Setting things right by hand: failed rows again, and whatever escaped the triggers.

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
    IF NOT pgembed._has_source(e) THEN
        RAISE EXCEPTION 'the source of % was dropped', quote_literal(name)
            USING ERRCODE = 'undefined_table',
            HINT = 'Drop the embedding as well: SELECT pgembed.drop_embedding(...).';
    END IF;
    RETURN e;
END;
$$;
COMMENT ON FUNCTION pgembed._find_kept(text) IS
'The embedding of that name, when it is one that workers keep.';


CREATE OR REPLACE FUNCTION pgembed.retry_failed(name text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_kept(name);
    retried bigint;
BEGIN
    PERFORM pgembed._check_change(e.source);
    EXECUTE format('UPDATE %1$s AS j SET pgembed_available_at = now(), pgembed_changed_at = NULL, '
        'pgembed_attempts = 0, pgembed_error = NULL WHERE j.ctid = ANY (ARRAY('
        'SELECT r.ctid FROM %1$s AS r WHERE r.pgembed_available_at IS NULL '
        'AND r.pgembed_error IS NOT NULL FOR UPDATE SKIP LOCKED))', pgembed._job_table(e.id));
    GET DIAGNOSTICS retried = ROW_COUNT;
    PERFORM pgembed._wake();
    RETURN retried;
EXCEPTION
    WHEN undefined_table THEN
        PERFORM pgembed._check_present(e);
        RAISE;
END;
$$;
COMMENT ON FUNCTION pgembed.retry_failed(text) IS
'Give the rows in pgembed.failures their attempts again; returns how many.';


CREATE OR REPLACE FUNCTION pgembed._has_keys(relation regclass, source regclass, names text[])
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN NOT EXISTS (
    SELECT FROM unnest(names) AS k (name)
    WHERE pgembed._column_type(relation, k.name) IS DISTINCT FROM pgembed._column_type(source, k.name)
);
COMMENT ON FUNCTION pgembed._has_keys(regclass, regclass, text[]) IS
'Whether a job or chunk table has these columns, of the types of the source''s: the key is the same in another order.';


CREATE OR REPLACE FUNCTION pgembed._rename_keys(
    relation regclass, source regclass, old_names text[], new_names text[]
)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgembed._has_keys(relation, source, new_names) THEN
        RETURN;
    END IF;
    -- By way of names that nobody may give a key: one may have taken the name of another.
    FOR i IN 1 .. cardinality(new_names) LOOP
        EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, old_names[i], 'pgembed_key_' || i);
    END LOOP;
    FOR i IN 1 .. cardinality(new_names) LOOP
        EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, 'pgembed_key_' || i, new_names[i]);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._rename_keys(regclass, regclass, text[], text[]) IS
'Give the key columns of a job or chunk table the names that the source''s have now.';


CREATE OR REPLACE FUNCTION pgembed._check_new_keys(e pgembed.embedding)
RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text[] := pgembed._check_key(e.source);
    taken text;
BEGIN
    SELECT k INTO taken
    FROM unnest(names) AS k
    WHERE e.target <> e.source AND k <> ALL (e.key_columns) AND k = ANY (pgembed._columns(e.target));
    IF FOUND THEN
        RAISE EXCEPTION 'key column % of table % has the name of another column of its chunk table %',
            quote_ident(taken), e.source, e.target
            USING ERRCODE = 'duplicate_column',
            HINT = format('Give it another: ALTER TABLE %s RENAME COLUMN %I TO ...', e.source, taken);
    END IF;
    RETURN names;
END;
$$;
COMMENT ON FUNCTION pgembed._check_new_keys(pgembed.embedding) IS
'The key columns that the source has now; an error when job or chunk table cannot have these.';


CREATE OR REPLACE FUNCTION pgembed._follow_key(e pgembed.embedding)
RETURNS pgembed.embedding
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text[] := pgembed._key_columns(e.source);
    job regclass := pgembed._job_table(e.id)::regclass;
    followed pgembed.embedding;
BEGIN
    IF names = e.key_columns OR cardinality(names) <> cardinality(e.key_columns)
        OR NOT pgembed._has_keys(job, e.source, names) AND EXISTS (
            SELECT
            FROM unnest(names, e.key_columns) AS k (new, old)
            WHERE pgembed._column_type(e.source, k.new) <> pgembed._column_type(job, k.old)
        )
    THEN
        RETURN e;
    END IF;
    names := pgembed._check_new_keys(e);
    -- Other columns may have taken the names: the row of a job that a worker holds may be another.
    EXECUTE format('UPDATE %s AS j SET pgembed_version = j.pgembed_version %% 2147483647 + 1 '
        'WHERE j.pgembed_lease IS NOT NULL', job);
    IF pgembed._administers() THEN
        PERFORM pgembed._rename_keys(job, e.source, e.key_columns, names);
    END IF;
    IF e.target <> e.source AND pgembed._exists(e.target) THEN
        PERFORM pgembed._rename_keys(e.target, e.source, e.key_columns, names);
    END IF;
    UPDATE pgembed.embedding AS n
    SET key_columns = names, blocked = NULL
    WHERE n.id = e.id
    RETURNING n.* INTO followed;
    RETURN followed;
END;
$$;
COMMENT ON FUNCTION pgembed._follow_key(pgembed.embedding) IS
'Take over new names of the source''s key columns.';


CREATE OR REPLACE FUNCTION pgembed._retype_keys(e pgembed.embedding, changed regclass)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    k record;
BEGIN
    -- The casts of other types are their owners' code, and would run as whoever does this.
    FOR k IN SELECT r.* FROM pgembed._retyped_keys(e) AS r WHERE r.relation = changed AND r.is_built_in LOOP
        EXECUTE format('ALTER TABLE %1$s ALTER COLUMN %2$I TYPE %3$s USING %2$I::%3$s', changed, k.name, k.wanted);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._retype_keys(pgembed.embedding, regclass) IS
'Give the key columns of a job or chunk table the types that the source''s have now, as far as these are PostgreSQL''s own.';


CREATE OR REPLACE FUNCTION pgembed._follow_key_types(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgembed._key_columns(e.source) IS DISTINCT FROM e.key_columns
        OR NOT EXISTS (SELECT FROM pgembed._retyped_keys(e))
    THEN
        RETURN;
    END IF;
    -- Sources come before jobs; new triggers will need this lock.
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', e.source);
    IF pgembed._administers() THEN
        PERFORM pgembed._retype_keys(e, pgembed._job_table(e.id)::regclass);
    END IF;
    IF e.target <> e.source THEN
        PERFORM pgembed._retype_keys(e, e.target);
    END IF;
    -- For others than the schema's owner, a trigger of this statement changes the job table.
    UPDATE pgembed.embedding AS n SET key_columns = e.key_columns, blocked = NULL WHERE n.id = e.id;
END;
$$;
COMMENT ON FUNCTION pgembed._follow_key_types(pgembed.embedding) IS
'Take over new types of the source''s key columns.';


CREATE OR REPLACE FUNCTION pgembed._delete_twins(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    twin text := pgembed._key_match(e.source, 'o', 't');
BEGIN
    EXECUTE format('UPDATE %1$s AS t SET pgembed_version = t.pgembed_version %% 2147483647 + 1, '
        'pgembed_available_at = now(), pgembed_attempts = 0, pgembed_error = NULL '
        'WHERE EXISTS (SELECT FROM %1$s AS o WHERE o.ctid <> t.ctid AND %2$s)', job, twin);
    EXECUTE format('DELETE FROM %1$s AS t '
        'WHERE EXISTS (SELECT FROM %1$s AS o WHERE o.ctid > t.ctid AND %2$s)', job, twin);
END;
$$;
COMMENT ON FUNCTION pgembed._delete_twins(pgembed.embedding) IS
'Keep one job, to be done anew, of rows that have two.';


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


CREATE OR REPLACE FUNCTION pgembed._queue_stale(e pgembed.embedding, part regclass)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
SET bytea_output = 'hex'
SET extra_float_digits = 1
AS $$
DECLARE
    content text := pgembed._content_expression(e, 's');
    stale bigint;
BEGIN
    EXECUTE format('UPDATE %1$s AS d SET pgembed_available_at = now(), pgembed_changed_at = NULL, '
        'pgembed_version = d.pgembed_version %% 2147483647 + 1, pgembed_attempts = 0 '
        'WHERE d.ctid = ANY (ARRAY(SELECT j.ctid FROM %1$s AS j INNER JOIN %2$s AS s ON %3$s '
        'WHERE j.pgembed_available_at IS NULL AND j.pgembed_error IS NULL '
        'AND (j.pgembed_fingerprint IS DISTINCT FROM md5(%4$s)::uuid '
        'OR (%4$s IS NOT NULL) <> (%5$s)) FOR UPDATE OF j SKIP LOCKED))',
        pgembed._job_table(e.id), part, pgembed._key_match(e.source, 'j', 's'), content,
        pgembed._has_vector(e, 's'));
    GET DIAGNOSTICS stale = ROW_COUNT;
    RETURN stale;
END;
$$;
COMMENT ON FUNCTION pgembed._queue_stale(pgembed.embedding, regclass) IS
'Queue the rows of the source, or of a partition, whose content is not what was embedded last; returns how many.';


CREATE OR REPLACE FUNCTION pgembed._queue_attached(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._queue_stale(e, g.tgrelid)
    FROM pg_catalog.pg_trigger AS g
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid AND c.relkind = 'r'
    WHERE g.oid = ANY (pgembed._partition_triggers(e)) AND g.oid <> ALL (e.partition_triggers);
END;
$$;
COMMENT ON FUNCTION pgembed._queue_attached(pgembed.embedding) IS
'Queue the rows that changed in partitions while these were detached.';


CREATE OR REPLACE FUNCTION pgembed._repair_capture(name text)
RETURNS pgembed.embedding
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_kept(name);
BEGIN
    PERFORM pgembed._check_change(e.source);
    EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', e.source);
    -- PostgreSQL lets no two transactions replace one function, or grant on one column. After the
    -- table, which a migration may have locked before it reconciles.
    PERFORM pg_advisory_xact_lock(hashtextextended('pgembed.reconcile ' || e.source::oid, 0));
    PERFORM pgembed._check_present(e);
    e := pgembed._follow_key(e);
    PERFORM pgembed._follow_key_types(e);
    PERFORM pgembed._check_fits(e);
    -- Columns that others took the place of are known to the old trigger alone.
    PERFORM pgembed._revoke_source(e, w) FROM pgembed._worker_roles() AS w WHERE pgembed._watches_wrongly(e);
    PERFORM pgembed._create_capture(e);
    PERFORM pgembed._grant_source(o) FROM pgembed.embedding AS o WHERE o.source = e.source;
    RETURN e;
END;
$$;
COMMENT ON FUNCTION pgembed._repair_capture(text) IS
'The part of reconcile that may lock writers out, when there are triggers to repair: called first, in a transaction of its own, it lets them wait for a moment instead of until all rows are compared.';


CREATE OR REPLACE FUNCTION pgembed.reconcile(name text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._repair_capture(name);
    queued bigint;
    triggers oid[] := pgembed._partition_triggers(e);
BEGIN
    PERFORM pgembed._delete_leftovers(e);
    PERFORM pgembed._delete_twins(e);
    queued := pgembed._add_missing_jobs(e) + pgembed._queue_stale(e, e.source);
    UPDATE pgembed.embedding AS n SET partition_triggers = triggers WHERE n.id = e.id;
    UPDATE pgembed.embedding AS n
    SET index_state = 'waiting', index_error = NULL
    WHERE n.id = e.id AND n.index_state IN ('ready', 'failed')
        AND EXISTS (SELECT FROM pgembed._index_statements(n.id));
    PERFORM pgembed._wake();
    RETURN queued;
END;
$$;
COMMENT ON FUNCTION pgembed.reconcile(text) IS
'Compare every row with what was embedded last and queue those that differ, repair the triggers, delete what was left over, follow the key''s new names and types: after a restore, when triggers were disabled, or when changes fire none, such as SET EXPRESSION of a generated column. When triggers have to be repaired, writers wait until the transaction ends, with pgembed embedding reconcile for a moment. Returns the rows queued.';
