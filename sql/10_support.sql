-- Helpers that the other files share: settings, errors, names, keys.

CREATE OR REPLACE FUNCTION pgembed._setting(name text, fallback text)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(nullif(pg_catalog.current_setting('pgembed.' || name, true), ''), fallback);
COMMENT ON FUNCTION pgembed._setting(text, text) IS
'The setting pgembed.NAME of this session, or the fallback when it is not set.';


CREATE OR REPLACE FUNCTION pgembed._job_table(embedding integer)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN 'pgembed.job_' || embedding;
COMMENT ON FUNCTION pgembed._job_table(integer) IS
'The qualified name of an embedding''s job table.';


CREATE OR REPLACE FUNCTION pgembed._table_name(relation regclass)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN quote_ident((parse_ident(relation::text))[2]);
END;
$$;
COMMENT ON FUNCTION pgembed._table_name(regclass) IS
'SQL: the name of a relation without its schema, by which a condition on it qualifies its columns.';


CREATE OR REPLACE FUNCTION pgembed._columns(relation regclass)
RETURNS text[]
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}')
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
);
COMMENT ON FUNCTION pgembed._columns(regclass) IS
'The names of a relation''s columns, in order.';


CREATE OR REPLACE FUNCTION pgembed._key_columns(source regclass)
RETURNS text[]
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT array_agg(a.attname::text ORDER BY k.ordinal)
    FROM pg_catalog.pg_index AS i
    CROSS JOIN LATERAL unnest(i.indkey::smallint[])
        WITH ORDINALITY AS k (attnum, ordinal)
    INNER JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = source AND i.indisprimary AND k.ordinal <= i.indnkeyatts
);
COMMENT ON FUNCTION pgembed._key_columns(regclass) IS
'The columns of a relation''s primary key, in its order; NULL without one.';


CREATE OR REPLACE FUNCTION pgembed._column_list(columns text[], alias text)
RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF cardinality(columns) = 1 THEN  -- Without a plan: searches wait for this.
        RETURN format('%s.%I', alias, columns[1]);
    END IF;
    RETURN (
        SELECT string_agg(format('%s.%I', alias, c.name), ', ' ORDER BY c.ordinal)
        FROM unnest(columns) WITH ORDINALITY AS c (name, ordinal));
END;
$$;
COMMENT ON FUNCTION pgembed._column_list(text[], text) IS
'SQL: the columns, each qualified by the alias, separated by commas.';


CREATE OR REPLACE FUNCTION pgembed._key_match(source regclass, left_alias text, right_alias text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        format(
            '%1$s.%2$I OPERATOR(%3$I.%4$s) %5$s.%2$I',
            left_alias, a.attname, n.nspname, o.oprname, right_alias
        ),
        ' AND ' ORDER BY k.ordinal
    )
    FROM pg_catalog.pg_index AS i
    CROSS JOIN LATERAL unnest(i.indkey::smallint[], i.indclass::oid[])
        WITH ORDINALITY AS k (attnum, opclass, ordinal)
    INNER JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    INNER JOIN pg_catalog.pg_opclass AS c ON c.oid = k.opclass
    INNER JOIN pg_catalog.pg_am AS t ON t.oid = c.opcmethod AND t.amname = 'btree'
    INNER JOIN pg_catalog.pg_amop AS m
        ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3
        AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
    INNER JOIN pg_catalog.pg_operator AS o ON o.oid = m.amopopr
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
    WHERE i.indrelid = source AND i.indisprimary AND k.ordinal <= i.indnkeyatts
);
COMMENT ON FUNCTION pgembed._key_match(regclass, text, text) IS
'SQL: the condition that two rows have the same key, by the operators of the primary key''s index; NULL when that is not a btree.';


CREATE OR REPLACE FUNCTION pgembed._find_embedding(name text)
RETURNS pgembed.embedding
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_embedding pgembed.embedding;
    known text;
BEGIN
    SELECT e.* INTO found_embedding
    FROM pgembed.embedding AS e
    WHERE e.name = _find_embedding.name;
    IF FOUND THEN
        RETURN found_embedding;
    END IF;
    SELECT string_agg(e.name, ', ' ORDER BY e.name) INTO known FROM pgembed.embedding AS e;
    RAISE EXCEPTION 'there is no embedding %', coalesce(quote_literal(left(name, 100)), 'NULL')
        USING ERRCODE = 'undefined_object',
        HINT = coalesce('The embeddings are: ' || known || '.',
            'There are none yet: SELECT pgembed.create_embedding(...) declares one.');
END;
$$;
COMMENT ON FUNCTION pgembed._find_embedding(text) IS
'The embedding of that name; an error that lists the names when there is none.';


CREATE OR REPLACE FUNCTION pgembed._find_model(name text)
RETURNS pgembed.model
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_model pgembed.model;
    known text;
BEGIN
    SELECT m.* INTO found_model FROM pgembed.model AS m WHERE m.name = _find_model.name;
    IF FOUND THEN
        RETURN found_model;
    END IF;
    SELECT string_agg(m.name, ', ' ORDER BY m.name) INTO known FROM pgembed.model AS m;
    RAISE EXCEPTION 'model % is not registered', coalesce(quote_literal(left(name, 100)), 'NULL')
        USING ERRCODE = 'undefined_object',
        HINT = format('%s Add one with: pgembed model add %s SOURCE',
            coalesce('The models are: ' || known || '.', 'There are none yet.'),
            coalesce(substring(name FROM '^[[:alnum:]_.-]{1,100}$'), 'NAME'));
END;
$$;
COMMENT ON FUNCTION pgembed._find_model(text) IS
'The model of that name; an error that lists the names when there is none.';


-- LOCK TABLE asks for rights on the whole table, a statement for rights on the columns it names.
-- To plan it locks what to execute it would, partitions included; no trigger fires.
CREATE OR REPLACE FUNCTION pgembed._try_lock_by_plan(relation regclass, lock_mode text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1ms'
AS $$
DECLARE
    right_needed text := CASE lock_mode WHEN 'ACCESS SHARE' THEN 'SELECT' WHEN 'ROW EXCLUSIVE' THEN 'UPDATE' END;
    permitted text;
BEGIN
    SELECT a.attname INTO permitted
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
        AND has_column_privilege(relation, a.attnum, right_needed)
    ORDER BY a.attnum
    LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'permission denied for table %', relation
            USING ERRCODE = 'insufficient_privilege',
            HINT = format('Role %I needs %s on columns of it, or on all of it.', current_user, coalesce(right_needed, lock_mode));
    END IF;
    EXECUTE format(
        CASE right_needed
            WHEN 'SELECT' THEN 'EXPLAIN SELECT s.%2$I FROM %1$s AS s'
            ELSE 'EXPLAIN UPDATE %1$s AS s SET %2$I = DEFAULT'
        END, relation, permitted);
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR undefined_table OR syntax_error THEN
        RETURN false;
END;
$$;
COMMENT ON FUNCTION pgembed._try_lock_by_plan(regclass, text) IS
'Lock a relation as _try_lock does, with rights on some of its columns: in ACCESS SHARE mode with SELECT, in ROW EXCLUSIVE mode with UPDATE.';


CREATE OR REPLACE FUNCTION pgembed._try_lock(relation regclass, lock_mode text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s IN %s MODE NOWAIT', relation, lock_mode);
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR undefined_table OR syntax_error THEN
        -- A relation that was dropped is written as a number, which LOCK cannot read.
        RETURN false;
    WHEN insufficient_privilege THEN
        RETURN pgembed._try_lock_by_plan(relation, lock_mode);
END;
$$;
COMMENT ON FUNCTION pgembed._try_lock(regclass, text) IS
'Lock a relation without waiting; false when somebody holds it, or it is gone. Taken before any row of its job table: sources come before jobs, for users and workers alike.';


-- A dump holds the number of a table that was dropped: in another cluster, it is whatever
-- relation has that number there.
CREATE OR REPLACE FUNCTION pgembed._exists(relation regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT FROM pg_catalog.pg_class AS c
    WHERE c.oid = relation AND c.relkind IN ('r', 'p') AND c.relnamespace <> 'pgembed'::regnamespace
);
COMMENT ON FUNCTION pgembed._exists(regclass) IS
'Whether the source of an embedding, or the table of its vectors, is still there: what is no table, or one of pgembed''s own, is another relation that has its number.';


CREATE OR REPLACE FUNCTION pgembed._captures(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT
    FROM pg_catalog.pg_trigger AS g
    INNER JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid
    WHERE g.tgrelid = e.source AND p.pronamespace = 'pgembed'::regnamespace
        AND starts_with(p.proname::text, '_capture_' || e.id || '_')
);
COMMENT ON FUNCTION pgembed._captures(pgembed.embedding) IS
'Whether a trigger of the embedding is on its source.';


CREATE OR REPLACE FUNCTION pgembed._rival(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT min(o.name)
    FROM pgembed.embedding AS o
    WHERE o.target = e.target AND o.target_column = e.target_column AND o.id <> e.id
        -- While a dump is restored, the triggers come last: then neither has any. One CASE, for
        -- what says nothing of the other one would be asked even where there is no other.
        AND CASE WHEN e.kind = 'kept' AND o.kind = 'adopted' OR pgembed._captures(o)
            THEN NOT pgembed._captures(e) ELSE false END
);
COMMENT ON FUNCTION pgembed._rival(pgembed.embedding) IS
'The embedding that has the vector column of this one, whose table is gone and has left its number to another; else NULL.';


CREATE OR REPLACE FUNCTION pgembed._has_source(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN pgembed._exists(e.source)
    AND (e.kind = 'adopted' OR e.key_columns <@ pgembed._columns(e.source) OR pgembed._captures(e))
    AND pgembed._rival(e) IS NULL;
COMMENT ON FUNCTION pgembed._has_source(pgembed.embedding) IS
'Whether the source of the embedding is still there: not another table that has its number.';


CREATE OR REPLACE FUNCTION pgembed._has_chunks(e pgembed.embedding)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN e.target <> e.source AND pgembed._exists(e.target)
    AND pgembed._columns(e.target) @> ARRAY['chunk', e.target_column]
    AND NOT EXISTS (
        SELECT FROM pgembed.embedding AS o WHERE o.id <> e.id AND e.target IN (o.source, o.target)
    );
COMMENT ON FUNCTION pgembed._has_chunks(pgembed.embedding) IS
'Whether the embedding has a chunk table: one that looks like it, and is no other embedding''s.';


CREATE OR REPLACE FUNCTION pgembed._shorten(name text, longest integer)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT left(name, n)
    FROM generate_series(length(name), 0, -1) AS n
    WHERE octet_length(left(name, n)) <= longest
    LIMIT 1
);
COMMENT ON FUNCTION pgembed._shorten(text, integer) IS
'The beginning of a name that fits into so many bytes.';


CREATE OR REPLACE FUNCTION pgembed._key_list(columns text[])
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.ordinal)
    FROM unnest(columns) WITH ORDINALITY AS c (name, ordinal)
);
COMMENT ON FUNCTION pgembed._key_list(text[]) IS
'SQL: the columns, quoted, separated by commas.';


CREATE OR REPLACE FUNCTION pgembed._vector_type(storage text, dimensions integer)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN CASE storage
    WHEN 'bit' THEN format('bit(%s)', dimensions)
    WHEN 'halfvec' THEN format('@extschema:vector@.halfvec(%s)', dimensions)
    ELSE format('@extschema:vector@.vector(%s)', dimensions)
END;
COMMENT ON FUNCTION pgembed._vector_type(text, integer) IS
'SQL: the type of a vector column, qualified.';


CREATE OR REPLACE FUNCTION pgembed._column_type(relation regclass, column_name text)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format_type(a.atttypid, a.atttypmod)
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = relation AND a.attname = column_name AND NOT a.attisdropped
);
COMMENT ON FUNCTION pgembed._column_type(regclass, text) IS
'The type of a column as SQL, qualified unless it is built in; NULL when there is no such column.';


CREATE OR REPLACE FUNCTION pgembed._retyped_keys(e pgembed.embedding)
RETURNS TABLE (relation regclass, name text, present text, wanted text, is_built_in boolean)
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.attrelid, k.attname, format_type(k.atttypid, k.atttypmod), format_type(s.atttypid, s.atttypmod),
        k.atttypid < 16384 AND s.atttypid < 16384
    FROM pg_catalog.pg_attribute AS s
    INNER JOIN pg_catalog.pg_attribute AS k ON k.attname = s.attname
        AND (k.atttypid, k.atttypmod) <> (s.atttypid, s.atttypmod)
    WHERE s.attrelid = e.source AND s.attname = ANY (e.key_columns)
        -- Of the source itself, when it holds the vectors: the same types.
        AND k.attrelid IN (to_regclass(pgembed._job_table(e.id)), e.target);
$$;
COMMENT ON FUNCTION pgembed._retyped_keys(pgembed.embedding) IS
'The key columns of the job table and the chunk table that have another type than the source''s.';


CREATE OR REPLACE FUNCTION pgembed._fault(e pgembed.embedding)
RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(f.reason, '; ')
    FROM (
        SELECT format('column %I of table %s was dropped or renamed', c.name, c.relation)
        FROM (
            SELECT e.source, unnest(e.key_columns || e.content_columns)
            UNION
            SELECT e.target, e.target_column
        ) AS c (relation, name)
        WHERE pgembed._exists(c.relation) AND c.name <> ALL (pgembed._columns(c.relation))
        UNION ALL
        SELECT format('the chunk table %s was dropped', e.name || '_chunk')
        WHERE NOT pgembed._exists(e.target)
        UNION ALL
        SELECT format('table %s has inheritance children now', e.source)
        FROM pg_catalog.pg_class AS r
        WHERE r.oid = e.source AND r.relkind = 'r'
            AND EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = e.source)
        UNION ALL
        SELECT format('the primary key of table %s is not (%s) any more',
            e.source, pgembed._key_list(e.key_columns))
        WHERE pgembed._key_columns(e.source) IS DISTINCT FROM e.key_columns
        UNION ALL
        SELECT format('key column %I is of type %s in table %s and of type %s in %s: SELECT pgembed.reconcile(%L)',
            k.name, k.wanted, e.source, k.present, k.relation, e.name)
        FROM pgembed._retyped_keys(e) AS k
        UNION ALL
        -- The parent's goes on: it is the whole table's.
        SELECT format('table %s became a partition of %s, where the embedding %s keeps column %I: '
            'SELECT pgembed.drop_embedding(%L)', e.target, o.target, quote_literal(o.name), o.target_column, e.name)
        FROM pg_catalog.pg_partition_ancestors(e.target) AS a
        INNER JOIN pgembed.embedding AS o
            ON o.target = a.relid AND o.target_column = e.target_column AND o.kind = 'kept'
        WHERE a.relid <> e.target AND e.kind = 'kept'
        UNION ALL
        SELECT format('column %I of table %s is of type %s, not %s', e.target_column, e.target, t.present, t.wanted)
        FROM (
            SELECT replace(pgembed._column_type(e.target, e.target_column), '"', ''),
                replace(pgembed._vector_type(e.storage, e.dimensions), '"', '')
        ) AS t (present, wanted)
        -- The application's may be of any dimensions.
        WHERE t.present <> t.wanted AND NOT (e.kind = 'adopted' AND t.present = split_part(t.wanted, '(', 1))
    ) AS f (reason)
);
COMMENT ON FUNCTION pgembed._fault(pgembed.embedding) IS
'Why an embedding no longer fits its table; NULL when it does.';


CREATE OR REPLACE FUNCTION pgembed._check_fits(e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fault text := pgembed._fault(e);
BEGIN
    IF NOT pgembed._has_source(e) THEN
        RAISE EXCEPTION 'the source of % was dropped', quote_literal(e.name)
            USING ERRCODE = 'undefined_table',
            HINT = 'Drop the embedding as well: SELECT pgembed.drop_embedding(...).';
    ELSIF fault IS NOT NULL THEN
        RAISE EXCEPTION 'the embedding % no longer fits its table: %', quote_literal(e.name), fault
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Undo that, or drop the embedding and declare it again.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_fits(pgembed.embedding) IS
'An error that says why when an embedding no longer fits its table.';
