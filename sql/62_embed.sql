-- What users call to have texts embedded, and models added, by a worker: limits, waiting
-- times and errors are the same however calls travel (60_calls, 61_calls).

CREATE OR REPLACE FUNCTION pgembed._call_timeout(name text, fallback text)
RETURNS interval
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given text := pgembed._setting(name, fallback);
    timeout interval;
BEGIN
    -- What is surely a time needs no subtransaction.
    IF given ~ '^([1-9][0-9]{0,3} ?m?s|[1-9][0-9]{0,2} ?min)$' THEN
        RETURN given::interval;
    END IF;
    BEGIN
        timeout := given::interval;
    EXCEPTION
        WHEN invalid_datetime_format OR datetime_field_overflow OR interval_field_overflow THEN
            timeout := NULL;
    END;
    IF timeout IS NULL OR timeout <= '0'::interval OR timeout > '1 day'::interval THEN
        RAISE EXCEPTION 'pgembed.% is %, which is no time to wait', name, quote_literal(given)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = format('Set it to a time such as ''500ms'' or ''5s'': SET pgembed.%s = %L;',
                name, fallback);
    END IF;
    RETURN timeout;
END;
$$;
COMMENT ON FUNCTION pgembed._call_timeout(text, text) IS
'The setting pgembed.NAME as a time: between nothing and a day.';


CREATE OR REPLACE FUNCTION pgembed._check_call(contents text[])
RETURNS void
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    longest integer;
    total integer := length(array_to_string(contents, ''));
BEGIN
    IF cardinality(contents) > 10000 THEN
        RAISE EXCEPTION 'one call embeds at most 10000 texts, not %', cardinality(contents)
            USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Split the array, or declare a kept embedding: pgembed.create_embedding().';
    END IF;
    IF total > 1000000 THEN
        longest := (SELECT max(length(t)) FROM unnest(contents) AS t);
        IF longest > 1000000 OR total > 10000000 THEN
            RAISE EXCEPTION 'one call embeds at most 1000000 characters a text and 10000000 in all, not % and %',
                longest, total
                USING ERRCODE = 'program_limit_exceeded',
                HINT = 'A model reads only the beginning of a long text: pass left(content, 100000).';
        END IF;
    END IF;
    IF getdatabaseencoding() = 'SQL_ASCII' THEN
        PERFORM convert_from(convert_to(t, 'SQL_ASCII'), 'UTF8') FROM unnest(contents) AS t;
    ELSIF getdatabaseencoding() <> 'UTF8' THEN
        PERFORM convert_to(t, 'UTF8') FROM unnest(contents) AS t;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_call(text[]) IS
'An error when the texts of a call are too many or too long, or cannot be UTF-8, in which they travel.';


CREATE OR REPLACE FUNCTION pgembed._no_answer(timeout interval, trouble text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    alive text;
BEGIN
    SELECT string_agg(format('pid %s on %s', w.pid, w.host), ', ') INTO alive
    FROM pgembed.worker AS w
    WHERE w.role = 'calls' AND w.seen_at > clock_timestamp() - '1 minute'::interval;
    RAISE EXCEPTION 'no worker answered within % s',
        trim_scale(round(extract(epoch FROM timeout), 3))
        USING ERRCODE = 'object_not_in_prerequisite_state',
        DETAIL = coalesce('Workers that answer calls: ' || alive || '.',
            'No worker that answers calls is running for this database.')
            || coalesce(' From here: ' || trouble || '.', ''),
        HINT = CASE
            WHEN alive IS NOT NULL AND trouble IS NOT NULL THEN
                'A worker must run on the database''s machine and share its socket directory; ''pgembed doctor'' says more.'
            WHEN alive IS NULL THEN
                format('Start one with: pgembed worker --dsn ''%s...''', 'dbname='
                    || substring(current_database() FROM '^[[:alnum:]_.-]+$') || ' ')
            ELSE 'It may be busy, or loading the model: try again, or give it time: SET pgembed.call_timeout, for add_model pgembed.add_model_timeout.'
        END;
END;
$$;
COMMENT ON FUNCTION pgembed._no_answer(interval, text) IS
'The error of a call that nobody answered: says whether a worker is there, and how to start one. trouble: what kept the caller from reaching it. VOLATILE: it must see workers that came since its caller''s statement began.';


CREATE OR REPLACE FUNCTION pgembed._embed_text(kind text, model text, content text)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- A STABLE function is called once a row, even of an index scan: within one statement
    -- the same text is asked for once. Anybody can set a setting, nobody else knows the secret.
    asked text := ROW(
        (SELECT s.value FROM pgembed.call_secret AS s), statement_timestamp(), kind, model, content)::text;
    last_answer text := current_setting('pgembed.last_answer', true);
    answer text := substr(last_answer, 33);
    vectors @extschema:vector@.vector[];
BEGIN
    IF last_answer <> '' AND left(last_answer, 32) = md5(asked || answer) THEN
        RETURN answer::@extschema:vector@.vector;
    END IF;
    -- No other text can fail the checks.
    IF octet_length(content) > 1000000 OR getdatabaseencoding() <> 'UTF8' THEN
        PERFORM pgembed._check_call(ARRAY[content]);
    END IF;
    IF content COLLATE "default" !~ E'\\S' THEN
        RETURN NULL;
    END IF;
    vectors := pgembed._call(kind, model, ARRAY[content],
        pgembed._call_timeout('call_timeout', '5s'));
    answer := vectors[1]::text;
    PERFORM set_config('pgembed.last_answer', md5(asked || answer) || answer, true);
    RETURN vectors[1];
END;
$$;
COMMENT ON FUNCTION pgembed._embed_text(text, text, text) IS
'One text as a vector, NULL for a blank one; the last one is remembered until the statement ends, under a digest that nobody else can make.';


CREATE OR REPLACE FUNCTION pgembed.embed(model text, content text)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE SECURITY DEFINER COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pgembed._embed_text('document', model, content);
END;
$$;
COMMENT ON FUNCTION pgembed.embed(text, text) IS
'The vector of a text as a document, made by a worker; NULL for NULL and blank texts. Waits at most pgembed.call_timeout (5s).';


CREATE OR REPLACE FUNCTION pgembed.embed_query(model text, content text)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE SECURITY DEFINER COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pgembed._embed_text('query', model, content);
END;
$$;
COMMENT ON FUNCTION pgembed.embed_query(text, text) IS
'The vector of a text as a query (with the model''s query prompt), made by a worker; for ORDER BY embedding <=> pgembed.embed_query(...).';


CREATE OR REPLACE FUNCTION pgembed.embed_batch(model text, contents text[])
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE SECURITY DEFINER COST 1000000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    texts text[];
    vectors @extschema:vector@.vector[] := '{}';
BEGIN
    PERFORM pgembed._check_call(contents);
    SELECT array_agg(t.content ORDER BY t.ordinal) INTO texts
    FROM unnest(contents) WITH ORDINALITY AS t (content, ordinal)
    WHERE t.content COLLATE "default" ~ E'\\S';
    IF texts IS NOT NULL THEN
        vectors := pgembed._call('document', model, texts,
            pgembed._call_timeout('call_timeout', '5s'));
    END IF;
    IF cardinality(vectors) = cardinality(contents) THEN
        RETURN vectors;
    END IF;
    RETURN coalesce((
        SELECT array_agg(v.vector ORDER BY t.ordinal)
        FROM (
            SELECT
                c.ordinal,
                CASE WHEN c.content COLLATE "default" ~ E'\\S'
                    THEN count(*) FILTER (WHERE c.content COLLATE "default" ~ E'\\S') OVER (ORDER BY c.ordinal)
                END AS slot
            FROM unnest(contents) WITH ORDINALITY AS c (content, ordinal)
        ) AS t
        LEFT JOIN unnest(vectors) WITH ORDINALITY AS v (vector, slot) ON v.slot = t.slot
    ), '{}');
END;
$$;
COMMENT ON FUNCTION pgembed.embed_batch(text, text[]) IS
'The vectors of several texts as documents, in their order, made by a worker; NULL for NULL and blank texts.';


CREATE OR REPLACE FUNCTION pgembed.add_model(name text, source text, options jsonb DEFAULT '{}')
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF coalesce(name, '') !~ E'\\S' THEN
        RAISE EXCEPTION 'the name of a model is %', CASE WHEN name IS NULL THEN 'NULL' ELSE 'empty' END
            USING ERRCODE = 'invalid_name', HINT = 'Give it one: pgembed.add_model(''minilm'', ''minilm'').';
    ELSIF octet_length(name) > 255 THEN
        RAISE EXCEPTION 'the name of the model, %..., has % bytes', quote_literal(left(name, 40)), octet_length(name)
            USING ERRCODE = 'invalid_name', HINT = 'Choose one of at most 255 bytes.';
    END IF;
    IF jsonb_typeof(options) <> 'object' THEN
        RAISE EXCEPTION 'the options of a model are %, but must be an object', left(options::text, 100)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Write them as {"max_tokens": 256}, or leave them out.';
    ELSIF octet_length(options::text) > 100000 THEN
        RAISE EXCEPTION 'the options of a model have % bytes, more than 100000', octet_length(options::text)
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Write them as {"max_tokens": 256}, or leave them out.';
    END IF;
    IF octet_length(source) > 1000 THEN
        RAISE EXCEPTION 'the model source %... has % bytes, more than 1000', quote_literal(left(source, 40)), octet_length(source)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name one: minilm, owner/name or pypi:name.';
    END IF;
    -- Which sources there are is the worker's to say; paths and URLs are none to any worker.
    IF source IS NULL OR source !~ '^[A-Za-z0-9_][A-Za-z0-9_.!+@:/=-]*$' OR split_part(source, '@', 1) ~ '/.*/' THEN
        RAISE EXCEPTION 'a worker does not read the model source %', quote_nullable(source)
            USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'From SQL a model comes from a hub (owner/name), a package (pypi:name) or a built-in name (minilm).',
            HINT = format('For a folder, use the command line where the folder is: pgembed model add %s %s',
                coalesce(substring(name FROM '^[[:alnum:]_.-]+$'), 'NAME'),
                coalesce(substring(source FROM '^[[:alnum:]_./-]+$'), 'FOLDER'));
    END IF;
    PERFORM pgembed._call('add_model', name, ARRAY[source, coalesce(options, '{}')::text],
        pgembed._call_timeout('add_model_timeout', '15min'));
    RETURN name;
END;
$$;
COMMENT ON FUNCTION pgembed.add_model(text, text, jsonb) IS
'Let a worker fetch, check and register a model; it stays when this transaction rolls back. Waits at most pgembed.add_model_timeout (15min).';
