-- Batches: posted by SQL functions in the caller's own transaction, carried out by
-- workers in a session of the caller's role.

CREATE TABLE pgembed.batch (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('search', 'join', 'build_layout', 'drop_layout')),
    caller regrole NOT NULL,
    embedding text NOT NULL,
    queries text,
    results text CHECK (results IS NOT NULL OR kind IN ('build_layout', 'drop_layout')),
    k integer,
    recall float8,
    options jsonb NOT NULL DEFAULT '{}',
    settings jsonb NOT NULL DEFAULT '{}',
    state text NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'running', 'done', 'failed', 'cancelled')),
    cancel_requested boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    worker uuid,
    lease bigint,
    rows bigint,
    report jsonb,
    error text,
    posted_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz
);
CREATE INDEX batch_open ON pgembed.batch (due_at) WHERE state IN ('waiting', 'running');
COMMENT ON TABLE pgembed.batch IS 'Batches that SQL functions posted. A role that may insert rows here may post; row-level security shows everybody their own.';
COMMENT ON COLUMN pgembed.batch.caller IS 'Who posted it, as whom it runs; written by a trigger, whatever was inserted.';
COMMENT ON COLUMN pgembed.batch.queries IS 'search: the table of queries; join: the embedding whose rows are the queries; build_layout: the table of the workload. Table names are qualified and quoted.';
COMMENT ON COLUMN pgembed.batch.options IS 'What only some kinds have: the filter and predicate of a join, the options of a layout.';
COMMENT ON COLUMN pgembed.batch.settings IS 'Settings of the session that posted it, under which it runs: search_path, how times are written, and those it named.';
COMMENT ON COLUMN pgembed.batch.cancel_requested IS 'Somebody wants it to end. The one column that its caller may update.';
COMMENT ON COLUMN pgembed.batch.lease IS 'Who holds it: the results are committed with the end of the batch, and only under the lease that is written here.';

CREATE TABLE pgembed.batch_progress (
    batch bigint PRIMARY KEY REFERENCES pgembed.batch ON DELETE CASCADE,
    leased_until timestamptz NOT NULL,
    stage text,
    share float8,
    queries bigint,
    queries_done bigint
);
COMMENT ON TABLE pgembed.batch_progress IS 'How far running batches are, and until when their workers hold them. Apart from pgembed.batch, whose row must not change under the transaction of its results.';

ALTER TABLE pgembed.batch ENABLE ROW LEVEL SECURITY;
ALTER TABLE pgembed.batch_progress ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON pgembed.batch
USING (pg_catalog.pg_has_role(caller, 'USAGE'));
CREATE POLICY own ON pgembed.batch_progress FOR SELECT
USING (EXISTS (SELECT FROM pgembed.batch AS b WHERE b.id = batch_progress.batch));
COMMENT ON POLICY own ON pgembed.batch IS 'Batches of roles whose rights one has.';
COMMENT ON POLICY own ON pgembed.batch_progress IS 'Progress of the batches one sees.';
