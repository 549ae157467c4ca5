-- Vectors that the application writes itself.

CREATE OR REPLACE FUNCTION pgembed._adopted_type(source regclass, vector_column text)
RETURNS TABLE (storage text, dimensions integer)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT
        t.typname::text,
        nullif(a.atttypmod, -1)
    INTO storage, dimensions
    FROM pg_catalog.pg_attribute AS a
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = source AND a.attname = vector_column AND NOT a.attisdropped
        AND a.atttypid IN (
            '@extschema:vector@.vector'::regtype, '@extschema:vector@.halfvec'::regtype,
            'pg_catalog.bit'::regtype
        );
    IF NOT FOUND THEN
        RAISE EXCEPTION 'table % has no vector column %', source, coalesce(quote_ident(vector_column), 'NULL')
            USING ERRCODE = 'undefined_column',
            HINT = format('Its columns are: %s. A vector column is of type vector, halfvec or bit.',
                array_to_string(pgembed._columns(source), ', '));
    END IF;
    IF dimensions IS NULL AND storage <> 'bit' THEN
        EXECUTE format('SELECT @extschema:vector@.vector_dims(%1$I) FROM %2$s WHERE %1$I IS NOT NULL LIMIT 1',
            vector_column, source) INTO dimensions;
    END IF;
    IF dimensions IS NULL THEN
        RAISE EXCEPTION 'the dimensions of column % of table % are not known', quote_ident(vector_column), source
            USING ERRCODE = 'invalid_table_definition',
            HINT = format('State them: ALTER TABLE %s ALTER COLUMN %I TYPE %s(N).', source, vector_column, storage);
    END IF;
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION pgembed._adopted_type(regclass, text) IS
'Storage and dimensions of a vector column that the application fills.';


CREATE OR REPLACE FUNCTION pgembed.adopt_vectors(
    source regclass,
    vector_column text,
    name text DEFAULT NULL,
    distance text DEFAULT 'cosine',
    model text DEFAULT NULL
)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    keys text[] := pgembed._check_source(source);
    m pgembed.model;
    t record;
    e pgembed.embedding;
    present record;
BEGIN
    PERFORM pgembed._check_option('distance', distance, ARRAY['cosine', 'l2', 'inner_product']);
    SELECT a.storage, a.dimensions INTO t FROM pgembed._adopted_type(source, vector_column) AS a;
    IF model IS NOT NULL THEN
        m := pgembed._find_model(model);
        IF m.dimensions <> t.dimensions THEN
            RAISE EXCEPTION 'model % has % dimensions, column % has %',
                quote_literal(model), m.dimensions, quote_ident(vector_column), t.dimensions
                USING ERRCODE = 'datatype_mismatch',
                HINT = 'Name the model that made these vectors, or none.';
        END IF;
    END IF;
    name := pgembed._check_name(
        coalesce(name, (SELECT c.relname || '_' || vector_column FROM pg_class AS c WHERE c.oid = source)),
        63
    );
    PERFORM pgembed._check_free(source, vector_column);
    e.target := source;
    e.target_column := vector_column;
    e.storage := t.storage;
    e.distance := distance;
    SELECT i.method, c.relname INTO present
    FROM pgembed._usable_index(e, '{}') AS i INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.index;
    INSERT INTO pgembed.embedding (
        name, kind, source, key_columns, model, target, target_column, storage,
        dimensions, distance, index_method, index_name, index_state, enqueued
    )
    VALUES (
        name, 'adopted', source, keys, model, source, vector_column, t.storage,
        t.dimensions, distance, coalesce(present.method, 'none'), present.relname,
        CASE WHEN present.method IS NULL THEN 'none' ELSE 'ready' END, true
    );
    RETURN name;
END;
$$;
COMMENT ON FUNCTION pgembed.adopt_vectors(regclass, text, text, text, text) IS
'Let pgembed search a vector column that the application fills; with a model, by text as well. Returns the embedding''s name.';
