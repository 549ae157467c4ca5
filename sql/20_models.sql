-- Models, as users see them. The files are written by `pgembed model add`.

CREATE OR REPLACE VIEW pgembed.models AS
SELECT
    m.name,
    m.dimensions,
    m.distance,
    m.max_tokens,
    pg_catalog.encode(m.hash, 'hex') AS hash,
    m.source,
    m.options,
    (
        SELECT coalesce(pg_catalog.sum(f.bytes), 0)::bigint
        FROM pgembed.model_file AS f
        WHERE f.model = m.name
    ) AS bytes,
    (
        SELECT pg_catalog.count(*)
        FROM pgembed.embedding AS e
        WHERE e.model = m.name
    ) AS embeddings,
    m.created_at
FROM pgembed.model AS m;
COMMENT ON VIEW pgembed.models IS
'The registered models, with the size of their files and how many embeddings use them.';


CREATE OR REPLACE FUNCTION pgembed.drop_model(name text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    used_by text;
BEGIN
    -- What files models share is known while nobody adds or drops one.
    LOCK TABLE pgembed.model IN SHARE ROW EXCLUSIVE MODE;
    PERFORM pgembed._find_model(drop_model.name);
    SELECT string_agg(e.name, ', ' ORDER BY e.name) INTO used_by
    FROM pgembed.embedding AS e
    WHERE e.model = drop_model.name;
    IF used_by IS NOT NULL THEN
        RAISE EXCEPTION 'model % is in use', quote_literal(drop_model.name)
            USING ERRCODE = 'dependent_objects_still_exist',
            DETAIL = 'Embeddings: ' || used_by || '.',
            HINT = 'Drop them first: SELECT pgembed.drop_embedding(...).';
    END IF;
    DELETE FROM pgembed.model AS m WHERE m.name = drop_model.name;
    DELETE FROM pgembed.blob_chunk AS b
    WHERE NOT EXISTS (SELECT FROM pgembed.model_file AS f WHERE f.sha256 = b.sha256);
END;
$$;
COMMENT ON FUNCTION pgembed.drop_model(text) IS
'Remove a model and the files that no other model shares; refused while an embedding uses it.';
