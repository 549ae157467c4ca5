-- The capture triggers themselves: made, enabled, followed to new partitions, dropped.

CREATE OR REPLACE FUNCTION pgembed._trigger_function(e pgembed.embedding, event text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
-- Numbers begin at 1 in every database: a table restored without its embedding must not find another's function.
RETURN format('_capture_%s_%s_%s', e.id, event, to_hex((extract(epoch FROM e.created_at) * 1000000)::bigint));
COMMENT ON FUNCTION pgembed._trigger_function(pgembed.embedding, text) IS
'The name of an embedding''s trigger function for an event: one that no embedding of another database has.';


CREATE OR REPLACE FUNCTION pgembed._trigger_routine(e pgembed.embedding, event text)
RETURNS regprocedure
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN to_regprocedure(format('pgembed.%I()', pgembed._trigger_function(e, event)));
COMMENT ON FUNCTION pgembed._trigger_routine(pgembed.embedding, text) IS
'An embedding''s trigger function for an event; NULL when there is none.';


CREATE OR REPLACE FUNCTION pgembed._trigger_functions(e pgembed.embedding)
RETURNS SETOF regprocedure
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.oid::regprocedure
    FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'pgembed'::regnamespace
        AND starts_with(p.proname::text, '_capture_' || e.id || '_');
$$;
COMMENT ON FUNCTION pgembed._trigger_functions(pgembed.embedding) IS
'The trigger functions that an embedding has, those of an earlier release included.';


CREATE OR REPLACE FUNCTION pgembed._trigger_name(embedding integer, event text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN 'pgembed_' || embedding || '_' || event;
COMMENT ON FUNCTION pgembed._trigger_name(integer, text) IS
'The name of an embedding''s trigger for insert, update, delete, truncate or wake.';


CREATE OR REPLACE FUNCTION pgembed._captured_events()
RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY['insert', 'update', 'delete', 'truncate', 'wake'];
COMMENT ON FUNCTION pgembed._captured_events() IS
'What an embedding has a trigger function for.';


CREATE OR REPLACE FUNCTION pgembed._create_capture_function(
    e pgembed.embedding, event text, body text
)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    signature text := format('pgembed.%I()', pgembed._trigger_function(e, event));
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER %s'
        'SET search_path = pg_catalog, pg_temp AS %L',
        signature,
        -- A plan that was made while the queue was nearly empty is kept while it fills. The price
        -- that a scan which must be sequential has then would have JIT compile it for each row.
        CASE WHEN event IN ('update', 'delete') THEN 'SET enable_seqscan = off SET jit = off ' ELSE '' END,
        body
    );
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', signature,
        format('Captures every %s of %s for the embedding %s.', event, e.source, e.name));
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
    -- It calls the extension's functions: dropping these must not leave triggers that fail.
    IF EXISTS (SELECT FROM pg_extension AS x WHERE x.extname = 'pgembed') THEN
        EXECUTE format('ALTER FUNCTION %s DEPENDS ON EXTENSION pgembed', signature);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._create_capture_function(pgembed.embedding, text, text) IS
'Create or replace a trigger function of an embedding.';


CREATE OR REPLACE FUNCTION pgembed._create_capture_functions(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._create_capture_function(e, 'insert', pgembed._insert_body(e));
    PERFORM pgembed._create_capture_function(e, 'wake', pgembed._inserted_body(e));
    PERFORM pgembed._create_capture_function(e, 'update', pgembed._update_body(e));
    PERFORM pgembed._create_capture_function(e, 'delete', pgembed._delete_body(e));
    PERFORM pgembed._create_capture_function(e, 'truncate', pgembed._truncate_body(e));
END;
$$;
COMMENT ON FUNCTION pgembed._create_capture_functions(pgembed.embedding) IS
'Create or replace the trigger functions of an embedding.';


CREATE OR REPLACE FUNCTION pgembed._watched_columns(e pgembed.embedding)
RETURNS text[]
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT coalesce(array_agg(a.attname::text), '{}')
    FROM pg_catalog.pg_trigger AS g
    INNER JOIN pg_catalog.pg_depend AS d
        ON d.classid = 'pg_catalog.pg_trigger'::regclass AND d.objid = g.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = g.tgrelid
    INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = g.tgrelid AND a.attnum = d.refobjsubid
    WHERE g.tgrelid = e.source AND g.tgname = pgembed._trigger_name(e.id, 'update')
        AND g.tgfoid = pgembed._trigger_routine(e, 'update')
);
COMMENT ON FUNCTION pgembed._watched_columns(pgembed.embedding) IS
'The columns that the trigger for UPDATE looks at, by the names they have now: its WHEN follows them, and their old names may be others'' by now.';


CREATE OR REPLACE FUNCTION pgembed._watches_wrongly(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT NOT (w.columns @> w.wanted AND w.columns <@ w.wanted)
    FROM (
        SELECT e.key_columns || e.content_columns, pgembed._watched_columns(e)
    ) AS w (wanted, columns)
);
COMMENT ON FUNCTION pgembed._watches_wrongly(pgembed.embedding) IS
'Whether the trigger for UPDATE is gone, is from an earlier release, or looks at other columns than those of the key and the content.';


CREATE OR REPLACE FUNCTION pgembed._create_trigger(
    e pgembed.embedding, relation regclass, event text, manner text, function text
)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    trigger_name text := pgembed._trigger_name(e.id, event);
BEGIN
    -- Only where it must: CREATE TRIGGER locks writers out until the transaction ends.
    IF event = 'update' AND pgembed._watches_wrongly(e) OR NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_trigger AS g
        INNER JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid
        WHERE g.tgrelid = relation AND g.tgname = trigger_name
            AND p.pronamespace = 'pgembed'::regnamespace AND p.proname = function
            AND (g.tgtype & 2 <> 0) = (event = 'truncate')  -- BEFORE
    ) THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER %I %s ON %s %s EXECUTE FUNCTION pgembed.%I()', trigger_name,
            CASE event WHEN 'wake' THEN 'AFTER INSERT' WHEN 'truncate' THEN 'BEFORE TRUNCATE' ELSE 'AFTER ' || event END,
            relation, manner, function);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._create_trigger(pgembed.embedding, regclass, text, text, text) IS
'Create a trigger that is not there, or not as it should be; its manner is what comes after the table''s name.';


CREATE OR REPLACE FUNCTION pgembed._firing(e pgembed.embedding, trigger_name text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE
    WHEN NOT pgembed._by_statement(e.source) THEN 'A'
    WHEN trigger_name = pgembed._trigger_name(e.id, 'insert') THEN 'R'
    WHEN trigger_name = pgembed._trigger_name(e.id, 'wake') THEN 'O'
    ELSE 'A'
END;
COMMENT ON FUNCTION pgembed._firing(pgembed.embedding, text) IS
'When a trigger is to fire, as pg_trigger.tgenabled says it. Logical replication applies rows without statement triggers: the row trigger for INSERT is for these alone where a statement trigger captures the rest.';


CREATE OR REPLACE FUNCTION pgembed._create_capture(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed text := concat_ws(' OR ',
        pgembed._change_condition(e.source, e.content_columns), pgembed._key_changed(e.source));
    by_statement boolean := pgembed._by_statement(e.source);
    wanted record;
BEGIN
    PERFORM pgembed._give_chunks(e.source, e.target) WHERE e.target <> e.source;
    PERFORM pgembed._follow_row_security(e);
    IF pgembed._administers() THEN
        PERFORM pgembed._create_capture_functions(e);
        PERFORM pgembed._give_capture(e);
    ELSE
        -- A trigger of this statement makes them, as the schema's owner.
        UPDATE pgembed.embedding AS n SET key_columns = e.key_columns WHERE n.id = e.id;
    END IF;
    FOR wanted IN
        SELECT *
        FROM (VALUES
            ('insert', 'FOR EACH ROW', pgembed._trigger_function(e, 'insert')),
            ('update', 'FOR EACH ROW WHEN (' || changed || ')',
                pgembed._trigger_function(e, 'update')),
            ('delete', 'FOR EACH ROW', pgembed._trigger_function(e, 'delete')),
            ('wake', CASE WHEN by_statement
                THEN 'REFERENCING NEW TABLE AS pgembed_inserted ' ELSE '' END
                || 'FOR EACH STATEMENT',
                CASE WHEN by_statement
                    THEN pgembed._trigger_function(e, 'wake') ELSE '_wake_trigger' END)
        ) AS v (event, manner, function)
    LOOP
        PERFORM pgembed._create_trigger(e, e.source, wanted.event, wanted.manner, wanted.function);
    END LOOP;
    PERFORM pgembed._create_truncate_trigger(e, r) FROM pgembed._with_partitions(e.source) AS r;
    PERFORM pgembed._drop_former_functions(e);
    PERFORM pgembed._enable_capture(e);
END;
$$;
COMMENT ON FUNCTION pgembed._create_capture(pgembed.embedding) IS
'Create or repair the capture triggers of an embedding.';


CREATE OR REPLACE FUNCTION pgembed._create_truncate_trigger(e pgembed.embedding, relation regclass)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pgembed._create_trigger(e, relation, 'truncate', 'FOR EACH STATEMENT',
        pgembed._trigger_function(e, 'truncate'));
$$;
COMMENT ON FUNCTION pgembed._create_truncate_trigger(pgembed.embedding, regclass) IS
'Create the TRUNCATE trigger of the source, or of a partition: statement triggers are not inherited. The source''s comes first, so that those of its partitions find nothing left to do.';


CREATE OR REPLACE FUNCTION pgembed._drop_former_functions(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN
        SELECT f FROM pgembed._trigger_functions(e) AS f
        EXCEPT SELECT pgembed._trigger_routine(e, v)
        FROM unnest(pgembed._captured_events()) AS v
    LOOP
        -- Triggers that still call it are on tables that are not the embedding's: a dump of the schema
        -- alone brings those of another embedding.
        EXECUTE format('DROP FUNCTION %s CASCADE', routine);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._drop_former_functions(pgembed.embedding) IS
'Drop the trigger functions that an earlier release made under other names, once the triggers call the new ones.';


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
        SELECT g.tgrelid::regclass AS relation, g.tgname AS name,
            pgembed._firing(e, g.tgname::text) AS firing
        FROM pg_catalog.pg_trigger AS g
        INNER JOIN pgembed._with_partitions(e.source) AS r (relation)
            ON g.tgrelid = r.relation
        WHERE starts_with(g.tgname::text, pgembed._trigger_name(e.id, ''))
            AND g.tgenabled::text <> pgembed._firing(e, g.tgname::text)
    LOOP
        EXECUTE format('ALTER TABLE ONLY %s ENABLE %s TRIGGER %I', t.relation,
            CASE t.firing WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' ELSE '' END, t.name);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._enable_capture(pgembed.embedding) IS
'Let the capture triggers fire when they are to: also for rows that logical replication applies.';


CREATE OR REPLACE FUNCTION pgembed._guarded_relations(e pgembed.embedding)
RETURNS SETOF regclass
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT g.tgrelid::regclass
    FROM pg_catalog.pg_depend AS d
    INNER JOIN pg_catalog.pg_trigger AS g ON g.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_trigger'::regclass
        AND d.refclassid = 'pg_catalog.pg_proc'::regclass
        AND d.refobjid = pgembed._trigger_routine(e, 'truncate');
$$;
COMMENT ON FUNCTION pgembed._guarded_relations(pgembed.embedding) IS
'The tables that have the TRUNCATE trigger of the embedding: those known as its source and partitions.';


CREATE OR REPLACE FUNCTION pgembed._captures_wrongly(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN pgembed._watches_wrongly(e) OR EXISTS (
    SELECT
    FROM pg_catalog.pg_trigger AS g
    WHERE g.tgrelid = e.source AND (
        g.tgname = pgembed._trigger_name(e.id, 'wake')
            AND (g.tgnewtable IS NOT NULL) <> pgembed._by_statement(e.source)
        OR g.tgname = pgembed._trigger_name(e.id, 'truncate') AND g.tgtype & 2 = 0
    )
);
COMMENT ON FUNCTION pgembed._captures_wrongly(pgembed.embedding) IS
'Whether since its triggers were made the source became a partition, or ceased to be one, or other columns took the names of those that are watched; or whether an earlier release made them.';


CREATE OR REPLACE FUNCTION pgembed._partition_triggers(e pgembed.embedding)
RETURNS oid[]
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN ARRAY(
    SELECT g.oid
    FROM pg_catalog.pg_depend AS d
    INNER JOIN pg_catalog.pg_trigger AS g ON g.oid = d.objid AND g.tgparentid <> 0
    WHERE d.classid = 'pg_catalog.pg_trigger'::regclass
        AND d.refclassid = 'pg_catalog.pg_proc'::regclass
        AND d.refobjid = pgembed._trigger_routine(e, 'update')
    ORDER BY g.oid
);
COMMENT ON FUNCTION pgembed._partition_triggers(pgembed.embedding) IS
'The triggers that capture the updates of each partition: DETACH drops a partition''s, ATTACH makes another.';


CREATE OR REPLACE FUNCTION pgembed._follow_partitions(e pgembed.embedding)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part regclass;
    -- Before anything is looked at: a partition that comes later is followed next time.
    triggers oid[] := pgembed._partition_triggers(e);
    made boolean := false;
    changed boolean := triggers IS DISTINCT FROM e.partition_triggers;
    added regclass[] := ARRAY(
        SELECT r FROM pgembed._with_partitions(e.source) AS r
        EXCEPT SELECT g FROM pgembed._guarded_relations(e) AS g
    );
    removed regclass[] := ARRAY(
        SELECT g FROM pgembed._guarded_relations(e) AS g
        EXCEPT SELECT r FROM pgembed._with_partitions(e.source) AS r
    );
BEGIN
    IF NOT (changed OR added <> '{}' OR removed <> '{}' OR pgembed._captures_wrongly(e)) THEN
        RETURN false;
    END IF;
    -- Before any table is locked: a user who holds the row may want that table next.
    PERFORM FROM pgembed.embedding AS n WHERE n.id = e.id FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF pgembed._trigger_routine(e, 'update') IS NULL THEN
        -- Of an earlier release, under names that are not found below: the rest is for the next time.
        IF pgembed._fault(e) IS NULL AND pgembed._try_lock(e.source, 'SHARE ROW EXCLUSIVE') THEN
            PERFORM pgembed._create_capture(e);
            RETURN true;
        END IF;
        RETURN false;
    END IF;
    FOREACH part IN ARRAY added LOOP
        CONTINUE WHEN NOT pgembed._try_lock(part, 'SHARE ROW EXCLUSIVE');
        PERFORM pgembed._create_truncate_trigger(e, part);
        made := true;
    END LOOP;
    FOREACH part IN ARRAY removed LOOP
        CONTINUE WHEN NOT pgembed._try_lock(part, 'ACCESS EXCLUSIVE');
        EXECUTE format('DROP TRIGGER %I ON %s', pgembed._trigger_name(e.id, 'truncate'), part);
        made := true;
    END LOOP;
    IF made THEN
        PERFORM pgembed._enable_capture(e);
        -- Writers wait for this transaction: the rows are for the next one. No trigger has the number 0.
        UPDATE pgembed.embedding AS n
        SET partition_triggers = array_append(n.partition_triggers, 0)
        WHERE n.id = e.id AND n.partition_triggers IS NOT NULL;
        RETURN true;
    END IF;
    IF pgembed._captures_wrongly(e) AND pgembed._fault(e) IS NULL
        AND pgembed._try_lock(e.source, 'SHARE ROW EXCLUSIVE')
    THEN
        PERFORM pgembed._create_capture(e);
        PERFORM pgembed._queue_stale(e, e.source);
        changed := true;
    END IF;
    IF changed THEN
        PERFORM pgembed._delete_leftovers(e);
        PERFORM pgembed._queue_attached(e);
        UPDATE pgembed.embedding AS n SET enqueued = false, partition_triggers = triggers WHERE n.id = e.id;
    END IF;
    RETURN false;
EXCEPTION
    WHEN insufficient_privilege THEN
        -- Only the owner can do this: reconcile does it for workers with fewer rights.
        RETURN false;
END;
$$;
COMMENT ON FUNCTION pgembed._follow_partitions(pgembed.embedding) IS
'Notice partitions that were attached, with the rows in them, detached or dropped since; and columns that were replaced. True when it made triggers, whose locks are to be let go of before the rows are looked at: by calling it again.';


CREATE OR REPLACE FUNCTION pgembed._drop_capture(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    -- By function, not by table: a partition that was detached keeps a trigger.
    FOR t IN
        SELECT g.tgrelid::regclass AS relation, g.tgname AS name
        FROM pg_catalog.pg_trigger AS g
        INNER JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid
        INNER JOIN unnest(pgembed._captured_events()) AS v (event)
            ON g.tgname = pgembed._trigger_name(e.id, v.event)
        WHERE p.pronamespace = 'pgembed'::regnamespace AND g.tgparentid = 0
            -- That function is everybody's: elsewhere, its trigger came with a table of another database.
            AND (p.proname <> '_wake_trigger' OR g.tgrelid = e.source)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', t.name, t.relation);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._drop_capture(pgembed.embedding) IS
'Drop the capture triggers of an embedding.';


CREATE OR REPLACE FUNCTION pgembed._drop_queue(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN SELECT f FROM pgembed._trigger_functions(e) AS f LOOP
        EXECUTE format('DROP FUNCTION %s', routine);
    END LOOP;
    EXECUTE format('DROP TABLE IF EXISTS %s', pgembed._job_table(e.id));
END;
$$;
COMMENT ON FUNCTION pgembed._drop_queue(pgembed.embedding) IS
'Drop the capture functions of an embedding, whose triggers are gone, and its job table.';
