-- Who may search and post batches: nobody but the owner, until it is granted.

CREATE OR REPLACE FUNCTION pgembed._routines(names text)
RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 90
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT p.oid::regprocedure
    FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'pgembed'::regnamespace AND p.proname = ANY (string_to_array(names, ' '))
    ORDER BY p.proname, p.oid;
END;
$$;
COMMENT ON FUNCTION pgembed._routines(text) IS
'The routines of these names, which are separated by spaces.';


CREATE OR REPLACE FUNCTION pgembed._search_routines()
RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 90
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT r FROM pgembed._routines(
        'search explain_search hybrid_search recall embed embed_query embed_batch '
        -- What these call as their caller.
        '_apply_settings _array_text _check_hybrid _check_json_order _check_option _check_search '
        '_columns _comparison _compile_filter _content_expression _cost _distance_expression '
        '_distance_operator _estimate _exact_cost _fallback_statement _filter_column '
        '_filter_comparison _filter_contains _filter_in _filter_json _filter_json_part '
        '_filter_list _filter_node _filter_operand _filter_pattern _filter_shape _filter_term '
        '_filter_value _find_embedding _has_partial_index _hybrid_statement _index_condition '
        '_index_settings _indexed_statement _json_as _json_value _key_aliases _key_match _lexemes '
        '_like_pattern _nearest_statement _pages_read _partial_estimate _pattern_operator '
        '_plan_search _query_vector _read_value _recall_of _record_filter _records_filter '
        '_refuse_filter _refuse_term _row_type _run_search _sample_queries _search_condition '
        '_search_distances _search_embedding _search_report _search_rows _search_statement '
        '_search_strategy _sentinels _setting _source_relation _table_size _template_expression '
        '_trigrams_statement _type_name _usable_index _value _value_text _vector_indexes '
        '_words_document _words_statement') AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._search_routines() IS
'The routines that a search needs: all but embed, embed_query, embed_batch and _record_filter run as their caller, so that they give nobody what his grants and row-level security withhold.';


CREATE OR REPLACE FUNCTION pgembed.grant_search(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    routine regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA pgembed TO %s', role);
    EXECUTE format('GRANT SELECT ON pgembed.embedding TO %s', role);
    FOR routine IN SELECT r FROM pgembed._search_routines() AS r LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', routine, role);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed.grant_search(regrole) IS
'Let a role search and embed texts: search, explain_search, hybrid_search, recall, embed, embed_query, embed_batch, and SELECT on pgembed.embedding. On the tables that it searches it needs SELECT besides. Call it again after an upgrade.';


CREATE OR REPLACE FUNCTION pgembed._batch_routines()
RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 15
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT r FROM pgembed._routines(
        'search_batch knn_join build_layout drop_layout await_batch cancel_batch '
        '_batch_table _finish_batch _kept_settings _layout_changes _post_batch _results_table '
        '_template_tokens') AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._batch_routines() IS
'The routines that posting a batch needs beside those of a search: all but _finish_batch run as their caller.';


CREATE OR REPLACE FUNCTION pgembed.grant_batch(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    routine regprocedure;
BEGIN
    PERFORM pgembed.grant_search(role);
    EXECUTE format('GRANT SELECT ON pgembed.layout, pgembed.layouts, pgembed.worker, pgembed.batch, '
        'pgembed.batch_progress, pgembed.batches TO %s', role);
    EXECUTE format('GRANT INSERT (kind, embedding, queries, results, k, recall, options, settings), '
        'UPDATE (cancel_requested) ON pgembed.batch TO %s', role);
    FOR routine IN SELECT r FROM pgembed._batch_routines() AS r LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', routine, role);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed.grant_batch(regrole) IS
'Let a role search, and post batches: search_batch, knn_join, build_layout, drop_layout, await_batch, cancel_batch, and SELECT on pgembed.batches and pgembed.layouts. Call it again after an upgrade.';


CREATE OR REPLACE FUNCTION pgembed.revoke_all(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('REVOKE ALL ON SCHEMA pgembed FROM %s', role);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA pgembed FROM %s', role);
    EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA pgembed FROM %s', role);
END;
$$;
COMMENT ON FUNCTION pgembed.revoke_all(regrole) IS
'Take back everything that a role was granted in schema pgembed.';
