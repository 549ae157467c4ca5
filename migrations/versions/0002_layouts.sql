-- Layouts: what is known of the partitioned copies of embeddings. The copies themselves
-- are files on the host that built them.

CREATE TABLE pgembed.layout (
    embedding integer PRIMARY KEY REFERENCES pgembed.embedding ON DELETE CASCADE,
    version uuid NOT NULL,
    host text NOT NULL,
    path text NOT NULL,
    built_at timestamptz NOT NULL DEFAULT now(),
    build_seconds float8 NOT NULL,
    rows bigint NOT NULL CHECK (rows >= 0),
    leaves integer NOT NULL CHECK (leaves >= 0),
    lists integer NOT NULL CHECK (lists >= 0),
    bytes bigint NOT NULL CHECK (bytes >= 0),
    description jsonb NOT NULL
);
COMMENT ON TABLE pgembed.layout IS 'Partitioned copies of embeddings, which batches search: one each.';
COMMENT ON COLUMN pgembed.layout.host IS 'The host that holds the files; batches elsewhere read the table instead.';
COMMENT ON COLUMN pgembed.layout.description IS 'The leaves: what holds in each, its rows; and the workload it was built for.';
