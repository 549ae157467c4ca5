-- Without dblink and PL/Python no SQL function can reach a worker: say so, and what to do.

CREATE OR REPLACE FUNCTION pgembed._call(
    kind text, model text, contents text[], timeout interval
)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'no SQL function of this database can reach a worker'
        USING ERRCODE = 'feature_not_supported',
        DETAIL = 'pgembed was installed to use neither dblink nor PL/Python: that was asked for, or the extensions were not there.',
        HINT = 'CREATE EXTENSION dblink (part of PostgreSQL''s contrib) or plpython3u, unless it is there, then run '
            '''pgembed install --transport auto''. Kept embeddings, the command line and Python work without.';
END;
$$;
COMMENT ON FUNCTION pgembed._call(text, text, text[], interval) IS
'The error that names what a call needs.';
