-- Calls: a SQL function asks a worker and waits for its answer, in its own transaction.
-- How the request travels is in 61_calls: over a Unix socket, or through pgembed.call in a
-- second session, where it is committed at once. Answers through that table, and many
-- vectors on either way, are read from it by the caller itself: on any other way they
-- would be written as text.

CREATE OR REPLACE FUNCTION pgembed._sees_commits()
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
-- A snapshot that the transaction keeps is older than the answer.
RETURN pg_catalog.current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')
    AND pg_catalog.current_setting('in_hot_standby') = 'off';
COMMENT ON FUNCTION pgembed._sees_commits() IS
'Whether a caller can read an answer from pgembed.call itself: what is committed while it waits is visible to it.';


CREATE OR REPLACE FUNCTION pgembed._left_vectors(call_id bigint)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    vectors @extschema:vector@.vector[];
BEGIN
    -- The slice is a copy: the row may go, and what it keeps elsewhere with it.
    SELECT c.vectors[:] INTO vectors FROM pgembed.call AS c WHERE c.id = call_id AND c.answered;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the vectors of call % were not read in time', call_id
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'They are kept for 10 seconds, and lost when the server crashes: try again.';
    END IF;
    RETURN vectors;
END;
$$;
COMMENT ON FUNCTION pgembed._left_vectors(bigint) IS
'The vectors that a worker left for the caller to read. VOLATILE: it must see what was committed since its caller''s statement began.';


CREATE OR REPLACE FUNCTION pgembed._post_call(
    kind text, model text, contents text[], lifetime interval
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    call_id bigint;
BEGIN
    IF kind <> 'add_model' THEN
        PERFORM pgembed._find_model(model);
    END IF;
    INSERT INTO pgembed.call AS c (kind, model, contents, expires_at)
    VALUES (_post_call.kind, _post_call.model, _post_call.contents,
        clock_timestamp() + lifetime)
    RETURNING c.id INTO call_id;
    PERFORM pg_notify('pgembed_call', call_id::text);
    RETURN call_id;
END;
$$;
COMMENT ON FUNCTION pgembed._post_call(text, text, text[], interval) IS
'Post a request for a worker and wake one up; an error when the model is unknown.';


CREATE OR REPLACE FUNCTION pgembed._call_lock(call_id bigint)
RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN pg_catalog.hashint8extended(call_id, 7309453671226245476);
COMMENT ON FUNCTION pgembed._call_lock(bigint) IS
'The key of the advisory lock that a worker holds from taking a call to answering it. It guards nothing: its release wakes the caller, who would otherwise look every millisecond.';


CREATE OR REPLACE FUNCTION pgembed._take_calls(worker uuid, ids bigint[], max_calls integer)
RETURNS TABLE (
    id bigint, kind text, model text, model_hash bytea, contents text[], remaining interval
)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
-- Plans are made, and kept, while the table is nearly empty.
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    -- Whom notifications reach has a session of its own, and may keep locks in it.
    locks CONSTANT boolean := ids IS NOT NULL;
BEGIN
    IF ids IS NULL OR ids = '{}' THEN
        ids := ARRAY(
            SELECT w.id FROM pgembed.call AS w
            WHERE w.worker IS NULL ORDER BY w.id LIMIT max_calls FOR UPDATE SKIP LOCKED
        );
    END IF;
    RETURN QUERY
    UPDATE pgembed.call AS c
    SET worker = _take_calls.worker
    WHERE c.id = ANY (ids) AND c.worker IS NULL AND c.expires_at > clock_timestamp()
    RETURNING c.id, c.kind, c.model,
        (SELECT m.hash FROM pgembed.model AS m WHERE m.name = c.model),
        c.contents, c.expires_at - clock_timestamp();
    IF locks THEN
        PERFORM pg_try_advisory_lock(pgembed._call_lock(c.id))
        FROM pgembed.call AS c
        WHERE c.id = ANY (ids) AND c.worker = _take_calls.worker AND c.kind <> 'add_model';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._take_calls(uuid, bigint[], integer) IS
'Claim waiting calls for a worker: those that notifications named, or all when ids is empty or NULL. They are locked unless it is NULL: of a connection that notifications do not reach.';


CREATE OR REPLACE FUNCTION pgembed._store_answers(
    call_ids bigint[], worker uuid, counts integer[], vectors @extschema:vector@.vector[], errors text[]
)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
-- Plans are made, and kept, while the table is nearly empty.
SET enable_seqscan = off
AS $$
BEGIN
    -- In one order, since others remove calls too.
    PERFORM
    FROM pgembed.call AS c
    WHERE c.id = ANY (call_ids) AND c.worker = _store_answers.worker
    ORDER BY c.id
    FOR UPDATE;
    UPDATE pgembed.call AS c
    SET
        answered = true,
        expires_at = least(c.expires_at, clock_timestamp() + '10 seconds'::interval),
        vectors = CASE
            WHEN a.count = 0 THEN NULL
            WHEN a.count = cardinality(_store_answers.vectors) THEN _store_answers.vectors
            ELSE _store_answers.vectors[a.last - a.count + 1:a.last]
        END,
        error = a.error
    FROM (
        SELECT u.id, u.count, u.error, sum(u.count) OVER (ORDER BY u.place)::integer AS last
        FROM unnest(call_ids, counts, errors) WITH ORDINALITY AS u (id, count, error, place)
    ) AS a
    WHERE c.id = a.id AND c.worker = _store_answers.worker;
END;
$$;
COMMENT ON FUNCTION pgembed._store_answers(bigint[], uuid, integer[], @extschema:vector@.vector[], text[]) IS
'Answer calls, each with the next of the vectors, as many as its count, or with an error; those that nobody waits for any more are passed over.';


CREATE OR REPLACE FUNCTION pgembed._leave_vectors(
    worker uuid, model text, vectors @extschema:vector@.vector[]
)
RETURNS bigint
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO pgembed.call AS c (kind, model, contents, worker, answered, vectors, expires_at)
    VALUES ('document', _leave_vectors.model, '{}', _leave_vectors.worker, true,
        _leave_vectors.vectors, clock_timestamp() + '10 seconds'::interval)
    RETURNING c.id;
$$;
COMMENT ON FUNCTION pgembed._leave_vectors(uuid, text, @extschema:vector@.vector[]) IS
'Leave the vectors of a call that came another way for its caller to read. SECURITY DEFINER: a worker may not post calls.';


-- A routine that commits cannot have a SET clause; here is no name to look up in a
-- search_path.
CREATE OR REPLACE PROCEDURE pgembed._answer(
    call_ids bigint[], worker uuid, counts integer[], vectors @extschema:vector@.vector[], errors text[],
    locked bigint[]
)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgembed._store_answers(call_ids, worker, counts, vectors, errors);
    COMMIT;
    PERFORM pg_catalog.pg_advisory_unlock(pgembed._call_lock(u.id))
    FROM pg_catalog.unnest(locked) AS u (id);
END;
$$;
COMMENT ON PROCEDURE pgembed._answer(bigint[], uuid, integer[], @extschema:vector@.vector[], text[], bigint[]) IS
'Answer calls and commit; then let go of those that are locked: that wakes who waits.';


CREATE OR REPLACE FUNCTION pgembed._expire_calls()
RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (
        DELETE FROM pgembed.call AS c
        WHERE c.id IN (
            SELECT e.id FROM pgembed.call AS e
            WHERE e.expires_at < clock_timestamp()
            FOR UPDATE SKIP LOCKED
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone;
$$;
COMMENT ON FUNCTION pgembed._expire_calls() IS
'Remove the calls whose callers went away without taking the answer.';
