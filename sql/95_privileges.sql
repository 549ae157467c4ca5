-- Who may search, post batches, declare embeddings and work: nobody but the owner, until it is
-- granted. What the routines do is done with their caller's rights, but for the few of
-- tests/faults/privileges.txt: it is the rights on tables that decide.

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
        '_advised_index _advised_name _apply_settings _array_text _belongs_to _bm25_index _bm25_statement _captures '
        '_check_arguments _check_fits _check_hybrid _check_json_order _check_option _check_query _check_searched '
        '_check_words _column_list _column_text _column_type _columns _comparison _compile_filter '
        '_content_expression _cost _default_cost _distance_expression _distance_operator _document_words _estimate '
        '_exact_cost _exact_statement _exact_text _exists _fault _filter_column _filter_comparison _filter_contains '
        '_filter_in _filter_json _filter_json_part _filter_list _filter_node _filter_operand _filter_pattern '
        '_filter_shape _filter_term _filter_value _find_embedding _frequent_value _fulltext_statement '
        '_has_partial_index _has_source _hybrid_statement _index_condition _index_settings _indexed_statement '
        '_job_table _json_as _json_value _key_columns _key_list _key_match _lexemes _like_pattern _measure_recall '
        '_memory_settings _named_column _named_config _nearest_statement _null_test _operator_class _passing_rows '
        '_pattern_operator _plan_fallback _plan_search _planned_index _query_vector _read_index _read_value '
        '_recall_of _record_filter _records_filter _refuse_cost _refuse_filter _refuse_source _refuse_term '
        '_retyped_keys _rival _run_search _same_key _sample_queries _search_condition _search_distances '
        '_search_embedding _search_report _search_rows _search_size _search_statement _search_strategy _sentinels '
        '_setting _source_relation _table_name _table_size _template_expression _template_tokens '
        '_trigrams_statement _usable_index _value _value_text _vector_type _words_document _words_extension '
        '_words_statement max_sim') AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._search_routines() IS
'The routines that a search needs: all but embed, embed_query, embed_batch and _record_filter run as their caller, so that they give nobody what his grants and row-level security withhold.';


CREATE OR REPLACE FUNCTION pgembed._check_role(role regrole)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid = role) THEN
        RAISE EXCEPTION 'there is no role with the number %', role::oid
            USING ERRCODE = 'undefined_object',
            HINT = 'Name the role; one that was dropped has no rights any more.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_role(regrole) IS
'An error when there is no such role: a regrole may be any number.';


CREATE OR REPLACE FUNCTION pgembed.grant_search(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._check_role(role);
    EXECUTE format('GRANT USAGE ON SCHEMA pgembed TO %s', role);
    EXECUTE format('GRANT SELECT ON pgembed.embedding TO %s', role);
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s',
        (SELECT string_agg(r::text, ', ') FROM pgembed._search_routines() AS r), role);
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
        '_batch_table _database_name _finish_batch _kept_settings _layout_changes _layout_fault _memory_bytes _post_batch '
        '_results_table _timeline') AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._batch_routines() IS
'The routines that posting a batch needs beside those of a search: all but _finish_batch run as their caller.';


CREATE OR REPLACE FUNCTION pgembed.grant_batch(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed.grant_search(role);
    EXECUTE format('GRANT SELECT ON pgembed.layout, pgembed.layouts, pgembed.worker, pgembed.batch, '
        'pgembed.batch_progress, pgembed.batches TO %s', role);
    EXECUTE format('GRANT INSERT (kind, embedding, queries, results, k, recall, options, settings), '
        'UPDATE (cancel_requested) ON pgembed.batch TO %s', role);
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s',
        (SELECT string_agg(r::text, ', ') FROM pgembed._batch_routines() AS r), role);
END;
$$;
COMMENT ON FUNCTION pgembed.grant_batch(regrole) IS
'Let a role search, and post batches: search_batch, knn_join, build_layout, drop_layout, await_batch, cancel_batch, and SELECT on pgembed.batches and pgembed.layouts. Call it again after an upgrade.';


CREATE OR REPLACE FUNCTION pgembed._shared_routines()
RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 40
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT r FROM pgembed._routines(
        'drop_embedding '
        '_add_missing_jobs _administers _attached_index _by_statement _captured_events '
        '_captures _captures_wrongly _check_present _column_list _column_text _column_type _columns _content_expression _count_jobs _count_rows '
        '_delete_leftovers _drop_advised _drop_capture _enable_capture _exists _fault _find_embedding _firing '
        '_drop_unfinished_indexes _forget_embedding '
        '_fits _former_owner _follow_partitions _grant_schema _grant_source _guarded_relations _has_chunks _has_source _has_vector _held_privileges _in_schema_of '
        '_index_options _index_parts _index_state _index_statements _job_table _key_columns '
        '_key_list _key_match _live _missing_privileges _operator_class _owner _owns _partition_triggers _queue_attached _queue_depths _queue_stale '
        '_refuse_stranger _retyped_keys _revoke_source _rival _template_expression '
        '_template_tokens _trigger_function _trigger_name _trigger_routine _try_lock _try_lock_by_plan _vector_type _wake '
        '_watched_columns _watches_wrongly _with_partitions _worker_roles _check_change _check_embedding _block') AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._shared_routines() IS
'The routines that both declaring embeddings and working need.';


CREATE OR REPLACE FUNCTION pgembed._owner_routines()
RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 70
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT r FROM pgembed._routines(
        'create_embedding adopt_vectors pause_embedding resume_embedding retry_failed reconcile '
        '_add_vector_column _adopted_type _capturing_routines _change_condition _check_chunking _check_declared '
        '_check_free _check_indexable _check_key _check_name _check_new_keys _check_source '
        '_closed_to_all _computed_from _content_columns _create_capture _create_chunk_table '
        '_create_trigger _create_truncate_trigger _declaration_lock _delete_twins _drop_former_functions _failures _find_kept '
        '_find_model _follow_key _follow_key_types _follow_row_security _forget_all _forget_partition _give_chunks _has_keys _index_name '
        '_is_built_in _is_leaf _is_leakproof _is_moved_out _key_changed _key_definitions _key_object _lock_to_declare _may_capture '
        '_most_dimensions _open_to_hidden _rate _rename_keys _repair_capture _retype_keys _routines _shorten _state '
        '_status _trigger_functions _wake_trigger') AS r
    UNION
    SELECT r FROM pgembed._shared_routines() AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._owner_routines() IS
'The routines that declaring embeddings needs beside those of a batch: all but _wake and _wake_trigger run as their caller.';


CREATE OR REPLACE FUNCTION pgembed._capturing_routines()
RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 10
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT r FROM pgembed._routines(
        '_column_list _columns _exists _forget_all _forget_partition _is_leaf _job_table _key_columns _key_list _key_match '
        '_wake') AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._capturing_routines() IS
'The routines that capture functions call, as the owner of the table.';


CREATE OR REPLACE FUNCTION pgembed._may_capture(role regrole)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN has_schema_privilege(role, 'pgembed', 'USAGE')
    AND has_table_privilege(role, 'pgembed.embedding', 'SELECT')
    AND has_table_privilege(role, 'pgembed.worker', 'SELECT')
    AND NOT EXISTS (
        SELECT FROM pgembed._capturing_routines() AS r WHERE NOT has_function_privilege(role, r, 'EXECUTE')
    );
COMMENT ON FUNCTION pgembed._may_capture(regrole) IS
'Whether a role has the rights in the schema that capturing the changes of its tables takes.';


CREATE OR REPLACE FUNCTION pgembed._grant_capture(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgembed._may_capture(role) THEN
        RETURN;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA pgembed TO %s', role);
    EXECUTE format('GRANT SELECT ON pgembed.embedding, pgembed.worker TO %s', role);
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s',
        (SELECT string_agg(r::text, ', ') FROM pgembed._capturing_routines() AS r), role);
END;
$$;
COMMENT ON FUNCTION pgembed._grant_capture(regrole) IS
'Let the changes of a role''s tables be captured as that role: what the owner of schema pgembed grants when he declares an embedding on a table of a role that is no pgembed_owner.';


CREATE OR REPLACE FUNCTION pgembed.grant_owner(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed.grant_batch(role);
    EXECUTE format('GRANT SELECT ON pgembed.model, pgembed.models, pgembed.model_file, pgembed.progress, '
        'pgembed.workers, pgembed.failures, pgembed.embedding_status TO %s', role);
    EXECUTE format('GRANT DELETE, '
        'INSERT (name, kind, source, key_columns, content, content_columns, model, target, '
        'target_column, chunk_tokens, chunk_overlap, storage, dimensions, distance, on_change, '
        'index_method, index_name, index_state, enqueued), '
        'UPDATE (key_columns, on_change, index_method, index_state, index_error, enqueued, paused, '
        'partition_triggers, blocked) ON pgembed.embedding TO %s', role);
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s',
        (SELECT string_agg(r::text, ', ') FROM pgembed._owner_routines() AS r), role);
END;
$$;
COMMENT ON FUNCTION pgembed.grant_owner(regrole) IS
'Let a role search, post batches, and declare embeddings on tables that it owns: create_embedding, adopt_vectors, drop_embedding and what belongs to them. Drop its embeddings before you take this back. Call it again after an upgrade.';


CREATE OR REPLACE FUNCTION pgembed._worker_routines()
RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 90
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT r FROM pgembed._routines(
        '_accept_protocol _answer _begin_index _call_lock _check_lengths _claim '
        '_claim_batch _claim_size _clear_unknown _commit_lazily _complete _complete_chunks _database_name '
        '_delete_claimed_leftovers _end_batch _end_jobs _enqueue_all _expire_calls _fail '
        '_fail_left_out _fail_unreadable _hand_back_stale _heartbeat _hold _index_work _kept_embedding '
        '_leave_vectors _lock_jobs _lock_sources _may_write _merge_twins _new_lease _open_embedding _pick _read_claimed '
        '_read_until _record_progress _refuse_rows _register_worker _release _renew _renew_batch '
        '_replace_chunks _set_idle _set_index_state _settled _store_answers _stored_vector _take_calls _tend '
        '_unblock _unregister_worker _work _write_vectors') AS r
    UNION
    SELECT r FROM pgembed._shared_routines() AS r;
END;
$$;
COMMENT ON FUNCTION pgembed._worker_routines() IS
'The routines that a worker needs: all but _wake and _leave_vectors run as their caller.';


CREATE OR REPLACE FUNCTION pgembed.grant_worker(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
BEGIN
    PERFORM pgembed._check_role(role);
    EXECUTE format('GRANT USAGE ON SCHEMA pgembed TO %s', role);
    EXECUTE format('GRANT USAGE ON SEQUENCE pgembed.lease_seq TO %s', role);
    EXECUTE format('GRANT SELECT ON pgembed.installation, pgembed.model, pgembed.model_file, '
        'pgembed.blob_chunk, pgembed.embedding TO %s', role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON pgembed.worker, pgembed.progress, '
        'pgembed.layout, pgembed.batch_progress TO %s', role);
    EXECUTE format('GRANT SELECT, DELETE, UPDATE (worker, answered, vectors, error, expires_at) ON pgembed.call TO %s', role);
    EXECUTE format('GRANT SELECT, DELETE, UPDATE (state, worker, lease, attempts, started_at, '
        'ended_at, due_at, error) ON pgembed.batch TO %s', role);
    EXECUTE format('GRANT DELETE, UPDATE (enqueued, partition_triggers, blocked, index_state, index_error, index_worker) '
        'ON pgembed.embedding TO %s', role);
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s',
        (SELECT string_agg(r::text, ', ') FROM pgembed._worker_routines() AS r), role);
    FOR e IN SELECT n.* FROM pgembed.embedding AS n WHERE n.kind = 'kept' AND pgembed._has_source(n) LOOP
        PERFORM pgembed._grant_queue(e);
        IF pgembed._owns(e.source) THEN
            PERFORM pgembed._grant_source(e);
        ELSE
            RAISE WARNING 'role % may not yet work on %, a table of role %', role, e.source, pgembed._owner(e.source)
                USING HINT = format('Let that role run: SELECT pgembed.reconcile(%L)', e.name);
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed.grant_worker(regrole) IS
'Let a role run workers: it takes jobs, reads the columns that embeddings read and writes those that they write, answers calls, and carries out batches in sessions of their callers. It owns nothing. Call it again after an upgrade.';


CREATE OR REPLACE FUNCTION pgembed.create_roles()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['pgembed_user', 'pgembed_owner', 'pgembed_worker'] LOOP
        CONTINUE WHEN to_regrole(role) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                -- Another database of this server was faster.
                NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role % may not create role %', quote_ident(current_user), role
                    USING ERRCODE = 'insufficient_privilege',
                    HINT = 'Let an administrator run: CREATE ROLE pgembed_user; CREATE ROLE pgembed_owner; '
                        'CREATE ROLE pgembed_worker; and call this again.';
        END;
    END LOOP;
    PERFORM pgembed._revoke_from_public();
    PERFORM pgembed.grant_search('pgembed_user');
    PERFORM pgembed.grant_owner('pgembed_owner');
    PERFORM pgembed.grant_worker('pgembed_worker');
END;
$$;
COMMENT ON FUNCTION pgembed.create_roles() IS
'Create the roles pgembed_user (searches), pgembed_owner (declares embeddings on its tables) and pgembed_worker, where they are missing, and grant them their rights in this database, and nothing to PUBLIC: GRANT them to the roles that log in. Doing it again changes nothing.';


CREATE OR REPLACE FUNCTION pgembed._refresh_roles()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed.create_roles()
    WHERE has_schema_privilege(to_regrole('pgembed_user'), 'pgembed', 'USAGE')
        AND has_schema_privilege(to_regrole('pgembed_owner'), 'pgembed', 'USAGE')
        AND has_schema_privilege(to_regrole('pgembed_worker'), 'pgembed', 'USAGE');
END;
$$;
COMMENT ON FUNCTION pgembed._refresh_roles() IS
'After an upgrade: grant the roles of this database what is new.';


CREATE OR REPLACE FUNCTION pgembed._tell_held(e pgembed.embedding, role regrole)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held record;
BEGIN
    FOR held IN SELECT h.* FROM pgembed._held_privileges(e, role) AS h LOOP
        RAISE WARNING 'role % may still work on %, a table of role %',
            role, held.relation, pgembed._owner(held.relation)
            USING HINT = format('Let that role run: REVOKE %s ON %s FROM %s',
                held.privileges, held.relation, role);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed._tell_held(pgembed.embedding, regrole) IS
'Warn of the rights on the tables of an embedding that only their owner can take from a worker''s role.';


CREATE OR REPLACE FUNCTION pgembed.revoke_all(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    routine regprocedure;
    e pgembed.embedding;
BEGIN
    PERFORM pgembed._check_role(role);
    IF role = pgembed._owner('pgembed.embedding') THEN
        RAISE EXCEPTION 'role % owns schema pgembed, whose functions run with its rights', role
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Nothing was revoked. Name a role that was granted something, or remove pgembed: pgembed uninstall.';
    END IF;
    IF role IN (SELECT w FROM pgembed._worker_roles() AS w) THEN
        FOR e IN SELECT n.* FROM pgembed.embedding AS n WHERE n.kind = 'kept' AND pgembed._has_source(n) LOOP
            IF pgembed._owns(e.source) THEN
                PERFORM pgembed._revoke_source(e, role);
            ELSE
                PERFORM pgembed._tell_held(e, role);
            END IF;
        END LOOP;
    END IF;
    EXECUTE format('REVOKE ALL ON SCHEMA pgembed FROM %s', role);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA pgembed FROM %s', role);
    EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgembed FROM %s', role);
    FOR routine IN
        SELECT p.oid::regprocedure
        FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'pgembed'::regnamespace AND NOT starts_with(p.proname, '_capture_')
    LOOP
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', routine, role);
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgembed.revoke_all(regrole) IS
'Take back everything that a role was granted in schema pgembed, and as a worker''s role on tables that the caller owns; a warning names the others. USAGE on the schemas of these tables stays. The schema''s owner is refused: what captures changes needs his rights.';
