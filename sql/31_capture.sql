-- Capture: what the triggers of an embedding do. They turn every change of content, key or
-- existence into a job, in the user's own transaction: row by row, but for the rows of an
-- INSERT into an ordinary table, which are taken a statement at a time; TRUNCATE before it
-- happens, while it can be seen which rows a partition has.
--
-- A job table has no unique index, so that a left-over job can never fail a user's INSERT:
-- the lock on the source row makes its job unique. Only keys that may be shared for a moment
-- (a deferrable key, triggers that write the same table) and the backfill can give a row two;
-- the triggers then keep as many jobs as there are rows, and write-back merges what is too much.

CREATE OR REPLACE FUNCTION pgembed._by_statement(source regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT c.relkind = 'r' AND NOT c.relispartition
    FROM pg_catalog.pg_class AS c
    WHERE c.oid = source
);
COMMENT ON FUNCTION pgembed._by_statement(regclass) IS
'Whether inserted rows are captured a statement at a time. Rows that move between partitions, or are inserted through a parent, fire no INSERT statement trigger: partitions are captured row by row.';


CREATE OR REPLACE FUNCTION pgembed._is_watched()
RETURNS boolean
LANGUAGE sql VOLATILE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pgembed.worker AS w WHERE w.watching_until > clock_timestamp()
    );
$$;
COMMENT ON FUNCTION pgembed._is_watched() IS
'Whether a worker looks at the queue again and again: then none has to be woken.';


CREATE OR REPLACE FUNCTION pgembed._wake()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A transaction that has notified cannot be prepared: where that is in use, workers poll.
    IF current_setting('max_prepared_transactions') = '0' AND EXISTS (
        SELECT FROM pgembed.worker AS w
        WHERE w.idle AND w.seen_at > now() - interval '1 minute'
    ) AND NOT pgembed._is_watched() THEN
        PERFORM pg_notify('pgembed_work', '');
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._wake() IS
'Notify the workers that wait, unless one looks for more by itself: under load nothing is sent, because NOTIFY serialises commits.';


CREATE OR REPLACE FUNCTION pgembed._wake_trigger()
RETURNS trigger
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._wake();
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgembed._wake_trigger() IS
'After an INSERT statement into a source: wake the workers that wait.';


CREATE OR REPLACE FUNCTION pgembed._mark_statement(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $sql$UPDATE %s AS j
    SET pgembed_changed_at = CASE WHEN j.pgembed_available_at IS NOT NULL
            THEN coalesce(j.pgembed_changed_at, j.pgembed_available_at) END,
        pgembed_available_at = now(),
        pgembed_version = j.pgembed_version %% 2147483647 + 1,
        pgembed_attempts = 0,
        pgembed_error = NULL
    WHERE %s;$sql$,
    pgembed._job_table(e.id), pgembed._key_match(e.source, 'j', 'NEW')
);
COMMENT ON FUNCTION pgembed._mark_statement(pgembed.embedding) IS
'SQL for a trigger: the content of row NEW changed; a worker that holds its job holds an old version.';


CREATE OR REPLACE FUNCTION pgembed._delete_chunks_statement(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $sql$SELECT n.target INTO chunks FROM pgembed.embedding AS n WHERE n.id = %1$s;
    IF chunks::text = %2$L THEN
        DELETE FROM %2$s AS c WHERE %3$s;
    ELSIF pgembed._exists(chunks) THEN
        -- It was renamed: never fail the user's statement for that.
        EXECUTE format(%4$L, chunks) USING OLD;
    END IF;$sql$,
    e.id, e.target::text, pgembed._key_match(e.source, 'c', 'OLD'),
    'DELETE FROM %s AS c WHERE ' || replace(pgembed._key_match(e.source, 'c', '($1)'), '%', '%%')
);
COMMENT ON FUNCTION pgembed._delete_chunks_statement(pgembed.embedding) IS
'SQL for a trigger: delete the chunks of row OLD, as long as the chunk table is there.';


CREATE OR REPLACE FUNCTION pgembed._forget_later_statement(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $sql$
    IF deleted = 0 AND current_setting('transaction_isolation') <> 'read committed' THEN
        -- The backfill may have come after this snapshot: a worker sees the chunks that it made.
        INSERT INTO %s (%s) VALUES (%s);
    END IF;$sql$,
    pgembed._job_table(e.id), pgembed._key_list(e.key_columns), pgembed._column_list(e.key_columns, 'OLD')
);
COMMENT ON FUNCTION pgembed._forget_later_statement(pgembed.embedding) IS
'SQL for a trigger: let a worker delete chunks of row OLD that this transaction is too old to see.';


CREATE OR REPLACE FUNCTION pgembed._forget_statement(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $sql$DELETE FROM %1$s AS j WHERE %2$s;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    IF deleted > 1 THEN
        -- The others may be of other rows, that have this key by now.
        INSERT INTO %1$s (%3$s) SELECT %4$s FROM generate_series(2, deleted);
    END IF;
    %5$s$sql$,
    pgembed._job_table(e.id), pgembed._key_match(e.source, 'j', 'OLD'),
    pgembed._key_list(e.key_columns), pgembed._column_list(e.key_columns, 'OLD'),
    CASE WHEN e.target <> e.source THEN
        pgembed._delete_chunks_statement(e) || pgembed._forget_later_statement(e)
    ELSE '' END
);
COMMENT ON FUNCTION pgembed._forget_statement(pgembed.embedding) IS
'SQL for a trigger: row OLD is gone, or has another key.';


CREATE OR REPLACE FUNCTION pgembed._clear_statement(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE
    WHEN e.on_change = 'keep' THEN ''
    WHEN e.target <> e.source THEN pgembed._delete_chunks_statement(e)
    ELSE format(
        $sql$SELECT n.* INTO e FROM pgembed.embedding AS n WHERE n.id = %1$s;
    IF e.target_column = ANY (pgembed._columns(e.source)) THEN
        -- Composed each time: what was renamed must not fail the user's statement.
        EXECUTE format(%2$L, e.source, e.target_column) USING NEW;
    END IF;$sql$,
        e.id,
        'UPDATE %1$s AS s SET %2$I = NULL WHERE s.%2$I IS NOT NULL AND '
        || replace(pgembed._key_match(e.source, 's', '($1)'), '%', '%%')
    )
END;
COMMENT ON FUNCTION pgembed._clear_statement(pgembed.embedding) IS
'SQL for a trigger: with on_change clear, take the vectors of a row that changed away.';


CREATE OR REPLACE FUNCTION pgembed._clears_moved(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN e.on_change = 'clear' AND e.target = e.source AND NOT pgembed._by_statement(e.source);
COMMENT ON FUNCTION pgembed._clears_moved(pgembed.embedding) IS
'Whether rows can move to another partition, and are to lose their vectors then: the UPDATE fires the triggers for DELETE and INSERT.';


CREATE OR REPLACE FUNCTION pgembed._tell_deleted_statement(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE WHEN pgembed._clears_moved(e) THEN
    format($sql$PERFORM set_config('pgembed.deleted_%s', 'on', true);$sql$, e.id)
ELSE '' END;
COMMENT ON FUNCTION pgembed._tell_deleted_statement(pgembed.embedding) IS
'SQL for a trigger: tell the one for INSERT, in this transaction, that a row was deleted, perhaps to be moved.';


CREATE OR REPLACE FUNCTION pgembed._clear_moved_statement(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE WHEN pgembed._clears_moved(e) THEN format(
    $sql$IF current_setting('pgembed.deleted_%1$s', true) = 'on' THEN
        IF EXISTS (
            SELECT
            FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = TG_RELID AND a.attname = %2$L AND NOT a.attisdropped
        ) THEN
            -- By itself: this cannot even be asked of a row whose column has another name by now.
            IF NEW.%2$I IS NOT NULL THEN
                DECLARE
                    e pgembed.embedding;
                BEGIN
                %3$s
                END;
            END IF;
        END IF;
    END IF;$sql$,
    e.id, e.target_column, pgembed._clear_statement(e)
) ELSE '' END;
COMMENT ON FUNCTION pgembed._clear_moved_statement(pgembed.embedding) IS
'SQL for a trigger: with on_change clear, take the vector of a row that was moved to another partition. Rows that are only inserted, as a restore does, keep theirs until the next.';


CREATE OR REPLACE FUNCTION pgembed._insert_body(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $body$
BEGIN
    INSERT INTO %s (%s) VALUES (%s);
    %s
    RETURN NULL;
END;
$body$,
    pgembed._job_table(e.id), pgembed._key_list(e.key_columns),
    pgembed._column_list(e.key_columns, 'NEW'), pgembed._clear_moved_statement(e)
);
COMMENT ON FUNCTION pgembed._insert_body(pgembed.embedding) IS
'The body of an embedding''s trigger for INSERT: a function of its own, because each instruction of it is paid for by every inserted row.';


CREATE OR REPLACE FUNCTION pgembed._inserted_body(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $body$
BEGIN
    INSERT INTO %s (%s) SELECT %s FROM pgembed_inserted AS n;
    PERFORM pgembed._wake();
    RETURN NULL;
END;
$body$,
    pgembed._job_table(e.id), pgembed._key_list(e.key_columns),
    pgembed._column_list(e.key_columns, 'n')
);
COMMENT ON FUNCTION pgembed._inserted_body(pgembed.embedding) IS
'The body of an embedding''s trigger for INSERT statements: all their rows at once, a fraction of what one at a time costs.';


CREATE OR REPLACE FUNCTION pgembed._update_body(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $body$
DECLARE
    deleted bigint;
    chunks regclass;
    e pgembed.embedding;
BEGIN
    IF %1$s THEN
    %2$s
    %3$s
        INSERT INTO %4$s (%5$s) VALUES (%6$s);
    ELSE
    %3$s
        IF NOT FOUND THEN
            INSERT INTO %4$s (%5$s) VALUES (%6$s);
        END IF;
    END IF;
    %7$s
    IF EXISTS (SELECT FROM pgembed.worker AS w WHERE w.idle) AND NOT EXISTS (
        SELECT FROM pgembed.worker AS w WHERE w.watching_until > clock_timestamp()
    ) THEN
        PERFORM pgembed._wake();
    END IF;
    RETURN NULL;
END;
$body$,
    pgembed._key_changed(e.source), pgembed._forget_statement(e), pgembed._mark_statement(e),
    pgembed._job_table(e.id), pgembed._key_list(e.key_columns),
    pgembed._column_list(e.key_columns, 'NEW'), pgembed._clear_statement(e)
);
COMMENT ON FUNCTION pgembed._update_body(pgembed.embedding) IS
'The body of an embedding''s trigger for UPDATE of the content or the key.';


CREATE OR REPLACE FUNCTION pgembed._delete_body(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $body$
DECLARE
    deleted bigint;
    chunks regclass;
BEGIN
    %s
    %s
    RETURN NULL;
END;
$body$,
    pgembed._forget_statement(e), pgembed._tell_deleted_statement(e)
);
COMMENT ON FUNCTION pgembed._delete_body(pgembed.embedding) IS
'The body of an embedding''s trigger for DELETE.';


CREATE OR REPLACE FUNCTION pgembed._truncate_body(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $body$
BEGIN
    PERFORM pgembed._forget_all(n, TG_RELID) FROM pgembed.embedding AS n WHERE n.id = %s;
    RETURN NULL;
END;
$body$,
    e.id
);
COMMENT ON FUNCTION pgembed._truncate_body(pgembed.embedding) IS
'The body of an embedding''s trigger for TRUNCATE, of the source or of one of its partitions.';


CREATE OR REPLACE FUNCTION pgembed._is_leaf(part regclass, source regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN source IN (SELECT a.relid FROM pg_partition_ancestors(part) AS a)
    AND EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = part AND c.relkind = 'r');
COMMENT ON FUNCTION pgembed._is_leaf(regclass, regclass) IS
'Whether a table is a partition of the source that holds rows. Unlike pg_partition_tree, this locks nothing.';


CREATE OR REPLACE FUNCTION pgembed._forget_partition(e pgembed.embedding, part regclass)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    is_chunked boolean := e.target <> e.source AND pgembed._exists(e.target);
    rows text := format('%s AS s WHERE true', part);
BEGIN
    -- A table that was detached may still have the trigger; partitions that have partitions hold no rows.
    IF NOT pgembed._is_leaf(part, e.source) OR pgembed._key_columns(e.source) IS DISTINCT FROM e.key_columns THEN
        RETURN;
    END IF;
    IF NOT has_table_privilege(part, 'SELECT') OR row_security_active(part) THEN
        -- Only through the source, which locks and reads all partitions.
        rows := format('%s AS s WHERE s.tableoid = %s', e.source, part::oid);
    END IF;
    -- The size: an older snapshot than TRUNCATE's could not see that a table is empty.
    IF pg_relation_size(job::regclass) > 0 THEN
        EXECUTE format('WITH gone AS (DELETE FROM %1$s AS d WHERE d.ctid = ANY (ARRAY('
            'SELECT t.ctid FROM %1$s AS t, %2$s AND %3$s FOR UPDATE OF t SKIP LOCKED)) RETURNING d.*) '
            'INSERT INTO %1$s (%4$s) SELECT %5$s FROM %2$s AND $1 '
            'AND NOT EXISTS (SELECT FROM gone AS t WHERE %3$s)',
            job, rows, pgembed._key_match(e.source, 't', 's'),
            pgembed._key_list(e.key_columns), pgembed._column_list(e.key_columns, 's'))
            -- The backfill may have come after this snapshot: a worker sees the chunks that it made.
            USING is_chunked AND current_setting('transaction_isolation') <> 'read committed';
    END IF;
    IF is_chunked AND pg_relation_size(e.target) > 0 THEN
        EXECUTE format('DELETE FROM %s AS t USING %s AND %s',
            e.target, rows, pgembed._key_match(e.source, 't', 's'));
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._forget_partition(pgembed.embedding, regclass) IS
'Delete the jobs and chunks of the rows of a partition that is just being truncated. Other partitions are neither read nor locked: two can be truncated at once.';


CREATE OR REPLACE FUNCTION pgembed._forget_all(e pgembed.embedding, truncated oid)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF truncated <> e.source THEN
        PERFORM pgembed._forget_partition(e, truncated);
        RETURN;
    END IF;
    EXECUTE format('TRUNCATE %s', pgembed._job_table(e.id));
    IF e.target <> e.source AND pgembed._exists(e.target) THEN
        EXECUTE format('TRUNCATE %s', e.target);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._forget_all(pgembed.embedding, oid) IS
'Forget the rows of a source, or of a partition, that is about to be truncated.';


CREATE OR REPLACE FUNCTION pgembed._delete_leftovers(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET row_security = off
AS $$
DECLARE
    left_over text := format('NOT EXISTS (SELECT FROM %s AS s WHERE %s)',
        e.source, pgembed._key_match(e.source, 's', 't'));
BEGIN
    IF pgembed._key_columns(e.source) IS DISTINCT FROM e.key_columns THEN
        RETURN;
    END IF;
    EXECUTE format('DELETE FROM %1$s AS d WHERE d.ctid = ANY (ARRAY('
        'SELECT t.ctid FROM %1$s AS t WHERE %2$s FOR UPDATE OF t SKIP LOCKED))',
        pgembed._job_table(e.id), left_over);
    IF e.target <> e.source AND pgembed._exists(e.target) THEN
        EXECUTE format('DELETE FROM %s AS t WHERE %s', e.target, left_over);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._delete_leftovers(pgembed.embedding) IS
'Delete jobs and chunks of rows that are gone.';
