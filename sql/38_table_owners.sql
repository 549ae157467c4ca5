-- Embeddings on the tables of roles that do not own schema pgembed. Such a role may write rows of
-- pgembed.embedding, no more: triggers there check whose table it is, and make and drop, as the
-- schema's owner, what belongs into the schema. Whoever declared the embedding, the capture
-- functions and the chunk table are the table's owner's: what they touch (chunks, triggers on
-- these, the source) is his, and nothing of his runs with the rights of the schema's owner.

CREATE OR REPLACE FUNCTION pgembed._administers()
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN pg_has_role(
    (SELECT c.relowner FROM pg_catalog.pg_class AS c WHERE c.oid = 'pgembed.embedding'::regclass), 'USAGE'
);
COMMENT ON FUNCTION pgembed._administers() IS
'Whether this role has the rights of the owner of schema pgembed.';


CREATE OR REPLACE FUNCTION pgembed._owns(relation regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN coalesce(
    (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_class AS c WHERE c.oid = relation), false
);
COMMENT ON FUNCTION pgembed._owns(regclass) IS
'Whether this role has the rights of the owner of a relation.';


CREATE OR REPLACE FUNCTION pgembed._owner(relation regclass)
RETURNS regrole
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (SELECT c.relowner::regrole FROM pg_catalog.pg_class AS c WHERE c.oid = relation);
COMMENT ON FUNCTION pgembed._owner(regclass) IS
'The owner of a relation; NULL when it is gone.';


CREATE OR REPLACE FUNCTION pgembed._worker_roles()
RETURNS SETOF regrole
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT DISTINCT a.grantee::regrole
    FROM pg_catalog.pg_class AS c
    CROSS JOIN LATERAL aclexplode(c.relacl) AS a
    WHERE c.oid = 'pgembed.lease_seq'::regclass AND a.privilege_type = 'USAGE'
        AND a.grantee NOT IN (0, c.relowner);
$$;
COMMENT ON FUNCTION pgembed._worker_roles() IS
'The roles that pgembed.grant_worker was called for.';


CREATE OR REPLACE FUNCTION pgembed._refuse_stranger(source regclass)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT pgembed._owns(source) THEN
        RAISE EXCEPTION 'must be owner of table %', source USING ERRCODE = 'insufficient_privilege';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._refuse_stranger(regclass) IS
'An error unless this role has the rights of the table''s owner.';


CREATE OR REPLACE FUNCTION pgembed._check_change(source regclass)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Workers change other things than owners: their grants say which.
    IF NOT has_sequence_privilege('pgembed.lease_seq', 'USAGE') THEN
        PERFORM pgembed._refuse_stranger(source);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_change(regclass) IS
'An error unless this role has the rights of the table''s owner, of the schema''s or of a worker: others change no embedding of the table.';


CREATE OR REPLACE FUNCTION pgembed._check_declared(e pgembed.embedding)
RETURNS pgembed.embedding
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole := pgembed._owner(e.source);
BEGIN
    PERFORM pgembed._refuse_stranger(e.source);
    PERFORM pgembed._refuse_stranger(e.target);
    IF NOT pgembed._may_capture(owner) THEN
        RAISE EXCEPTION 'role %, which owns table %, may not use pgembed', owner, e.source
            USING ERRCODE = 'insufficient_privilege',
            DETAIL = 'What captures its changes runs as that role.',
            HINT = format('Let an administrator run: SELECT pgembed.grant_owner(%L), or GRANT pgembed_owner TO %s.',
                owner, owner);
    END IF;
    IF e.target_column <> ALL (pgembed._columns(e.target)) THEN
        RAISE EXCEPTION 'table % has no column %', e.target, quote_ident(e.target_column)
            USING ERRCODE = 'undefined_column';
    END IF;
    PERFORM pgembed._check_free(e.target, e.target_column);
    e.key_columns := pgembed._check_source(e.source);
    e.content_columns := '{}';
    e.enqueued := true;
    IF e.kind = 'kept' THEN
        e.content_columns := pgembed._content_columns(e.source, e.content);
        e.index_name := pgembed._index_name(e.target, e.target_column);
        e.enqueued := false;
    END IF;
    RETURN e;
END;
$$;
COMMENT ON FUNCTION pgembed._check_declared(pgembed.embedding) IS
'A new embedding of a role that owns the table but not the schema, with what follows from the table looked up anew; an error when it is not this role''s to declare.';


CREATE OR REPLACE FUNCTION pgembed._check_embedding()
RETURNS trigger
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        RETURN pgembed._check_declared(NEW);
    ELSIF TG_OP = 'DELETE' THEN
        IF pgembed._has_source(OLD) THEN
            PERFORM pgembed._refuse_stranger(OLD.source);
        END IF;
        RETURN OLD;
    END IF;
    PERFORM pgembed._check_change(OLD.source);
    IF NEW.key_columns <> OLD.key_columns AND NEW.key_columns IS DISTINCT FROM pgembed._key_columns(OLD.source) THEN
        RAISE EXCEPTION 'the primary key of table % is not (%)', OLD.source, pgembed._key_list(NEW.key_columns)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN NEW;
END;
$$;
COMMENT ON FUNCTION pgembed._check_embedding() IS
'Trigger: roles that do not own the schema declare, change and drop embeddings on tables of theirs only. Runs as whoever writes the row.';


CREATE OR REPLACE FUNCTION pgembed._give_away(routine regprocedure, owner regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    lent boolean := NOT has_schema_privilege(owner, 'pgembed', 'CREATE');
BEGIN
    IF (SELECT p.proowner = owner FROM pg_catalog.pg_proc AS p WHERE p.oid = routine) THEN
        RETURN;
    END IF;
    IF lent THEN
        EXECUTE format('GRANT CREATE ON SCHEMA pgembed TO %s', owner);
    END IF;
    EXECUTE format('ALTER FUNCTION %s OWNER TO %s', routine, owner);
    IF lent THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA pgembed FROM %s', owner);
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'role % owns schema pgembed, but may not make a function for role %', current_user, owner
            USING ERRCODE = 'insufficient_privilege', DETAIL = SQLERRM,
            HINT = format('GRANT %s TO %I; or let %I declare the embedding.', owner, current_user, current_user);
END;
$$;
COMMENT ON FUNCTION pgembed._give_away(regprocedure, regrole) IS
'Make another role the owner of a function in schema pgembed; CREATE on the schema, which that needs, is the role''s for this statement alone.';


CREATE OR REPLACE FUNCTION pgembed._give_capture(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole := pgembed._owner(e.source);
    event text;
BEGIN
    IF owner <> pgembed._owner(pgembed._job_table(e.id)::regclass) THEN
        PERFORM pgembed._grant_capture(owner);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON %s TO %s', pgembed._job_table(e.id), owner);
    END IF;
    FOREACH event IN ARRAY pgembed._captured_events() LOOP
        PERFORM pgembed._give_away(
            format('pgembed.%I()', pgembed._trigger_function(e, event))::regprocedure, owner);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._give_capture(pgembed.embedding) IS
'Make the source''s owner the owner of the capture functions, and let him do what these do in the schema.';


CREATE OR REPLACE FUNCTION pgembed._give_chunks(source regclass, chunks regclass)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole := pgembed._owner(source);
BEGIN
    IF owner <> pgembed._owner(chunks) THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %s', chunks, owner);
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'the chunk table % cannot be given to role %, which owns table %', chunks, owner, source
            USING ERRCODE = 'insufficient_privilege', DETAIL = SQLERRM,
            HINT = format('Let its owner, as a member of %s, or a superuser do it: ALTER TABLE %s OWNER TO %s. '
                'That role needs CREATE on the schema, unless it is a superuser who does it.', owner, chunks, owner);
END;
$$;
COMMENT ON FUNCTION pgembed._give_chunks(regclass, regclass) IS
'Make the source''s owner the owner of the chunk table: what captures changes deletes chunks as that role.';


CREATE OR REPLACE FUNCTION pgembed._former_owner(e pgembed.embedding)
RETURNS regrole
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT p.proowner::regrole
    FROM pg_catalog.pg_proc AS p
    WHERE p.oid = pgembed._trigger_routine(e, 'update')
        AND (
            p.proowner::regrole <> pgembed._owner(e.source)
            OR NOT pg_has_role(p.proowner, pgembed._owner(e.target), 'USAGE')
        )
);
COMMENT ON FUNCTION pgembed._former_owner(pgembed.embedding) IS
'The role that changes of the source are captured as, when it is not the source''s owner (any more) or may not write the chunks; else NULL.';


CREATE OR REPLACE FUNCTION pgembed._give_captures()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
BEGIN
    FOR e IN
        SELECT n.*
        FROM pgembed.embedding AS n
        WHERE n.kind = 'kept' AND pgembed._has_source(n) AND pgembed._former_owner(n) IS NOT NULL
        ORDER BY n.id
    LOOP
        BEGIN
            PERFORM pgembed._give_chunks(e.source, e.target) WHERE e.target <> e.source;
            PERFORM pgembed._give_capture(e);
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'changes of table % are still captured as role %: %',
                    e.source, pgembed._former_owner(e), SQLERRM
                    USING HINT = format('Let role %s, or a superuser, run: SELECT pgembed.reconcile(%L)',
                        pgembed._owner(e.source), e.name);
        END;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._give_captures() IS
'After an upgrade: let changes be captured as the sources'' owners where they are captured as another role.';


CREATE OR REPLACE FUNCTION pgembed._follow_embedding()
RETURNS trigger
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM pgembed._drop_queue(OLD);
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        PERFORM pgembed._create_job_table(NEW);
        RETURN NULL;
    END IF;
    PERFORM pgembed._rename_keys(
        pgembed._job_table(NEW.id)::regclass, NEW.source, OLD.key_columns, NEW.key_columns);
    PERFORM pgembed._retype_keys(NEW, pgembed._job_table(NEW.id)::regclass);
    PERFORM pgembed._create_capture_functions(NEW);
    PERFORM pgembed._give_capture(NEW);
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgembed._follow_embedding() IS
'Trigger: make or drop the job table and the capture functions of an embedding whose row another role than the schema''s owner wrote.';


CREATE OR REPLACE TRIGGER check_embedding BEFORE INSERT OR UPDATE OR DELETE ON pgembed.embedding
FOR EACH ROW WHEN (NOT pgembed._administers()) EXECUTE FUNCTION pgembed._check_embedding();
COMMENT ON TRIGGER check_embedding ON pgembed.embedding IS 'Whose tables a role declares embeddings on.';

CREATE OR REPLACE TRIGGER follow_new_embedding AFTER INSERT OR UPDATE OF key_columns ON pgembed.embedding
FOR EACH ROW WHEN (NEW.kind = 'kept' AND NOT pgembed._administers()) EXECUTE FUNCTION pgembed._follow_embedding();
COMMENT ON TRIGGER follow_new_embedding ON pgembed.embedding IS 'The job table and the capture functions.';

CREATE OR REPLACE TRIGGER follow_old_embedding AFTER DELETE ON pgembed.embedding
FOR EACH ROW WHEN (OLD.kind = 'kept' AND NOT pgembed._administers()) EXECUTE FUNCTION pgembed._follow_embedding();
COMMENT ON TRIGGER follow_old_embedding ON pgembed.embedding IS 'The job table and the capture functions.';


-- What workers need on users' tables is granted by whoever owns these.
CREATE OR REPLACE FUNCTION pgembed._missing_privileges(e pgembed.embedding, worker regrole)
RETURNS TABLE (relation regclass, privileges text)
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.source, format('%s (%s)', w.privilege, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum))
    FROM (
        SELECT 'SELECT', e.key_columns || e.content_columns
            || CASE WHEN e.target = e.source THEN ARRAY[e.target_column] ELSE '{}' END
            -- Columns that were renamed, for a while perhaps.
            || CASE WHEN pgembed._fault(e) IS NULL THEN '{}' ELSE pgembed._watched_columns(e) END
        UNION ALL
        -- To lock a row takes UPDATE on some column, also where no column of it is written.
        SELECT 'UPDATE', CASE
            WHEN e.target = e.source THEN ARRAY[e.target_column]
            WHEN e.content_columns[1] = ANY (pgembed._columns(e.source)) THEN e.content_columns[1:1]
            ELSE ARRAY(SELECT unnest(pgembed._watched_columns(e)) EXCEPT SELECT unnest(e.key_columns)) END
    ) AS w (privilege, columns)
    INNER JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = e.source AND a.attname = ANY (w.columns) AND NOT a.attisdropped
    WHERE NOT EXISTS (
        SELECT FROM aclexplode(a.attacl) AS x WHERE x.grantee = worker AND x.privilege_type = w.privilege
    )
    GROUP BY w.privilege
    UNION ALL
    SELECT e.target, w.privilege
    FROM pg_catalog.pg_class AS c
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS w (privilege)
    WHERE c.oid = e.target AND e.target <> e.source AND NOT EXISTS (
        SELECT FROM aclexplode(c.relacl) AS x WHERE x.grantee = worker AND x.privilege_type = w.privilege
    );
$$;
COMMENT ON FUNCTION pgembed._missing_privileges(pgembed.embedding, regrole) IS
'SQL: what a worker''s role is yet to be granted on the tables of an embedding, as far as their columns exist. Not what it has: a transaction that grants it anew would be in the way of others.';


CREATE OR REPLACE FUNCTION pgembed._grant_schema(relation regclass, worker regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place regnamespace;
BEGIN
    SELECT c.relnamespace INTO place FROM pg_catalog.pg_class AS c WHERE c.oid = relation;
    IF has_schema_privilege(worker, place, 'USAGE') THEN
        RETURN;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s', place, worker);
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'role %, whose workers are to keep table %, may not use schema %', worker, relation, place
            USING ERRCODE = 'insufficient_privilege',
            HINT = format('Let the schema''s owner run: GRANT USAGE ON SCHEMA %s TO %s', place, worker);
END;
$$;
COMMENT ON FUNCTION pgembed._grant_schema(regclass, regrole) IS
'Let the role of workers look up the names in a relation''s schema; an error that says who can, when this role cannot.';


CREATE OR REPLACE FUNCTION pgembed._grant_source(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT p.*, w AS worker
        FROM pgembed._worker_roles() AS w, pgembed._missing_privileges(e, w) AS p
        WHERE e.kind = 'kept'
    LOOP
        EXECUTE format('GRANT %s ON %s TO %s', granted.privileges, granted.relation, granted.worker);
    END LOOP;
    PERFORM pgembed._grant_schema(r, w)
    FROM pgembed._worker_roles() AS w, unnest(ARRAY[e.source, e.target]) AS r
    WHERE e.kind = 'kept' AND pgembed._exists(r);
END;
$$;
COMMENT ON FUNCTION pgembed._grant_source(pgembed.embedding) IS
'Let the roles of workers read the content of a source and write its vectors.';


CREATE OR REPLACE FUNCTION pgembed._held_privileges(e pgembed.embedding, worker regrole)
RETURNS TABLE (relation regclass, privileges text)
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT h.relation, string_agg(h.privilege, ', ' ORDER BY h.privilege)
    FROM (
        SELECT e.source, format('%s (%s)', x.privilege_type, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum))
        FROM pg_catalog.pg_attribute AS a
        CROSS JOIN LATERAL aclexplode(a.attacl) AS x
        WHERE a.attrelid = e.source AND NOT a.attisdropped AND x.grantee = worker
            AND x.privilege_type IN ('SELECT', 'UPDATE')
            AND (
                a.attname = ANY (e.key_columns || e.content_columns || pgembed._watched_columns(e))
                OR e.target = e.source AND (
                    a.attname = e.target_column OR e.target_column <> ALL (pgembed._columns(e.source))
                )
            )
        GROUP BY x.privilege_type
        UNION ALL
        SELECT e.target, x.privilege_type
        FROM pg_catalog.pg_class AS c
        CROSS JOIN LATERAL aclexplode(c.relacl) AS x
        WHERE c.oid = e.target AND e.target <> e.source AND x.grantee = worker
            AND x.privilege_type IN ('SELECT', 'INSERT', 'DELETE')
    ) AS h (relation, privilege)
    GROUP BY h.relation;
$$;
COMMENT ON FUNCTION pgembed._held_privileges(pgembed.embedding, regrole) IS
'SQL: what a worker''s role holds on the tables of an embedding of what _grant_source grants, also on columns that were renamed since. Which was the vector column cannot be told then: it counts any.';


CREATE OR REPLACE FUNCTION pgembed._revoke_source(e pgembed.embedding, worker regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    granted record;
BEGIN
    FOR granted IN SELECT p.* FROM pgembed._held_privileges(e, worker) AS p WHERE e.kind = 'kept' LOOP
        EXECUTE format('REVOKE %s ON %s FROM %s', granted.privileges, granted.relation, worker);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._revoke_source(pgembed.embedding, regrole) IS
'Take back what _grant_source granted to a worker''s role on the tables. USAGE on their schema stays: it may have other reasons.';


CREATE OR REPLACE FUNCTION pgembed._grant_queue(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    worker regrole;
BEGIN
    FOR worker IN SELECT w FROM pgembed._worker_roles() AS w LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s', pgembed._job_table(e.id), worker);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._grant_queue(pgembed.embedding) IS
'Let the roles of workers use the job table of an embedding.';
