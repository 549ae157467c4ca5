-- The registry: models, embeddings, workers, calls. One job table per embedding is
-- made by create_embedding, with the types of that source's key.

CREATE TABLE pgembed.model (
    name text PRIMARY KEY CHECK (name <> ''),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    source text NOT NULL,
    dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 16000),
    distance text NOT NULL CHECK (distance IN ('cosine', 'l2', 'inner_product')),
    max_tokens integer NOT NULL CHECK (max_tokens > 0),
    options jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE pgembed.model IS 'ONNX models by name. A name never changes its files: another model takes another name.';
COMMENT ON COLUMN pgembed.model.hash IS 'SHA-256 over the files'' hashes and the options: what identifies the vectors it makes.';
COMMENT ON COLUMN pgembed.model.options IS 'Pooling, normalisation, prompts, output name: everything a worker needs beside the files.';

CREATE TABLE pgembed.model_file (
    model text NOT NULL REFERENCES pgembed.model ON DELETE CASCADE,
    path text NOT NULL,
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    bytes bigint NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (model, path)
);
COMMENT ON TABLE pgembed.model_file IS 'The files of each model, by hash; two models may share a file.';

CREATE TABLE pgembed.blob_chunk (
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    ordinal integer NOT NULL CHECK (ordinal >= 0),
    data bytea NOT NULL,
    PRIMARY KEY (sha256, ordinal)
);
ALTER TABLE pgembed.blob_chunk ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE pgembed.blob_chunk IS 'The bytes of model files, in chunks, by the SHA-256 of the whole file.';

CREATE TABLE pgembed.embedding (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name <> ''),
    kind text NOT NULL CHECK (kind IN ('kept', 'adopted')),
    source regclass NOT NULL,
    key_columns text[] NOT NULL CHECK (cardinality(key_columns) > 0),
    content text CHECK (kind = 'adopted' OR content IS NOT NULL),
    content_columns text[] NOT NULL DEFAULT '{}',
    model text REFERENCES pgembed.model,
    target regclass NOT NULL,
    target_column text NOT NULL,
    chunk_tokens integer CHECK (chunk_tokens > 0),
    chunk_overlap integer NOT NULL DEFAULT 0 CHECK (chunk_overlap >= 0),
    storage text NOT NULL CHECK (storage IN ('vector', 'halfvec', 'bit')),
    dimensions integer NOT NULL CHECK (dimensions > 0),
    distance text NOT NULL CHECK (distance IN ('cosine', 'l2', 'inner_product')),
    on_change text NOT NULL DEFAULT 'keep' CHECK (on_change IN ('keep', 'clear')),
    index_method text NOT NULL CHECK (index_method IN ('hnsw', 'ivfflat', 'none')),
    index_name text,
    index_state text NOT NULL DEFAULT 'none'
        CHECK (index_state IN ('none', 'waiting', 'building', 'ready', 'failed')),
    index_error text,
    index_worker uuid,
    enqueued boolean NOT NULL DEFAULT false,
    paused boolean NOT NULL DEFAULT false,
    blocked text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (kind = 'adopted' OR model IS NOT NULL),
    CHECK (chunk_tokens IS NULL OR chunk_overlap < chunk_tokens)
);
COMMENT ON TABLE pgembed.embedding IS 'Declared links: source content -> model -> vector column.';
COMMENT ON COLUMN pgembed.embedding.kind IS 'kept: pgembed writes the vectors; adopted: the application does.';
COMMENT ON COLUMN pgembed.embedding.content IS 'A column of the source, or a template such as {title}: {body}.';
COMMENT ON COLUMN pgembed.embedding.target IS 'The table that holds the vectors: the source, or the chunk table.';
COMMENT ON COLUMN pgembed.embedding.enqueued IS 'Whether the rows that existed at the declaration have their jobs.';
COMMENT ON COLUMN pgembed.embedding.blocked IS 'Why no worker can go on with it (a corrupt model file, say); NULL when nothing is wrong.';

CREATE SEQUENCE pgembed.lease_seq AS bigint;
COMMENT ON SEQUENCE pgembed.lease_seq IS 'Who may use it is a worker: pgembed.grant_worker grants that. Lease tokens are random, since a crash can take a sequence back.';

CREATE TABLE pgembed.worker (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    role text NOT NULL CHECK (role IN ('embed', 'calls')),
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    idle boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE pgembed.worker IS 'The worker processes that said they were there, and when they last did.';
COMMENT ON COLUMN pgembed.worker.idle IS 'Waiting for a notification: only then do writers send one, since NOTIFY serialises commits.';

CREATE TABLE pgembed.progress (
    embedding integer NOT NULL REFERENCES pgembed.embedding ON DELETE CASCADE,
    worker uuid NOT NULL,
    bucket timestamptz NOT NULL,
    rows bigint NOT NULL,
    PRIMARY KEY (embedding, worker, bucket)
);
COMMENT ON TABLE pgembed.progress IS 'Rows embedded per worker in each ten seconds, kept for ten minutes: rows per second in the status.';

CREATE UNLOGGED TABLE pgembed.call (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('document', 'query', 'add_model')),
    model text NOT NULL,
    contents text[] NOT NULL,
    expires_at timestamptz NOT NULL,
    worker uuid,
    answered boolean NOT NULL DEFAULT false,
    vectors @extschema:vector@.vector[],
    error text
);
COMMENT ON TABLE pgembed.call IS 'Synchronous requests from SQL functions to a worker, and their answers; rows live for milliseconds, those of many vectors for seconds.';
-- Numbers do not shrink, and to find that out takes longer than to store them.
ALTER TABLE pgembed.call ALTER COLUMN vectors SET STORAGE EXTERNAL;
