-- Batches from SQL: posted in the caller's transaction, so that they begin when it
-- commits, with the queries that it wrote.

-- Who posts is not said by an argument, which could be forged: the trigger runs as
-- whoever inserts, and overwrites what was inserted, unless the table is his.
CREATE OR REPLACE FUNCTION pgembed._check_batch()
RETURNS trigger
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
BEGIN
    -- Who restores a dump does not post what is in it.
    IF NEW.caller IS NOT NULL
        AND pg_has_role((SELECT c.relowner FROM pg_class AS c WHERE c.oid = TG_RELID), 'USAGE')
    THEN
        RETURN NEW;
    END IF;
    e := pgembed._find_embedding(NEW.embedding);
    NEW.caller := quote_ident(current_user)::regrole;
    NEW.caller_name := current_user;
    NEW.state := 'waiting';
    NEW.cancel_requested := false;
    NEW.attempts := 0;
    NEW.due_at := now();
    NEW.posted_at := now();
    NEW.worker := NULL;
    NEW.lease := NULL;
    NEW.rows := NULL;
    NEW.report := NULL;
    NEW.error := NULL;
    NEW.started_at := NULL;
    NEW.ended_at := NULL;
    IF NOT (SELECT r.rolcanlogin FROM pg_catalog.pg_roles AS r WHERE r.oid = NEW.caller) THEN
        RAISE EXCEPTION 'role % cannot post a batch, because it cannot log in', quote_ident(current_user)
            USING ERRCODE = 'invalid_authorization_specification',
            DETAIL = 'A worker carries a batch out in a session of the role that posted it.',
            HINT = 'RESET ROLE first, or post it as a role with LOGIN.';
    END IF;
    IF NEW.kind IN ('build_layout', 'drop_layout')
        AND NOT pg_has_role((SELECT c.relowner FROM pg_class AS c WHERE c.oid = e.source), 'USAGE')
    THEN
        -- All roles share a layout, and one sees in it what its builder could see.
        RAISE EXCEPTION 'must be owner of table % to change its layout', e.source
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NEW.kind = 'search' AND NEW.queries IS NULL OR NEW.kind IN ('search', 'join') AND NEW.results IS NULL THEN
        RAISE EXCEPTION 'the table for % is NULL', CASE WHEN NEW.results IS NULL THEN 'results' ELSE 'queries' END
            USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Name a table; to_regclass gives NULL for one that does not exist.';
    ELSIF jsonb_typeof(NEW.options) <> 'object' THEN
        RAISE EXCEPTION 'options are %, but must be an object', left(NEW.options::text, 100)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Write {"list_rows": 1000}.';
    ELSIF NEW.options ? 'memory' THEN
        PERFORM pgembed._memory_bytes(NEW.options ->> 'memory');
    END IF;
    IF NEW.kind = 'join' THEN
        NEW.queries := coalesce(NEW.queries, NEW.embedding);
        PERFORM pgembed._find_embedding(NEW.queries);
    END IF;
    IF NEW.kind IN ('search', 'join') AND (NEW.k BETWEEN 1 AND 10000) IS NOT TRUE THEN
        RAISE EXCEPTION 'k is %, but must be from 1 to 10000', coalesce(NEW.k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NEW.kind IN ('search', 'join') AND (NEW.recall > 0 AND NEW.recall <= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'recall is %, but must be above 0 and at most 1', coalesce(NEW.recall::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = '1 is exact.';
    END IF;
    PERFORM pg_notify('pgembed_batch', '');
    RETURN NEW;
END;
$$;
COMMENT ON FUNCTION pgembed._check_batch() IS
'Trigger: a new batch belongs to whoever inserts it, waits, and makes sense. One with a caller, which only the table''s owner can insert, comes from a dump and stays as it is.';

CREATE OR REPLACE TRIGGER check_batch BEFORE INSERT ON pgembed.batch
FOR EACH ROW EXECUTE FUNCTION pgembed._check_batch();
ALTER TABLE pgembed.batch ENABLE ALWAYS TRIGGER check_batch;
COMMENT ON TRIGGER check_batch ON pgembed.batch IS 'Who posts a batch, and whether it makes sense.';


CREATE OR REPLACE FUNCTION pgembed._memory_bytes(memory text)
RETURNS numeric
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE CALLED ON NULL INPUT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts text[] := regexp_match(memory, '^([0-9]{1,20}) ?([kMGT]B)?$');
    bytes numeric := parts[1]::numeric * 1024::numeric ^ CASE parts[2]
        WHEN 'kB' THEN 1 WHEN 'MB' THEN 2 WHEN 'GB' THEN 3 WHEN 'TB' THEN 4 ELSE 0 END;
BEGIN
    IF bytes IS NULL THEN
        RAISE EXCEPTION 'memory is %', coalesce(quote_literal(left(memory, 100)), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give bytes, or a size such as ''512MB'' or ''2GB''.';
    ELSIF bytes < 67108864 THEN
        RAISE EXCEPTION 'memory is %, but a batch needs at least 64MB', quote_literal(memory)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN bytes;
END;
$$;
COMMENT ON FUNCTION pgembed._memory_bytes(text) IS
'The bytes of a size such as 512MB; an error for what is none, or too small for a batch.';


-- No search_path: the name is looked up, or the table will be made, as the caller would.
CREATE OR REPLACE FUNCTION pgembed._results_table(results text)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
AS $$
DECLARE
    existing pg_catalog.regclass := pg_catalog.to_regclass(results);
    parts pg_catalog._text;
BEGIN
    IF existing IS NOT NULL THEN
        RETURN pgembed._batch_table(existing);
    END IF;
    parts := pg_catalog.parse_ident(results);
    IF pg_catalog.cardinality(parts) OPERATOR(pg_catalog.=) 1 THEN
        IF pg_catalog.current_schema() IS NULL THEN
            RAISE EXCEPTION 'no schema has been selected to create % in', results
                USING ERRCODE = 'invalid_schema_name';
        END IF;
        parts := pg_catalog.array_prepend(pg_catalog.current_schema()::pg_catalog.text, parts);
    ELSIF pg_catalog.cardinality(parts) OPERATOR(pg_catalog.=) 3 THEN
        parts := parts[2:];  -- this database's, or to_regclass had refused it
    END IF;
    IF pg_catalog.starts_with(parts[1], 'pg_temp') THEN
        RAISE EXCEPTION 'table % would be temporary, so that it would be gone with the worker''s session', results
            USING ERRCODE = 'feature_not_supported',
            HINT = 'Use an ordinary table; CREATE UNLOGGED TABLE is as fast.';
    END IF;
    RETURN pg_catalog.format('%I.%I', VARIADIC parts);
END;
$$;
COMMENT ON FUNCTION pgembed._results_table(text) IS
'The qualified name of a table for results, which need not exist; an error for one that is, or would be, temporary.';


CREATE OR REPLACE FUNCTION pgembed._batch_table(relation regclass)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    qualified text;
    persistence "char";
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname), c.relpersistence INTO qualified, persistence
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = relation;
    IF qualified IS NULL THEN
        RAISE EXCEPTION 'there is no table with oid %', relation::oid
            USING ERRCODE = 'undefined_table';
    END IF;
    IF persistence = 't' THEN
        RAISE EXCEPTION 'table % is temporary, so that no worker can see it', relation
            USING ERRCODE = 'feature_not_supported',
            HINT = 'Use an ordinary table; CREATE UNLOGGED TABLE is as fast.';
    END IF;
    RETURN qualified;
END;
$$;
COMMENT ON FUNCTION pgembed._batch_table(regclass) IS
'The qualified name of a table that a worker is to use; an error for one that is temporary.';


CREATE OR REPLACE FUNCTION pgembed._kept_settings(names text[])
RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
AS $$
DECLARE
    name pg_catalog.text;
    kept pg_catalog.jsonb := '{}';
BEGIN
    -- What predicates mean depends on these.
    names := pg_catalog.array_cat('{search_path,TimeZone,DateStyle,IntervalStyle}'::pg_catalog._text, names);
    FOREACH name IN ARRAY names LOOP
        IF name IS NULL THEN
            RAISE EXCEPTION 'one of the settings to keep is NULL'
                USING ERRCODE = 'null_value_not_allowed',
                HINT = 'Name those that predicates or policies read: settings => ''{app.tenant}''.';
        END IF;
        IF pg_catalog.current_setting(name, true) IS NULL THEN
            RAISE EXCEPTION 'there is no setting % in this session', name
                USING ERRCODE = 'undefined_object',
                HINT = pg_catalog.format('SET %s before, or leave it out of settings.', name);
        END IF;
        kept := kept OPERATOR(pg_catalog.||)
            pg_catalog.jsonb_build_object(name, pg_catalog.current_setting(name));
    END LOOP;
    RETURN kept;
END;
$$;
COMMENT ON FUNCTION pgembed._kept_settings(text[]) IS
'The search_path of this session, how it writes times, and the settings of these names, for a batch to run under.';


CREATE OR REPLACE FUNCTION pgembed._post_batch(
    kind text, embedding text, queries text, results text, k integer, recall float8,
    options jsonb, settings jsonb, memory text
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    posted bigint;
BEGIN
    options := coalesce(options, '{}');
    IF options ? 'memory' AND memory IS NOT NULL THEN
        RAISE EXCEPTION 'memory is given twice: % and % in options', quote_literal(memory), options -> 'memory'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave it out of the options.';
    ELSIF memory IS NOT NULL AND jsonb_typeof(options) = 'object' THEN
        options := options || jsonb_build_object('memory', memory);
    END IF;
    INSERT INTO pgembed.batch AS b (kind, embedding, queries, results, k, recall, options, settings)
    VALUES (_post_batch.kind, _post_batch.embedding, _post_batch.queries, _post_batch.results,
        _post_batch.k, _post_batch.recall, _post_batch.options, _post_batch.settings)
    RETURNING b.id INTO posted;
    RETURN posted;
END;
$$;
COMMENT ON FUNCTION pgembed._post_batch(text, text, text, text, integer, float8, jsonb, jsonb, text) IS
'Post a batch as the caller; returns its number.';


CREATE OR REPLACE FUNCTION pgembed.search_batch(
    embedding text,
    queries regclass,
    results text,
    k integer DEFAULT 10,
    recall float8 DEFAULT 0.99,
    settings text[] DEFAULT '{}',
    memory text DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $$
BEGIN
    RETURN pgembed._post_batch('search', embedding, pgembed._batch_table(queries),
        pgembed._results_table(results), k, recall, '{}', pgembed._kept_settings(settings), memory);
END;
$$;
COMMENT ON FUNCTION pgembed.search_batch(text, regclass, text, integer, float8, text[], text) IS
'Have a worker answer a table of queries into a table of results, once this transaction has committed: see pgembed.batches under the number that this returns. It runs as this role, under this search_path and time zone and the settings named (those that policies read, say). memory is what it may use, 256MB say: at most, and by default, what its worker was started with (--batch-memory).';


CREATE OR REPLACE FUNCTION pgembed.knn_join(
    embedding text,
    results text,
    k integer DEFAULT 10,
    filter jsonb DEFAULT NULL,
    predicate text DEFAULT NULL,
    asking text DEFAULT NULL,
    recall float8 DEFAULT 0.99,
    settings text[] DEFAULT '{}',
    memory text DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $$
BEGIN
    RETURN pgembed._post_batch('join', embedding, asking, pgembed._results_table(results),
        k, recall,
        -- The filter as text: workers read jsonb's numbers as floats.
        pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('predicate', predicate,
            'filter', filter::pg_catalog.text)),
        pgembed._kept_settings(settings), memory);
END;
$$;
COMMENT ON FUNCTION pgembed.knn_join(text, text, integer, jsonb, text, text, float8, text[], text) IS
'Have a worker write, for every row of the embedding (or of another one: asking), the k nearest other rows: its key columns, rank, those of the related row after related_, distance. In the predicate {column} is a value of the row that asks: category = {category} AND year > {year}. The filter {"category": {"asking": "category"}, "year": {"asking": {"gt": "year"}}} says the same. As search_batch, it is posted.';


CREATE OR REPLACE FUNCTION pgembed.build_layout(
    embedding text,
    workload regclass DEFAULT NULL,
    options jsonb DEFAULT '{}',
    settings text[] DEFAULT '{}',
    memory text DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $$
BEGIN
    RETURN pgembed._post_batch('build_layout', embedding, pgembed._batch_table(workload),
        NULL, NULL, NULL, options, pgembed._kept_settings(settings), memory);
END;
$$;
COMMENT ON FUNCTION pgembed.build_layout(text, regclass, jsonb, text[], text) IS
'Have a worker build, on its host, the layout that batches on the embedding search; for the table''s owner. Options: list_rows, least_rows, precision (float32, or float16 for half the room). memory as in search_batch.';


CREATE OR REPLACE FUNCTION pgembed.drop_layout(embedding text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $$
BEGIN
    RETURN pgembed._post_batch('drop_layout', embedding, NULL, NULL, NULL, NULL, '{}',
        pgembed._kept_settings('{}'), NULL);
END;
$$;
COMMENT ON FUNCTION pgembed.drop_layout(text) IS
'Have a worker delete the layout of the embedding; for the table''s owner.';


CREATE OR REPLACE FUNCTION pgembed.cancel_batch(batch bigint)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE pgembed.batch AS b SET cancel_requested = true
    WHERE b.id = cancel_batch.batch AND b.state IN ('waiting', 'running');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('pgembed_batch', batch::text);
    RETURN true;
END;
$$;
COMMENT ON FUNCTION pgembed.cancel_batch(bigint) IS
'End a batch that waits or runs, without results; false when there is none to end.';


CREATE OR REPLACE FUNCTION pgembed.await_batch(batch bigint, timeout interval DEFAULT '1 hour')
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    b record;
    pause double precision := 0.01;
    until timestamptz := clock_timestamp() + timeout;
BEGIN
    IF until IS NULL THEN
        RAISE EXCEPTION 'the timeout is NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Say how long to wait: timeout => ''1 hour''.';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a transaction that is % cannot see a batch end', current_setting('transaction_isolation')
            USING ERRCODE = 'active_sql_transaction', HINT = 'Wait in a transaction of its own.';
    END IF;
    LOOP
        SELECT o.state, o.error, o.posted_at INTO b
        FROM pgembed.batch AS o WHERE o.id = await_batch.batch;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no batch %', coalesce(batch::text, 'NULL') USING ERRCODE = 'undefined_object';
        END IF;
        IF b.posted_at = now() THEN
            RAISE EXCEPTION 'batch % begins when this transaction has committed', batch
                USING ERRCODE = 'active_sql_transaction', HINT = 'COMMIT, then wait.';
        END IF;
        IF b.state = 'failed' THEN
            RAISE EXCEPTION 'batch % failed: %', batch, b.error
                USING ERRCODE = 'external_routine_exception';
        END IF;
        IF b.state IN ('done', 'cancelled') THEN
            RETURN b.state;
        END IF;
        IF clock_timestamp() >= until THEN
            RAISE EXCEPTION 'batch % is % after %', batch, b.state, timeout
                USING ERRCODE = 'object_not_in_prerequisite_state',
                DETAIL = CASE WHEN NOT EXISTS (
                    SELECT FROM pgembed.worker AS w
                    WHERE w.role = 'calls' AND w.seen_at > clock_timestamp() - '1 minute'::interval
                ) AND NOT EXISTS (
                    SELECT FROM pgembed.batch_progress AS p
                    WHERE p.batch = await_batch.batch AND p.leased_until > clock_timestamp()
                ) THEN 'No worker is running for this database: pgembed worker starts one.'
                ELSE 'A worker is running for this database.' END,
                HINT = 'Its state is in pgembed.batches; give it more time, or pgembed.cancel_batch it.';
        END IF;
        PERFORM pg_sleep(pause);
        pause := least(pause * 1.5, 1);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed.await_batch(bigint, interval) IS
'Wait until a batch has ended, and return its state: done or cancelled; an error when it failed, or when it has not ended after so long.';


CREATE OR REPLACE VIEW pgembed.batches WITH (security_invoker = true) AS
SELECT
    b.id,
    b.kind,
    b.embedding,
    b.queries,
    b.results,
    b.caller_name AS caller,
    CASE
        WHEN b.cancel_requested AND b.state IN ('waiting', 'running') THEN 'cancelling'
        ELSE b.state
    END AS state,
    CASE WHEN b.state = 'running' THEN p.stage END AS stage,
    CASE WHEN b.state = 'running' THEN p.share END AS share,
    coalesce((b.report ->> 'queries')::bigint, p.queries) AS query_count,
    coalesce((b.report ->> 'queries')::bigint, p.queries_done) AS queries_done,
    b.rows,
    b.attempts,
    b.posted_at,
    b.started_at,
    b.ended_at,
    b.error,
    b.report
FROM pgembed.batch AS b
LEFT JOIN pgembed.batch_progress AS p ON p.batch = b.id;
COMMENT ON VIEW pgembed.batches IS
'The batches of this role: their state, how far they are, the rows they wrote, and why they failed. Ended ones are forgotten after thirty days.';
