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
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(format('%s.%I', alias, c.name), ', ' ORDER BY c.ordinal)
    FROM unnest(columns) WITH ORDINALITY AS c (name, ordinal)
);
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
    INNER JOIN pg_catalog.pg_amop AS m
        ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3
        AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
    INNER JOIN pg_catalog.pg_operator AS o ON o.oid = m.amopopr
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
    WHERE i.indrelid = source AND i.indisprimary AND k.ordinal <= i.indnkeyatts
);
COMMENT ON FUNCTION pgembed._key_match(regclass, text, text) IS
'SQL: the condition that two rows have the same key, by the operators of the primary key''s index.';


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
    RAISE EXCEPTION 'there is no embedding %', coalesce(quote_literal(name), 'NULL')
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
    RAISE EXCEPTION 'model % is not registered', coalesce(quote_literal(name), 'NULL')
        USING ERRCODE = 'undefined_object',
        HINT = format('%s Add one with: pgembed model add %s SOURCE',
            coalesce('The models are: ' || known || '.', 'There are none yet.'), name);
END;
$$;
COMMENT ON FUNCTION pgembed._find_model(text) IS
'The model of that name; an error that lists the names when there is none.';


CREATE OR REPLACE FUNCTION pgembed._try_lock(relation regclass, lock_mode text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s IN %s MODE NOWAIT', relation, lock_mode);
    RETURN true;
EXCEPTION
    WHEN lock_not_available THEN
        RETURN false;
END;
$$;
COMMENT ON FUNCTION pgembed._try_lock(regclass, text) IS
'Lock a relation without waiting; false when somebody holds it. Taken before any row of its job table: sources come before jobs, for users and workers alike.';


CREATE OR REPLACE FUNCTION pgembed._exists(relation regclass)
RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = relation);
COMMENT ON FUNCTION pgembed._exists(regclass) IS
'Whether the relation is still there.';
