CREATE TABLE pgembed.call_secret (
    value uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    single boolean PRIMARY KEY DEFAULT true CHECK (single)
);
COMMENT ON TABLE pgembed.call_secret IS
'One row, which nobody but the owner may read: names of kept dblink connections and digests of remembered answers are made from it, which nobody else can make in advance.';

INSERT INTO pgembed.call_secret DEFAULT VALUES;
