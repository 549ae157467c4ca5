CREATE TABLE pgembed.job (
    pgembed_changed_at timestamptz,
    pgembed_available_at timestamptz DEFAULT pg_catalog.now(),
    pgembed_version integer NOT NULL DEFAULT 0,
    pgembed_attempts smallint NOT NULL DEFAULT 0,
    pgembed_slot integer,
    pgembed_lease bigint,
    pgembed_fingerprint uuid,
    pgembed_error text,
    CONSTRAINT no_rows CHECK (false) NO INHERIT
);
COMMENT ON TABLE pgembed.job IS
'What the job tables of embeddings inherit from; it has no rows. DROP EXTENSION pgembed CASCADE drops them with it.';

DO $$
DECLARE
    job regclass;
BEGIN
    FOR job IN
        SELECT pg_catalog.to_regclass('pgembed.job_' || e.id) FROM pgembed.embedding AS e
        WHERE pg_catalog.to_regclass('pgembed.job_' || e.id) IS NOT NULL
    LOOP
        EXECUTE 'ALTER TABLE ' || job || ' INHERIT pgembed.job';
    END LOOP;
END;
$$;

COMMENT ON TABLE pgembed.call IS
'Synchronous requests from SQL functions to a worker, and their answers; when they were answered and read, a worker removes them within seconds.';
