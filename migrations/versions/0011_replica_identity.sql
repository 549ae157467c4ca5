DO $$
DECLARE
    job regclass;
BEGIN
    FOR job IN
        SELECT pg_catalog.to_regclass('pgembed.job_' || e.id) FROM pgembed.embedding AS e
        WHERE pg_catalog.to_regclass('pgembed.job_' || e.id) IS NOT NULL
    LOOP
        EXECUTE 'ALTER TABLE ' || job || ' REPLICA IDENTITY FULL';
    END LOOP;
END;
$$;
