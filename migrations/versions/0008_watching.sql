ALTER TABLE pgembed.worker
    ADD COLUMN watching_until timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN pgembed.worker.watching_until IS 'Until then the worker looks for work by itself, several times a second: writers send no notification.';
