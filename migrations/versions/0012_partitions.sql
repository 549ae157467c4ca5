ALTER TABLE pgembed.embedding ADD COLUMN partition_triggers oid[];
COMMENT ON COLUMN pgembed.embedding.partition_triggers IS 'The triggers for UPDATE of the partitions when they were last followed: a partition has another one after each ATTACH. NULL: not yet.';
