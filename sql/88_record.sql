-- Recording which filters searches use, so that advice can be given on indexes.

CREATE OR REPLACE FUNCTION pgembed._record_filter(embedding integer, filter jsonb)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    number bigint;
BEGIN
    IF octet_length(filter::text) > 10000 THEN
        RETURN;
    END IF;
    INSERT INTO pgembed.recorded_filter (embedding, filter) VALUES (embedding, filter)
    RETURNING id INTO number;
    IF number % 1000 = 0 THEN
        DELETE FROM pgembed.recorded_filter AS r WHERE r.id IN (
            SELECT o.id FROM pgembed.recorded_filter AS o WHERE o.id <= number - 100000
            ORDER BY o.id LIMIT 2000 FOR UPDATE SKIP LOCKED);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._record_filter(integer, jsonb) IS
'Notes a filter. Rows are only added, so that no search waits for another, and the oldest go. Runs as pgembed''s owner: who may search need not see the record.';


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
    ELSIF share !~ '^\s*(0?\.\d+|[01](\.\d*)?)\s*$' OR share::float8 > 1 THEN
        RAISE EXCEPTION 'the setting pgembed.record_filters is %, but must be from 0 to 1', quote_literal(share)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It is the share of the searches whose filters are recorded: 0.01, or 0 for none.';
    END IF;
    RETURN random() < share::float8 AND current_setting('transaction_read_only') = 'off';
END;
$$;
COMMENT ON FUNCTION pgembed._records_filter() IS
'Whether this search is one of those whose filters are recorded: the share that the setting pgembed.record_filters says, and none in read-only transactions.';


CREATE OR REPLACE FUNCTION pgembed._workload_filters(e pgembed.embedding, workload regclass)
RETURNS TABLE (filter jsonb, searches bigint)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF workload IS NULL THEN
        RETURN QUERY SELECT r.filter, count(*) FROM pgembed.recorded_filter AS r
            WHERE r.embedding = e.id GROUP BY r.filter ORDER BY count(*) DESC, r.filter LIMIT 200;
    ELSIF NOT pgembed._columns(workload) @> ARRAY['filter'] THEN
        RAISE EXCEPTION 'the workload % has no column filter', workload
            USING ERRCODE = 'undefined_column', HINT = 'It takes a jsonb filter in each row.';
    ELSE
        RETURN QUERY EXECUTE format('SELECT w.filter::jsonb, count(*) FROM %s AS w '
            'WHERE w.filter IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 200', workload);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._workload_filters(pgembed.embedding, regclass) IS
'The filters of a workload table, or those recorded, most frequent first; at most 200.';
