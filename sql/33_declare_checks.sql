-- What can be declared: errors before anything is changed.

CREATE OR REPLACE FUNCTION pgembed._check_source(source regclass)
RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c pg_catalog.pg_class;
BEGIN
    IF source IS NULL THEN
        RAISE EXCEPTION 'the source table is NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Name the table to embed.';
    END IF;
    SELECT r.* INTO c FROM pg_catalog.pg_class AS r WHERE r.oid = source;
    IF NOT FOUND OR c.relkind NOT IN ('r', 'p') OR c.relpersistence = 't'
        OR c.relnamespace::regnamespace::text IN ('pg_catalog', 'information_schema', 'pgembed')
    THEN
        RAISE EXCEPTION '% is not a table that rows can be kept for', source
            USING ERRCODE = 'wrong_object_type',
            HINT = 'A source is an ordinary or partitioned table; not a view, '
                'a temporary, a foreign or a system table.';
    END IF;
    IF c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = source) THEN
        RAISE EXCEPTION 'table % has inheritance children', source
            USING ERRCODE = 'wrong_object_type',
            HINT = 'Its key is not unique among them. Embed the children one by one, '
                'or use declarative partitioning.';
    END IF;
    IF row_security_active(source) THEN
        RAISE EXCEPTION 'row-level security hides rows of table % from %', source, current_user
            USING ERRCODE = 'insufficient_privilege',
            HINT = 'Declare embeddings as the owner of the table (without FORCE ROW LEVEL SECURITY), '
                'or as a role with BYPASSRLS.';
    END IF;
    RETURN pgembed._check_key(source);
END;
$$;
COMMENT ON FUNCTION pgembed._check_source(regclass) IS
'The key columns of a table that can be a source; an error that says why it cannot.';


CREATE OR REPLACE FUNCTION pgembed._check_key(source regclass)
RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text[] := pgembed._key_columns(source);
    reserved text;
BEGIN
    IF keys IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key', source
            USING ERRCODE = 'invalid_table_definition',
            HINT = format('Add one: ALTER TABLE %s ADD PRIMARY KEY (...).', source);
    END IF;
    IF pgembed._key_match(source, 'a', 'b') IS NULL THEN
        RAISE EXCEPTION 'the primary key of table % does not compare by equality', source
            USING ERRCODE = 'feature_not_supported',
            HINT = 'Temporal primary keys (WITHOUT OVERLAPS) cannot be kept.';
    END IF;
    SELECT k INTO reserved FROM unnest(keys) AS k WHERE starts_with(k, 'pgembed_');
    IF FOUND THEN
        RAISE EXCEPTION 'the key column % of table % has a reserved name', quote_ident(reserved), source
            USING ERRCODE = 'reserved_name',
            HINT = 'Names of key columns must not begin with pgembed_.';
    END IF;
    RETURN keys;
END;
$$;
COMMENT ON FUNCTION pgembed._check_key(regclass) IS
'The key columns of a table; an error when they cannot identify its rows in a queue.';


CREATE OR REPLACE FUNCTION pgembed._check_option(name text, value text, allowed text[])
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF value IS NULL OR value <> ALL (allowed) THEN
        RAISE EXCEPTION '% is %, which is not a choice', name, coalesce(quote_literal(value), 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = format('Choose one of: %s.', array_to_string(allowed, ', '));
    END IF;
    RETURN value;
END;
$$;
COMMENT ON FUNCTION pgembed._check_option(text, text, text[]) IS
'The value of an option, when it is one of those allowed.';


CREATE OR REPLACE FUNCTION pgembed._declaration_lock()
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
RETURN hashtextextended('pgembed.create_embedding', 0);
COMMENT ON FUNCTION pgembed._declaration_lock() IS
'The key of the advisory lock that a transaction takes with its first declaration: declarations have to see each other, and a job table locks the one that it inherits from in any case.';


CREATE OR REPLACE FUNCTION pgembed._check_name(name text, longest integer)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    taken pgembed.embedding;
BEGIN
    IF coalesce(name, '') = '' OR octet_length(name) > longest THEN
        RAISE EXCEPTION 'the embedding name % is empty or longer than % bytes',
            coalesce(quote_literal(left(name, 100)), 'NULL'), longest
            USING ERRCODE = 'invalid_name', HINT = 'Choose another: name => ''...''.';
    END IF;
    PERFORM pg_advisory_xact_lock(pgembed._declaration_lock());
    SELECT e.* INTO taken FROM pgembed.embedding AS e WHERE e.name = _check_name.name;
    IF NOT FOUND THEN
        RETURN name;
    END IF;
    IF NOT pgembed._has_source(taken) THEN
        PERFORM pgembed._forget_embedding(name);
        RETURN name;
    END IF;
    RAISE EXCEPTION 'there is already an embedding %', quote_literal(name)
        USING ERRCODE = 'duplicate_object',
        HINT = 'Choose another name (name => ''...''), or drop it first: '
            'SELECT pgembed.drop_embedding(...).';
END;
$$;
COMMENT ON FUNCTION pgembed._check_name(text, integer) IS
'The name of a new embedding: not empty, short enough, not taken. One whose source was dropped gives its name up. Whoever declares another waits until this transaction ends, and then sees what it declared.';


CREATE OR REPLACE FUNCTION pgembed._most_dimensions(storage text)
RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE storage WHEN 'vector' THEN 2000 WHEN 'halfvec' THEN 4000 ELSE 64000 END;
END;
$$;
COMMENT ON FUNCTION pgembed._most_dimensions(text) IS
'How many dimensions a vector may have for pgvector to index it.';


CREATE OR REPLACE FUNCTION pgembed._check_indexable(index text, storage text, dimensions integer)
RETURNS void
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    most integer := pgembed._most_dimensions(storage);
BEGIN
    IF index <> 'none' AND dimensions > most THEN
        RAISE EXCEPTION 'an index on % holds at most % dimensions, this model has %',
            storage, most, dimensions
            USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Use storage => ''halfvec'' (4,000) or ''bit'' (64,000), or index => ''none''.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_indexable(text, text, integer) IS
'An error when pgvector cannot index a vector of so many dimensions.';


CREATE OR REPLACE FUNCTION pgembed._check_chunking(
    chunk_tokens integer, chunk_overlap integer, target_column text, max_tokens integer
)
RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF chunk_tokens IS NULL THEN
        IF coalesce(chunk_overlap, 0) <> 0 THEN
            RAISE EXCEPTION 'chunk_overlap is % without chunk_tokens', chunk_overlap
                USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Set chunk_tokens to cut the content into chunks.';
        END IF;
    ELSIF chunk_tokens NOT BETWEEN 8 AND max_tokens
        OR coalesce(chunk_overlap, 0) NOT BETWEEN 0 AND chunk_tokens - 1
    THEN
        RAISE EXCEPTION 'chunk_tokens % with chunk_overlap % does not fit the model',
            chunk_tokens, chunk_overlap
            USING ERRCODE = 'invalid_parameter_value',
            HINT = format('chunk_tokens is from 8 to the model''s %s; chunk_overlap is less than chunk_tokens.', max_tokens);
    ELSIF target_column IS NOT NULL THEN
        RAISE EXCEPTION 'target_column % with chunk_tokens', quote_literal(target_column)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Chunks have a table of their own: leave target_column out.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_chunking(integer, integer, text, integer) IS
'An error when the chunking options contradict each other or the model.';


CREATE OR REPLACE FUNCTION pgembed._check_free(target regclass, target_column text)
RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    other pgembed.embedding;
BEGIN
    -- A partition's column is its parents' column, too.
    SELECT e.* INTO other
    FROM pgembed.embedding AS e
    WHERE e.target_column = _check_free.target_column AND (
        e.target = _check_free.target
        OR e.target IN (SELECT a.relid FROM pg_catalog.pg_partition_ancestors(_check_free.target) AS a)
        OR e.target IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(_check_free.target) AS t)
    )
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'column % of table % already belongs to the embedding %',
            quote_ident(target_column), other.target, quote_literal(other.name)
            USING ERRCODE = 'duplicate_object',
            HINT = 'Choose another column (target_column, or vector_column of adopt_vectors), '
                'or drop that embedding first.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_free(regclass, text) IS
'An error when another embedding owns the vector column, of this table or of a parent or partition of it.';
