-- Workers need not own the schema: who may take leases sees the batches of all.

CREATE POLICY worker ON pgembed.batch
USING (pg_catalog.has_sequence_privilege('pgembed.lease_seq', 'USAGE'));
CREATE POLICY worker ON pgembed.batch_progress
USING (pg_catalog.has_sequence_privilege('pgembed.lease_seq', 'USAGE'));
COMMENT ON POLICY worker ON pgembed.batch IS 'Workers carry out the batches of all roles.';
COMMENT ON POLICY worker ON pgembed.batch_progress IS 'Workers write how far they are.';
