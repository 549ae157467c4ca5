-- A view keeps the types of its columns. It is made again after the migrations: until
-- then it is one of nothing, which what was granted on it outlives.
DO $$
BEGIN
    IF pg_catalog.to_regclass('pgembed.batches') IS NOT NULL THEN
        EXECUTE (
            SELECT 'CREATE OR REPLACE VIEW pgembed.batches AS SELECT '
                || pg_catalog.string_agg(pg_catalog.format('NULL::%s AS %I',
                    pg_catalog.format_type(a.atttypid, a.atttypmod), a.attname), ', ' ORDER BY a.attnum)
            FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = pg_catalog.to_regclass('pgembed.batches') AND a.attnum > 0
        );
    END IF;
END;
$$;

DROP POLICY own ON pgembed.batch;
ALTER TABLE pgembed.batch ALTER COLUMN caller TYPE oid, ADD COLUMN caller_name name;
UPDATE pgembed.batch SET caller_name = pg_catalog.pg_get_userbyid(caller);
ALTER TABLE pgembed.batch ALTER COLUMN caller_name SET NOT NULL;
COMMENT ON COLUMN pgembed.batch.caller IS 'Who posted it, as whom it runs; written by a trigger, whatever was inserted. Not a regrole: a dump would hold a name that the other cluster need not know, or, of a role that was dropped, the number of another one there.';
COMMENT ON COLUMN pgembed.batch.caller_name IS 'The name of that role when it posted. Where it is no longer the name of that number, the batch is nobody''s.';

CREATE POLICY own ON pgembed.batch
USING (pg_catalog.pg_get_userbyid(caller) = caller_name AND pg_catalog.pg_has_role(caller, 'USAGE'));
COMMENT ON POLICY own ON pgembed.batch IS 'Batches of roles whose rights one has.';
