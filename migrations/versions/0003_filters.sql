-- Which filters searches use, for advice on indexes.

CREATE TABLE pgembed.recorded_filter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    embedding integer NOT NULL REFERENCES pgembed.embedding ON DELETE CASCADE,
    filter jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE pgembed.recorded_filter IS 'Filters of a sample of the searches, while pgembed.record_filters is set; the last hundred thousand.';
