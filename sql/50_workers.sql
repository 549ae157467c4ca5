-- Workers say that they are there, and are told when they are too old or too new.

CREATE OR REPLACE FUNCTION pgembed._accept_protocol(protocol integer)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- The oldest and the newest that these functions work with, PROTOCOL of pgembed/embeddings/workers.py.
    oldest constant integer := 1;
    newest constant integer := 1;
BEGIN
    IF protocol NOT BETWEEN oldest AND newest THEN
        RAISE EXCEPTION 'the functions of pgembed in this database work with workers of protocol % to %, not %',
            oldest, newest, protocol
            USING ERRCODE = 'feature_not_supported',
            HINT = CASE WHEN protocol < oldest THEN 'Upgrade the worker: pip install --upgrade pgembed-vector.'
                ELSE 'Upgrade the schema: pgembed install.' END;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._accept_protocol(integer) IS
'An error unless workers of this protocol may go on. Every version has this function, and every worker asks it.';


CREATE OR REPLACE FUNCTION pgembed._register_worker(role text, host text, pid integer, version text)
RETURNS uuid
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO pgembed.worker AS w (role, host, pid, version)
    VALUES (role, host, pid, version)
    RETURNING w.id;
$$;
COMMENT ON FUNCTION pgembed._register_worker(text, text, integer, text) IS
'A new worker process; returns its id.';


CREATE OR REPLACE FUNCTION pgembed._heartbeat(worker uuid)
RETURNS boolean
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM pgembed.worker AS w
    WHERE w.seen_at < now() - interval '5 minutes' AND w.id <> worker;
    -- Those of an embedding that a user is just dropping are held until that is committed.
    DELETE FROM pgembed.progress AS p
    WHERE p.ctid = ANY (ARRAY(
        SELECT o.ctid
        FROM pgembed.progress AS o
        WHERE o.bucket < now() - interval '10 minutes'
        FOR UPDATE SKIP LOCKED
    ));
    WITH seen AS (
        UPDATE pgembed.worker AS w SET seen_at = now() WHERE w.id = worker RETURNING w.id
    )
    SELECT EXISTS (SELECT FROM seen);
$$;
COMMENT ON FUNCTION pgembed._heartbeat(uuid) IS
'The worker is still there; false when it was forgotten and has to register again. Forgets workers not seen for five minutes.';


CREATE OR REPLACE FUNCTION pgembed._set_idle(worker uuid, idle boolean)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE pgembed.worker AS w
    SET idle = $2, seen_at = now(), watching_until = CASE
        WHEN $2 THEN '-infinity' ELSE clock_timestamp() + interval '2500 milliseconds' END
    WHERE w.id = worker
        -- Writers read over every version of the row, and an old transaction keeps them all.
        AND ($2 OR w.idle OR EXISTS (SELECT FROM pgembed.worker AS o WHERE o.idle AND o.id <> worker));
$$;
COMMENT ON FUNCTION pgembed._set_idle(uuid, boolean) IS
'Whether the worker waits for a notification; it looks for work once more after saying so. Otherwise it looks again and again, and says so every second as long as it does; that is recorded while others wait, since nobody else is notified.';


CREATE OR REPLACE FUNCTION pgembed._unregister_worker(worker uuid)
RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM pgembed.worker AS w WHERE w.id = worker;
$$;
COMMENT ON FUNCTION pgembed._unregister_worker(uuid) IS
'The worker has stopped.';


CREATE OR REPLACE VIEW pgembed.workers AS
SELECT
    w.id,
    w.role,
    w.host,
    w.pid,
    w.version,
    w.idle,
    w.started_at,
    w.seen_at,
    w.seen_at > pg_catalog.now() - interval '1 minute' AS live
FROM pgembed.worker AS w;
COMMENT ON VIEW pgembed.workers IS
'The worker processes, and whether they were seen during the last minute.';
