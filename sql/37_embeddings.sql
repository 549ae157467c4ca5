-- What is done with embeddings that exist.

CREATE OR REPLACE FUNCTION pgembed._check_present(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Locked, because an old snapshot would still show it.
    PERFORM FROM pgembed.embedding AS n WHERE n.id = e.id FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the embedding % was dropped meanwhile', quote_literal(e.name)
            USING ERRCODE = 'undefined_object',
            HINT = 'Nothing was changed. If another was declared under its name and is meant, repeat this.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_present(pgembed.embedding) IS
'An error when another transaction dropped an embedding since it was looked up. Asked once the locks are there for which one may have had to wait.';


CREATE OR REPLACE FUNCTION pgembed.drop_embedding(name text, drop_vectors boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(name);
    source_exists boolean := pgembed._has_source(e);
BEGIN
    IF e.kind = 'kept' AND source_exists THEN
        PERFORM pgembed._refuse_stranger(e.source);
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', e.source);
    END IF;
    PERFORM pgembed._check_present(e);
    PERFORM pgembed._drop_advised(e);
    IF e.kind = 'kept' THEN
        -- Before its trigger is gone, which knows the columns that were renamed.
        IF source_exists THEN
            PERFORM pgembed._drop_unfinished_indexes(e);
            PERFORM pgembed._revoke_source(e, w) FROM pgembed._worker_roles() AS w;
            -- Others of this source may need the same columns.
            PERFORM pgembed._grant_source(o)
            FROM pgembed.embedding AS o
            WHERE o.source = e.source AND o.id <> e.id;
        END IF;
        PERFORM pgembed._drop_capture(e);
        IF pgembed._administers() THEN
            PERFORM pgembed._drop_queue(e);
        END IF;
        -- A worker that notices that the source is gone may not own the chunks.
        IF drop_vectors AND pgembed._has_chunks(e) AND (source_exists OR pgembed._owns(e.target)) THEN
            EXECUTE format('DROP TABLE %s', e.target);
        ELSIF drop_vectors AND e.target = e.source AND source_exists THEN
            EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', e.target, e.target_column);
        END IF;
    END IF;
    DELETE FROM pgembed.embedding AS d WHERE d.id = e.id;
END;
$$;
COMMENT ON FUNCTION pgembed.drop_embedding(text, boolean) IS
'Stop keeping an embedding. The vectors stay where they are, unless drop_vectors is true; vectors that the application wrote always stay. Indexes that were created on advice go, if the caller owns the table: they are named after the embedding.';


CREATE OR REPLACE FUNCTION pgembed._forget_embedding(name text)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed.drop_embedding(name, true);
EXCEPTION
    WHEN dependent_objects_still_exist THEN
        PERFORM pgembed.drop_embedding(name);
END;
$$;
COMMENT ON FUNCTION pgembed._forget_embedding(text) IS
'Drop an embedding whose source is gone, and its chunks, unless a view or a foreign key of the user''s needs their table.';


CREATE OR REPLACE FUNCTION pgembed.pause_embedding(name text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(name);
BEGIN
    UPDATE pgembed.embedding AS u SET paused = true WHERE u.id = e.id;
    PERFORM pgembed._check_present(e);
END;
$$;
COMMENT ON FUNCTION pgembed.pause_embedding(text) IS
'Let the workers leave an embedding alone; changes go on being captured.';


CREATE OR REPLACE FUNCTION pgembed.resume_embedding(name text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._find_embedding(name);
BEGIN
    UPDATE pgembed.embedding AS u SET paused = false, blocked = NULL WHERE u.id = e.id;
    PERFORM pgembed._check_present(e);
    PERFORM pgembed._wake();
END;
$$;
COMMENT ON FUNCTION pgembed.resume_embedding(text) IS
'Let the workers go on with an embedding that was paused or blocked.';
