-- Recording which filters searches use, so that advice can be given on indexes.

CREATE OR REPLACE FUNCTION pgembed._record_filter(embedding integer, filter jsonb)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    number bigint;
BEGIN
    -- Whoever may search may call this with anything.
    IF octet_length(filter::text) > 10000 OR jsonb_typeof(filter) <> 'object' THEN
        RETURN;
    END IF;
    INSERT INTO pgembed.recorded_filter (embedding, filter) VALUES (embedding, filter)
    RETURNING id INTO number;
    -- What SERIALIZABLE reads could fail the searches of others.
    IF number % 1000 <> 0 OR current_setting('transaction_isolation') = 'serializable' THEN
        RETURN;
    END IF;
    BEGIN
        DELETE FROM pgembed.recorded_filter AS r WHERE r.id IN (
            SELECT o.id FROM pgembed.recorded_filter AS o WHERE o.id <= number - 100000
            ORDER BY o.id LIMIT 2000 FOR UPDATE SKIP LOCKED);
    EXCEPTION
        WHEN serialization_failure THEN
            -- Another search deleted them after the snapshot of this one.
            NULL;
    END;
END;
$$;
COMMENT ON FUNCTION pgembed._record_filter(integer, jsonb) IS
'Notes a filter, unless it is no object or longer than 10,000 bytes. Rows are only added, so that no search waits for another, and the oldest go. Runs as pgembed''s owner: who may search need not see the record.';


CREATE OR REPLACE FUNCTION pgembed._records_filter()
RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    share text := pgembed._setting('record_filters', '0');
BEGIN
    IF share = '0' THEN
        RETURN false;
    ELSIF share !~* E'^\\s*(\\d\\.?|\\d?\\.\\d+)(e[+-]?\\d{1,2})?\\s*$' OR share::float8 > 1 THEN
        RAISE EXCEPTION 'the setting pgembed.record_filters is %, but must be from 0 to 1', quote_literal(share)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It is the share of the searches whose filters are recorded: 0.01, or 0 for none.';
    END IF;
    RETURN random() < share::float8 AND current_setting('transaction_read_only') = 'off';
END;
$$;
COMMENT ON FUNCTION pgembed._records_filter() IS
'Whether this search is one of those whose filters are recorded: the share that the setting pgembed.record_filters says, and none in read-only transactions.';


CREATE OR REPLACE FUNCTION pgembed._workload_filters(
    e pgembed.embedding, workload regclass, sample integer DEFAULT NULL
)
RETURNS TABLE (filter jsonb, searches float8, weight float8)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given text := format('SELECT r.filter FROM pgembed.recorded_filter AS r WHERE r.embedding = %s', e.id);
BEGIN
    IF workload IS NOT NULL THEN
        IF NOT pgembed._columns(workload) @> ARRAY['filter'] THEN
            RAISE EXCEPTION 'the workload % has no column filter', workload
                USING ERRCODE = 'undefined_column', HINT = 'It takes a jsonb filter in each row.';
        END IF;
        given := format('SELECT w.filter::jsonb FROM %s AS w', workload);
    END IF;
    -- Every n-th search, in an order that has nothing to do with the filters but stays the same.
    RETURN QUERY EXECUTE format('
        WITH f AS (
            SELECT g.filter, count(*) AS searches FROM (%s) AS g (filter)
            WHERE jsonb_typeof(g.filter) = ''object'' GROUP BY g.filter
            HAVING NOT g.filter @? ''strict $.**{100 to last}''
        ), t AS (
            SELECT f.*, sum(f.searches) OVER () AS total, count(*) OVER () AS filters,
                sum(f.searches) OVER (ORDER BY md5(f.filter::text)) AS place
            FROM f
        ), s AS (
            SELECT t.*, CASE WHEN t.filters > $1
                THEN (div(t.place * $1, t.total) - div((t.place - t.searches) * $1, t.total)) * t.total / $1
                ELSE t.searches END AS weight
            FROM t
        )
        SELECT s.filter, s.searches::float8, s.weight::float8 FROM s
        WHERE s.weight > 0 ORDER BY s.weight DESC, s.filter', given)
    USING coalesce(sample, 2147483647);
END;
$$;
COMMENT ON FUNCTION pgembed._workload_filters(pgembed.embedding, regclass, integer) IS
'The filters of a workload table, or those recorded, most frequent first, without what is no object or nested deeper than 100 levels: all of them, or a sample of so many, the same each time. searches: how often one was seen; weight: how many searches it stands for.';
