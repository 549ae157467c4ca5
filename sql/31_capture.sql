-- Capture: row triggers that turn every change of content, key or existence into a job,
-- in the user's own transaction.

CREATE OR REPLACE FUNCTION pgembed._wake()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pgembed.worker AS w
        WHERE w.idle AND w.seen_at > now() - interval '1 minute'
    ) THEN
        PERFORM pg_notify('pgembed_work', '');
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._wake() IS
'Notify the workers that wait. Busy workers look for more by themselves: under load nothing is sent, because NOTIFY serialises commits.';


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


CREATE OR REPLACE FUNCTION pgembed._capture_body(e pgembed.embedding)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job text := pgembed._job_table(e.id);
    columns text := (SELECT string_agg(quote_ident(c), ', ') FROM unnest(e.key_columns) AS c);
    old_chunks text := '';
    clear_old text := '';
BEGIN
    IF e.target <> e.source THEN
        old_chunks := format('DELETE FROM %s AS c WHERE %s;',
            e.target, pgembed._key_match(e.source, 'c', 'OLD'));
        clear_old := old_chunks;
    ELSE
        clear_old := format('UPDATE %s AS s SET %I = NULL WHERE %s;',
            e.source, e.target_column, pgembed._key_match(e.source, 's', 'NEW'));
    END IF;
    IF e.on_change = 'keep' THEN
        clear_old := '';
    END IF;
    RETURN format(
        $body$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF %4$s THEN
            DELETE FROM %1$s AS j WHERE %5$s;
            %6$s
            INSERT INTO %1$s (%2$s) VALUES (%3$s);
        ELSE
            %7$s
            UPDATE %1$s AS j
            SET pgembed_changed_at = coalesce(j.pgembed_changed_at, j.pgembed_available_at),
                pgembed_available_at = now(),
                pgembed_version = j.pgembed_version + 1,
                pgembed_attempts = 0,
                pgembed_error = NULL
            WHERE %8$s;
            IF NOT FOUND THEN
                INSERT INTO %1$s (%2$s) VALUES (%3$s);
            END IF;
        END IF;
        IF EXISTS (SELECT FROM pgembed.worker AS w WHERE w.idle) THEN
            PERFORM pgembed._wake();
        END IF;
    ELSE
        DELETE FROM %1$s AS j WHERE %5$s;
        %6$s
    END IF;
    RETURN NULL;
END;
$body$,
        job, columns, pgembed._column_list(e.key_columns, 'NEW'),
        pgembed._key_changed(e.source),
        pgembed._key_match(e.source, 'j', 'OLD'), old_chunks, clear_old,
        pgembed._key_match(e.source, 'j', 'NEW')
    );
END;
$$;
COMMENT ON FUNCTION pgembed._capture_body(pgembed.embedding) IS
'The body of an embedding''s trigger for UPDATE and DELETE. The lock on the source row makes its job unique: no unique index is needed, so that a left-over job can never fail a user''s INSERT.';


CREATE OR REPLACE FUNCTION pgembed._insert_body(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN format(
    $body$
BEGIN
    INSERT INTO %s (%s) VALUES (%s);
    RETURN NULL;
END;
$body$,
    pgembed._job_table(e.id),
    (SELECT string_agg(quote_ident(c), ', ') FROM unnest(e.key_columns) AS c),
    pgembed._column_list(e.key_columns, 'NEW')
);
COMMENT ON FUNCTION pgembed._insert_body(pgembed.embedding) IS
'The body of an embedding''s trigger for INSERT: a function of its own, because each instruction of it is paid for by every inserted row.';


CREATE OR REPLACE FUNCTION pgembed._truncate_body(e pgembed.embedding)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chunks text := CASE WHEN e.target <> e.source THEN e.target::text END;
    gone text;
BEGIN
    gone := format('NOT EXISTS (SELECT FROM %s AS s WHERE %s)',
        e.source, pgembed._key_match(e.source, 's', 't'));
    RETURN format(
        $body$
BEGIN
    IF TG_RELID = %1$s THEN
        TRUNCATE %2$s;
    ELSE
        %3$s
    END IF;
    RETURN NULL;
END;
$body$,
        e.source::oid, concat_ws(', ', pgembed._job_table(e.id), chunks),
        (
            SELECT string_agg(format('DELETE FROM %s AS t WHERE %s;', r, gone), E'\n        ')
            FROM unnest(ARRAY[pgembed._job_table(e.id), chunks]) AS r
            WHERE r IS NOT NULL
        )
    );
END;
$$;
COMMENT ON FUNCTION pgembed._truncate_body(pgembed.embedding) IS
'The body of an embedding''s TRUNCATE trigger, on the source and on each of its partitions.';


CREATE OR REPLACE FUNCTION pgembed._capture_function(e pgembed.embedding, suffix text, body text)
RETURNS text
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    signature text := format('pgembed.%I()', '_capture_' || e.id || suffix);
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
        'SET search_path = pg_catalog, pg_temp AS %L',
        signature, body
    );
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', signature,
        format('Captures changes of %s for the embedding %s.', e.source, e.name));
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
    RETURN signature;
END;
$$;
COMMENT ON FUNCTION pgembed._capture_function(pgembed.embedding, text, text) IS
'Create or replace a trigger function of an embedding; returns its signature.';


CREATE OR REPLACE FUNCTION pgembed._create_capture(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    capture text := pgembed._capture_function(e, '', pgembed._capture_body(e));
    added text := pgembed._capture_function(e, '_insert', pgembed._insert_body(e));
    clear text := pgembed._capture_function(e, '_truncate', pgembed._truncate_body(e));
    changed text := concat_ws(' OR ', pgembed._change_condition(e.content_columns),
        pgembed._key_changed(e.source));
    event record;
    relation regclass;
BEGIN
    FOR event IN
        SELECT * FROM (VALUES
            ('insert', 'INSERT', '', added),
            ('update', 'UPDATE', format('WHEN (%s)', changed), capture),
            ('delete', 'DELETE', '', capture)
        ) AS v (suffix, name, condition, function)
    LOOP
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER %1$I AFTER %2$s ON %3$s FOR EACH ROW %4$s '
            'EXECUTE FUNCTION %5$s',
            'pgembed_' || e.id || '_' || event.suffix, event.name, e.source,
            event.condition, event.function
        );
    END LOOP;
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER %I AFTER INSERT ON %s FOR EACH STATEMENT '
        'EXECUTE FUNCTION pgembed._wake_trigger()',
        'pgembed_' || e.id || '_wake', e.source
    );
    FOR relation IN SELECT pgembed._with_partitions(e.source) LOOP
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER %1$I AFTER TRUNCATE ON %2$s FOR EACH STATEMENT '
            'EXECUTE FUNCTION %3$s',
            'pgembed_' || e.id || '_truncate', relation, clear
        );
    END LOOP;
    PERFORM pgembed._enable_capture(e);
END;
$$;
COMMENT ON FUNCTION pgembed._create_capture(pgembed.embedding) IS
'Create or repair the capture triggers of an embedding.';


CREATE OR REPLACE FUNCTION pgembed._with_partitions(source regclass)
RETURNS SETOF regclass
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT source
    UNION
    SELECT t.relid
    FROM pg_catalog.pg_partition_tree(source) AS t
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
    WHERE c.relkind IN ('r', 'p');
$$;
COMMENT ON FUNCTION pgembed._with_partitions(regclass) IS
'The table itself and, when it is partitioned, all its partitions.';


CREATE OR REPLACE FUNCTION pgembed._enable_capture(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT g.tgrelid::regclass AS relation, g.tgname AS name
        FROM pg_catalog.pg_trigger AS g
        INNER JOIN pgembed._with_partitions(e.source) AS r (relation)
            ON g.tgrelid = r.relation
        WHERE g.tgname LIKE 'pgembed\_' || e.id || '\_%' AND g.tgenabled <> 'A'
    LOOP
        EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %I', t.relation, t.name);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._enable_capture(pgembed.embedding) IS
'Let the capture triggers fire always, also for rows that logical replication applies.';


CREATE OR REPLACE FUNCTION pgembed._drop_capture(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
    suffix text;
BEGIN
    FOR t IN
        SELECT g.tgrelid::regclass AS relation, g.tgname AS name
        FROM pg_catalog.pg_trigger AS g
        INNER JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid
        INNER JOIN pgembed._with_partitions(e.source) AS r (relation)
            ON g.tgrelid = r.relation
        WHERE p.pronamespace = 'pgembed'::regnamespace
            AND g.tgname LIKE 'pgembed\_' || e.id || '\_%'
            AND g.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', t.name, t.relation);
    END LOOP;
    FOREACH suffix IN ARRAY ARRAY['', '_insert', '_truncate'] LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS pgembed.%I()', '_capture_' || e.id || suffix);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._drop_capture(pgembed.embedding) IS
'Drop the capture triggers of an embedding and their functions.';
