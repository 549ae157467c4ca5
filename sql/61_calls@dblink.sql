-- The second session of a call, opened by dblink from this server to itself (or to the
-- foreign server pgembed_calls: another role, another host, a password).

CREATE OR REPLACE FUNCTION pgembed._dblink_is_private()
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT bool_and(coalesce(p.proacl, acldefault('f', p.proowner)) <@ ARRAY[
        makeaclitem(p.proowner, p.proowner, 'EXECUTE', false),
        makeaclitem(quote_ident(current_user)::regrole, p.proowner, 'EXECUTE', false)])
    FROM pg_catalog.pg_extension AS e
    INNER JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.refobjid = e.oid
        AND d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'e'
    INNER JOIN pg_catalog.pg_proc AS p ON p.oid = d.objid
    WHERE e.extname = 'dblink'
);
COMMENT ON FUNCTION pgembed._dblink_is_private() IS
'Whether nobody but its owner may use dblink. Only then a connection is kept: any user of dblink in the same session could send statements over it, as its owner.';


CREATE OR REPLACE FUNCTION pgembed._kept_connection()
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT 'pgembed kept ' || md5(concat_ws(' ', s.value, pg_backend_pid()))
    FROM pgembed.call_secret AS s
);
COMMENT ON FUNCTION pgembed._kept_connection() IS
'The name of this session''s kept dblink connection. Nobody else can tell it, and open one of that name that leads to a server of theirs.';


CREATE OR REPLACE FUNCTION pgembed._call_server()
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT
    FROM pg_catalog.pg_foreign_server AS s
    INNER JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw
    INNER JOIN pg_catalog.pg_roles AS o ON o.oid = s.srvowner
    INNER JOIN pg_catalog.pg_user_mappings AS m ON m.srvid = s.oid
    WHERE s.srvname = 'pgembed_calls' AND w.fdwname = 'dblink_fdw'
        AND (o.rolsuper OR o.rolname = current_user)
        AND (m.umuser = 0 OR m.usename = current_user)
);
COMMENT ON FUNCTION pgembed._call_server() IS
'Whether there is a foreign server pgembed_calls for this role, and one to trust: its owner is this role or a superuser.';


CREATE OR REPLACE FUNCTION pgembed._loopback()
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        format('%s=''%s''', o.name, replace(replace(o.value, E'\\', E'\\\\'), '''', E'\\''')), ' '
    )
    FROM (VALUES
        ('host', coalesce(
            nullif(btrim(split_part(current_setting('unix_socket_directories'), ',', 1), ' "'), ''),
            'localhost')),
        ('port', current_setting('port')),
        ('dbname', current_database()::text),
        ('user', current_user::text),
        ('connect_timeout', '5'),
        ('application_name', 'pgembed call')
    ) AS o (name, value)
);
COMMENT ON FUNCTION pgembed._loopback() IS
'The connection string by which this server reaches this database.';


CREATE OR REPLACE FUNCTION pgembed._check_leads_here(connection text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    there text;
BEGIN
    BEGIN
        SELECT d.name INTO there
        FROM @extschema:dblink@.dblink(connection, 'SELECT pgembed._database_name()') AS d (name text);
        IF there = pgembed._database_name() THEN
            RETURN;
        END IF;
    EXCEPTION
        -- A role may be let post calls, and nothing more.
        WHEN insufficient_privilege THEN
            RETURN;
        WHEN invalid_schema_name OR undefined_function THEN
            NULL;
    END;
    RAISE EXCEPTION 'the foreign server pgembed_calls leads to another database'
        USING ERRCODE = 'object_not_in_prerequisite_state',
        DETAIL = CASE WHEN there IS NULL THEN 'There is no pgembed in that one.'
            ELSE 'That one''s workers and models would answer.' END,
        HINT = format('If this database is a copy, it still has the server of the original. Let it lead here: '
            'ALTER SERVER pgembed_calls OPTIONS (SET dbname %L); likewise host and port.', current_database());
END;
$$;
COMMENT ON FUNCTION pgembed._check_leads_here(text) IS
'An error when a dblink connection leads to another database than this one, or its primary.';


CREATE OR REPLACE FUNCTION pgembed._connect(connection text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tell_password CONSTANT text := format('tell it one: CREATE SERVER pgembed_calls FOREIGN DATA WRAPPER dblink_fdw '
        'OPTIONS (host ''localhost'', port %L, dbname %L); CREATE USER MAPPING FOR %I '
        'SERVER pgembed_calls OPTIONS (user %L, password ''...'');',
        current_setting('port'), current_database(), current_user, current_user);
    reason text;
BEGIN
    IF pgembed._call_server() THEN
        PERFORM @extschema:dblink@.dblink_connect(connection, 'pgembed_calls');
        PERFORM pgembed._check_leads_here(connection);
    ELSIF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'a standby cannot post a call, which is a row of pgembed.call'
            USING ERRCODE = 'read_only_sql_transaction',
            HINT = 'Let a foreign server pgembed_calls lead to the primary, or install with --transport plpython and run a worker on this machine.';
    ELSIF (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) THEN
        PERFORM @extschema:dblink@.dblink_connect_u(connection, pgembed._loopback());
    ELSE
        RAISE EXCEPTION 'role % cannot open the second session that a call needs', quote_ident(current_user)
            USING ERRCODE = 'insufficient_privilege',
            DETAIL = 'The owner of pgembed''s functions is not a superuser, so dblink asks for a password.',
            HINT = upper(left(tell_password, 1)) || substr(tell_password, 2)
                || format(' That takes, from a superuser: GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO %I;', current_user);
    END IF;
    PERFORM @extschema:dblink@.dblink_exec(connection,
        'SET search_path = pg_catalog, pg_temp; '
        'SET default_transaction_isolation = ''read committed''; '
        'SET default_transaction_read_only = off; SET synchronous_commit = off; '
        'SET statement_timeout = 0; SET lock_timeout = 2000; SET idle_session_timeout = 0; '
        'SET client_min_messages = error; SET client_connection_check_interval = 1000');
EXCEPTION
    WHEN sqlclient_unable_to_establish_sqlconnection THEN
        GET STACKED DIAGNOSTICS reason = PG_EXCEPTION_DETAIL;
        RAISE EXCEPTION 'the second session that a call needs cannot be opened'
            USING ERRCODE = 'sqlclient_unable_to_establish_sqlconnection', DETAIL = reason,
            HINT = 'If the server asks role ' || quote_ident(current_user) || ' for a password, ' || tell_password;
END;
$$;
COMMENT ON FUNCTION pgembed._connect(text) IS
'Open a dblink connection to this database for calls, with the settings that waiting needs.';


CREATE OR REPLACE FUNCTION pgembed._dial(kept text)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    connection text := kept;
BEGIN
    IF connection = ANY (@extschema:dblink@.dblink_get_connections()) THEN
        RETURN connection;
    ELSIF connection IS NULL OR NOT pgembed._dblink_is_private() THEN
        connection := 'pgembed ' || gen_random_uuid();
    END IF;
    BEGIN
        PERFORM pgembed._connect(connection);
    EXCEPTION
        WHEN query_canceled OR OTHERS THEN
            PERFORM pgembed._hang_up(connection);
            RAISE;
    END;
    RETURN connection;
END;
$$;
COMMENT ON FUNCTION pgembed._dial(text) IS
'The name of an open dblink connection for calls: the session''s kept one when it may be kept, else a new one.';


CREATE OR REPLACE FUNCTION pgembed._hang_up(connection text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF connection = ANY (@extschema:dblink@.dblink_get_connections()) THEN
        IF @extschema:dblink@.dblink_is_busy(connection) = 1 THEN
            PERFORM @extschema:dblink@.dblink_cancel_query(connection);
        END IF;
        PERFORM @extschema:dblink@.dblink_disconnect(connection);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._hang_up(text) IS
'Close a dblink connection; a statement that still runs over it is cancelled.';


CREATE OR REPLACE FUNCTION pgembed._post_over(
    connection text, kind text, model text, contents text[], timeout interval
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT p.id FROM @extschema:dblink@.dblink(connection, format(
            'SELECT pgembed._post_call(%L, %L, %L::text[], %L::interval)',
            kind, model, contents, timeout + '1 second'::interval)) AS p (id bigint));
END;
$$;
COMMENT ON FUNCTION pgembed._post_over(text, text, text, text[], interval) IS
'Post a call over a dblink connection, where it is committed at once; its id.';


CREATE OR REPLACE FUNCTION pgembed._fetch_answer(
    call_id bigint, withdraw boolean,
    OUT answered boolean, OUT vectors @extschema:vector@.vector[], OUT error text
)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM pgembed.call AS c WHERE c.id = call_id AND (c.answered OR withdraw)
    RETURNING c.answered, c.vectors, c.error INTO answered, vectors, error;
END;
$$;
COMMENT ON FUNCTION pgembed._fetch_answer(bigint, boolean) IS
'Take the answer to a call away; answered is NULL when there is none yet. withdraw: take the call away in any case. Needs READ COMMITTED.';


CREATE OR REPLACE FUNCTION pgembed._await_release(call_id bigint, patience double precision)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = 0
AS $$
DECLARE
    lock_key CONSTANT bigint := pgembed._call_lock(call_id);
BEGIN
    -- Taken and let go in one expression: a cancel between the two would leave the lock.
    IF pg_try_advisory_lock_shared(lock_key) AND pg_advisory_unlock_shared(lock_key) THEN
        RETURN false;
    END IF;
    -- Before the server looks for deadlocks, and may log the wait.
    PERFORM set_config('lock_timeout', greatest(least(patience, 0.5) * 1000, 1)::integer::text, true);
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(lock_key);
        RAISE lock_not_available;  -- what is rolled back lets go, a cancelled wait too
    EXCEPTION
        WHEN lock_not_available THEN
            RETURN true;
    END;
END;
$$;
COMMENT ON FUNCTION pgembed._await_release(bigint, double precision) IS
'Wait, so many seconds and half a second at most, while a worker holds the lock of a call; false, at once, when none does.';


CREATE OR REPLACE FUNCTION pgembed._await_answer(
    connection text, call_id bigint, deadline timestamptz, itself boolean,
    OUT answered boolean, OUT vectors @extschema:vector@.vector[], OUT error text
)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pause double precision := 0.0005;
    remaining double precision := extract(epoch FROM deadline - clock_timestamp());
BEGIN
    LOOP
        -- Here, not over there: dblink is deaf to cancel and statement_timeout until its
        -- statement has ended.
        IF remaining > 0 AND NOT pgembed._await_release(call_id, remaining) THEN
            PERFORM pg_sleep(least(pause, remaining));
            -- Of many callers none is taken at once, and their looks keep the worker.
            pause := least(pause * 3, 0.03);
        END IF;
        remaining := extract(epoch FROM deadline - clock_timestamp());
        IF itself THEN
            -- The slice is a copy: the row may go, and what it keeps elsewhere with it.
            SELECT c.answered, c.vectors[:], c.error INTO answered, vectors, error
            FROM pgembed.call AS c WHERE c.id = call_id AND c.answered;
        ELSE
            SELECT a.* INTO answered, vectors, error
            FROM @extschema:dblink@.dblink(connection, format(
                'SELECT * FROM pgembed._fetch_answer(%s, %L)', call_id, remaining <= 0
            )) AS a (answered boolean, vectors @extschema:vector@.vector[], error text);
        END IF;
        EXIT WHEN answered OR remaining <= 0;
    END LOOP;
    answered := coalesce(answered, false);
END;
$$;
COMMENT ON FUNCTION pgembed._await_answer(text, bigint, timestamptz, boolean) IS
'Wait for the answer to a call: look whenever a worker lets go of it, and ever more rarely before one has taken it. itself: in this session, for whose transaction later commits are visible; the row stays until it expires. Otherwise over a dblink connection, which takes it away. VOLATILE: it must see what was committed since its caller''s statement began.';


CREATE OR REPLACE FUNCTION pgembed._withdraw(connection text, call_id bigint)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF @extschema:dblink@.dblink_is_busy(connection) = 0 THEN
        PERFORM FROM @extschema:dblink@.dblink(connection,
            format('SELECT a.answered FROM pgembed._fetch_answer(%s, true) AS a', call_id)) AS a (answered boolean);
    END IF;
EXCEPTION
    WHEN OTHERS THEN
        -- It expires by itself, only later.
        RETURN;
END;
$$;
COMMENT ON FUNCTION pgembed._withdraw(text, bigint) IS
'Take a call away for whose answer its caller does not wait any longer, so that no worker begins it, or goes on with its texts.';


CREATE OR REPLACE FUNCTION pgembed._raise_anew(state text, message text, detail text, hint text)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- An empty one would be shown.
    detail := coalesce(nullif(detail, ''), 'So said the second session of the call.');
    IF hint = '' THEN
        RAISE EXCEPTION '%', message USING ERRCODE = state, DETAIL = detail;
    END IF;
    RAISE EXCEPTION '%', message USING ERRCODE = state, DETAIL = detail, HINT = hint;
END;
$$;
COMMENT ON FUNCTION pgembed._raise_anew(text, text, text, text) IS
'Raise an error of the second session without its context, in which dblink names the connection.';


CREATE OR REPLACE FUNCTION pgembed._call(
    kind text, model text, contents text[], timeout interval
)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    deadline CONSTANT timestamptz := clock_timestamp() + timeout;
    kept CONSTANT text := pgembed._kept_connection();
    connection text;
    answer record;
    call_id bigint;
    state text;
    message text;
    detail text;
    hint text;
    context text;
BEGIN
    connection := pgembed._dial(kept);
    BEGIN
        call_id := pgembed._post_over(connection, kind, model, contents, timeout);
    EXCEPTION
        -- A kept connection that died meanwhile is replaced once.
        WHEN connection_exception OR connection_failure OR connection_does_not_exist
            OR admin_shutdown OR crash_shutdown OR idle_session_timeout THEN
            PERFORM pgembed._hang_up(connection);
            connection := pgembed._dial(kept);
            call_id := pgembed._post_over(connection, kind, model, contents, timeout);
    END;
    answer := pgembed._await_answer(connection, call_id, deadline, pgembed._sees_commits());
    IF connection IS DISTINCT FROM kept THEN
        PERFORM pgembed._hang_up(connection);
    END IF;
    IF NOT answer.answered THEN
        PERFORM pgembed._no_answer(timeout);
    ELSIF answer.error IS NOT NULL THEN
        RAISE EXCEPTION '%', answer.error USING ERRCODE = 'external_routine_exception';
    END IF;
    RETURN answer.vectors;
EXCEPTION
    WHEN query_canceled OR OTHERS THEN
        GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
            detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
        PERFORM pgembed._withdraw(connection, call_id);
        PERFORM pgembed._hang_up(connection);
        IF strpos(context, kept) > 0 THEN
            PERFORM pgembed._raise_anew(state, message, detail, hint);
        END IF;
        RAISE;
END;
$$;
COMMENT ON FUNCTION pgembed._call(text, text, text[], interval) IS
'Ask a worker through a second session and wait for its answer: vectors, or an error.';
