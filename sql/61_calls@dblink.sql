-- The second session of a call, opened by dblink from this server to itself (or to the
-- foreign server pgembed_calls: another role, another host, a password).

CREATE OR REPLACE FUNCTION pgembed._dblink_is_private()
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN NOT EXISTS (
    SELECT
    FROM pg_catalog.pg_extension AS e
    INNER JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.refobjid = e.oid
        AND d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'e'
    INNER JOIN pg_catalog.pg_proc AS p ON p.oid = d.objid
    CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
    WHERE e.extname = 'dblink' AND a.grantee NOT IN (p.proowner, quote_ident(current_user)::regrole)
);
COMMENT ON FUNCTION pgembed._dblink_is_private() IS
'Whether nobody but its owner may use dblink. Only then a connection is kept: any user of dblink in the same session could send statements over it, as its owner.';


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
        format('%s=''%s''', o.name, replace(replace(o.value, '\', '\\'), '''', '\''')), ' '
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


CREATE OR REPLACE FUNCTION pgembed._connect(connection text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tell_password CONSTANT text := format('tell it one: CREATE SERVER pgembed_calls FOREIGN DATA WRAPPER dblink_fdw '
        'OPTIONS (host ''localhost'', dbname %L); CREATE USER MAPPING FOR %I '
        'SERVER pgembed_calls OPTIONS (user %L, password ''...'');',
        current_database(), current_user, current_user);
    reason text;
BEGIN
    IF pgembed._call_server() THEN
        PERFORM @extschema:dblink@.dblink_connect(connection, 'pgembed_calls');
    ELSIF (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) THEN
        PERFORM @extschema:dblink@.dblink_connect_u(connection, pgembed._loopback());
    ELSE
        RAISE EXCEPTION 'role % cannot open the second session that a call needs', quote_ident(current_user)
            USING ERRCODE = 'insufficient_privilege',
            DETAIL = 'The owner of pgembed''s functions is not a superuser, so dblink asks for a password.',
            HINT = upper(left(tell_password, 1)) || substr(tell_password, 2);
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


CREATE OR REPLACE FUNCTION pgembed._dial()
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    connection text := 'pgembed kept';
BEGIN
    IF connection = ANY (@extschema:dblink@.dblink_get_connections()) THEN
        RETURN connection;
    END IF;
    IF NOT pgembed._dblink_is_private() THEN
        connection := 'pgembed_' || gen_random_uuid();
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
COMMENT ON FUNCTION pgembed._dial() IS
'The name of an open dblink connection for calls: the session''s own when it may be kept, else a new one.';


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


CREATE OR REPLACE FUNCTION pgembed._ask_over(
    connection text, kind text, model text, contents text[], timeout interval, leave boolean,
    OUT call_id bigint, OUT answered boolean, OUT vectors text[], OUT error text
)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT a.* INTO call_id, answered, vectors, error
    FROM @extschema:dblink@.dblink(connection, format(
        'CALL pgembed._ask(%L, %L, %L::text[], %L::interval, %s, %L, NULL, NULL, NULL, NULL)',
        kind, model, contents, timeout + '1 second'::interval,
        least(extract(epoch FROM timeout), 0.05), leave
    )) AS a (call_id bigint, answered boolean, vectors text[], error text);
END;
$$;
COMMENT ON FUNCTION pgembed._ask_over(text, text, text, text[], interval, boolean) IS
'Post a call over a dblink connection, and wait a moment for its answer.';


CREATE OR REPLACE FUNCTION pgembed._await_over(
    connection text, call_id bigint, started timestamptz, timeout interval, leave boolean,
    OUT answered boolean, OUT vectors text[], OUT error text
)
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    remaining double precision;
BEGIN
    LOOP
        -- Here, not over there: dblink is deaf to cancel and statement_timeout until its
        -- statement has ended.
        remaining := extract(epoch FROM started + timeout - clock_timestamp());
        IF remaining > 0 AND NOT pgembed._await_release(call_id, remaining) THEN
            PERFORM pg_sleep(least(remaining, 0.02));
        END IF;
        remaining := extract(epoch FROM started + timeout - clock_timestamp());
        SELECT a.* INTO answered, vectors, error
        FROM @extschema:dblink@.dblink(connection, format(
            'SELECT * FROM pgembed._fetch_answer(%s, %L, %L)', call_id, remaining <= 0, leave
        )) AS a (answered boolean, vectors text[], error text);
        EXIT WHEN answered OR remaining <= 0;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._await_over(text, bigint, timestamptz, interval, boolean) IS
'Wait for an answer and fetch it over a dblink connection.';


CREATE OR REPLACE FUNCTION pgembed._withdraw(connection text, call_id bigint)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF @extschema:dblink@.dblink_is_busy(connection) = 0 THEN
        PERFORM FROM @extschema:dblink@.dblink(connection,
            format('SELECT a.answered FROM pgembed._fetch_answer(%s, true, false) AS a', call_id)) AS a (answered boolean);
    END IF;
EXCEPTION
    WHEN OTHERS THEN
        -- It expires by itself, only later.
        RETURN;
END;
$$;
COMMENT ON FUNCTION pgembed._withdraw(text, bigint) IS
'Take a call away for whose answer its caller does not wait any longer, so that no worker goes on with it.';


CREATE OR REPLACE FUNCTION pgembed._call(
    kind text, model text, contents text[], timeout interval
)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    leave CONSTANT boolean := pgembed._reads_itself(kind, contents);
    started timestamptz := clock_timestamp();
    connection text := pgembed._dial();
    answer record;
    call_id bigint;
BEGIN
    BEGIN
        answer := pgembed._ask_over(connection, kind, model, contents, timeout, leave);
    EXCEPTION
        -- A kept connection that died meanwhile is replaced once.
        WHEN connection_exception OR connection_failure OR connection_does_not_exist
            OR admin_shutdown OR crash_shutdown OR idle_session_timeout THEN
            PERFORM pgembed._hang_up(connection);
            connection := pgembed._dial();
            answer := pgembed._ask_over(connection, kind, model, contents, timeout, leave);
    END;
    call_id := answer.call_id;
    IF NOT answer.answered THEN
        answer := pgembed._await_over(connection, call_id, started, timeout, leave);
    END IF;
    IF connection <> 'pgembed kept' THEN
        PERFORM pgembed._hang_up(connection);
    END IF;
    IF NOT answer.answered THEN
        PERFORM pgembed._no_answer(timeout);
    ELSIF answer.error IS NOT NULL THEN
        RAISE EXCEPTION '%', answer.error USING ERRCODE = 'external_routine_exception';
    END IF;
    IF leave AND answer.vectors IS NULL THEN
        RETURN pgembed._left_vectors(call_id);
    END IF;
    RETURN answer.vectors::@extschema:vector@.vector[];
EXCEPTION
    WHEN query_canceled OR OTHERS THEN
        PERFORM pgembed._withdraw(connection, call_id);
        PERFORM pgembed._hang_up(connection);
        RAISE;
END;
$$;
COMMENT ON FUNCTION pgembed._call(text, text, text[], interval) IS
'Ask a worker through a second session and wait for its answer: vectors, or an error.';
