-- The parts of a search: which relation, which embedding, which index, which SQL.

CREATE OR REPLACE FUNCTION pgembed._source_relation(kind regtype)
RETURNS regclass
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation oid := (SELECT t.typrelid FROM pg_catalog.pg_type AS t WHERE t.oid = kind);
BEGIN
    IF coalesce(relation, 0) = 0 THEN
        RAISE EXCEPTION 'the source of a search is a table''s row type, not %', kind
            USING ERRCODE = 'datatype_mismatch',
            HINT = 'Name the table by a NULL of its type: pgembed.search(NULL::my_table, ...).';
    END IF;
    RETURN relation::regclass;
END;
$$;
COMMENT ON FUNCTION pgembed._source_relation(regtype) IS
'The table that a row type belongs to.';


CREATE OR REPLACE FUNCTION pgembed._refuse_source(source regclass, e pgembed.embedding)
RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known text[] := ARRAY(
        SELECT o.name FROM pgembed.embedding AS o
        WHERE o.source = _refuse_source.source AND pgembed._has_source(o) ORDER BY o.name);
    whole regclass := coalesce(pg_partition_root(source), source);
BEGIN
    IF e.name IS NULL AND cardinality(known) > 1 THEN
        RAISE EXCEPTION 'table % has several embeddings: %', source, array_to_string(known, ', ')
            USING ERRCODE = 'ambiguous_parameter',
            HINT = format('Name one: embedding => %L.', known[1]);
    END IF;
    RAISE EXCEPTION '%', CASE WHEN e.name IS NULL
            THEN format('table %s has no embedding', source)
            ELSE format('the embedding %L is one of table %s, not of %s', e.name, e.source, source)
        END
        USING ERRCODE = 'undefined_object', HINT = CASE
            WHEN whole <> source THEN format('It is a partition of %s: search that.', whole)
            WHEN cardinality(known) = 0
            THEN 'Declare one: pgembed.create_embedding(...) or pgembed.adopt_vectors(...).'
            ELSE format('Its embeddings are: %s.', array_to_string(known, ', ')) END;
END;
$$;
COMMENT ON FUNCTION pgembed._refuse_source(regclass, pgembed.embedding) IS
'The error of a table without the embedding that is to be searched; e is the one that was named, if any.';


CREATE OR REPLACE FUNCTION pgembed._search_embedding(kind regtype, name text)
RETURNS pgembed.embedding
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding;
BEGIN
    IF name IS NULL THEN
        -- One at most: of several none is meant.
        SELECT o.* INTO e
        FROM pg_catalog.pg_type AS t
        INNER JOIN pgembed.embedding AS o ON o.source = t.typrelid
        WHERE t.oid = _search_embedding.kind AND NOT EXISTS (
            SELECT FROM pgembed.embedding AS other
            WHERE other.source = o.source AND other.id <> o.id
                AND (pgembed._has_source(other) OR NOT pgembed._has_source(o)));
    ELSE
        e := pgembed._find_embedding(name);
    END IF;
    IF e.id IS NULL OR name IS NOT NULL AND e.source <> pgembed._source_relation(kind) THEN
        PERFORM pgembed._refuse_source(pgembed._source_relation(kind), e);
    END IF;
    RETURN e;
END;
$$;
COMMENT ON FUNCTION pgembed._search_embedding(regtype, text) IS
'The embedding to search: the one of that name, or the only one of the table that has this row type.';


CREATE OR REPLACE FUNCTION pgembed._check_searched(kind regtype, embedding text)
RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgembed._check_fits(pgembed._search_embedding(kind, embedding));
END;
$$;
COMMENT ON FUNCTION pgembed._check_searched(regtype, text) IS
'After the error of a search: one that says why, when its embedding no longer fits its table.';


CREATE OR REPLACE FUNCTION pgembed._query_vector(source regtype, query text, embedding text)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e pgembed.embedding := pgembed._search_embedding(source, embedding);
    v @extschema:vector@.vector;
BEGIN
    IF e.model IS NULL THEN
        RAISE EXCEPTION 'the embedding % has no model to read a text with', quote_literal(e.name)
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Pass a vector, or adopt the vectors with the model that made them.';
    END IF;
    v := pgembed.embed_query(e.model, query);
    IF v IS NULL THEN
        RAISE EXCEPTION 'the query is NULL or blank'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Pass the text to search for.';
    END IF;
    RETURN v;
END;
$$;
COMMENT ON FUNCTION pgembed._query_vector(regtype, text, text) IS
'The vector of a query text, made by the model of the embedding that is searched.';


CREATE OR REPLACE FUNCTION pgembed._check_arguments(k integer, predicate text, mode text, recall float8)
RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF mode IS DISTINCT FROM 'auto' THEN
        PERFORM pgembed._check_option('mode', mode, ARRAY['auto', 'exact', 'index']);
    END IF;
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'k is %, but must be from 1 to 10000', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Ask for that many rows at most.';
    ELSIF recall IS NULL OR NOT recall BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'recall is %, but must be from 0 to 1', coalesce(recall::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Ask for the share of the true nearest rows to find, such as 0.99.';
    ELSIF btrim(predicate, E' \t\r\n') = '' THEN
        RAISE EXCEPTION 'the predicate is blank'
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave it out, or write what follows WHERE: price < 100.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_arguments(integer, text, text, float8) IS
'An error when the arguments of a search that are neither query nor filter make no sense.';


CREATE OR REPLACE FUNCTION pgembed._check_query(e pgembed.embedding, query @extschema:vector@.vector)
RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query vector is NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Pass the vector to search for.';
    ELSIF @extschema:vector@.vector_dims(query) <> e.dimensions THEN
        RAISE EXCEPTION 'the query has % dimensions, the embedding % has %',
            @extschema:vector@.vector_dims(query), quote_literal(e.name), e.dimensions
            USING ERRCODE = 'data_exception',
            HINT = 'Make the query with the model that made the vectors.';
    ELSIF e.distance = 'cosine' AND e.storage <> 'bit' AND 0 = (CASE e.storage
            WHEN 'halfvec' THEN @extschema:vector@.l2_norm(query::@extschema:vector@.halfvec)
            ELSE @extschema:vector@.vector_norm(query) END)
    THEN
        RAISE EXCEPTION 'the query vector has length zero%, which has no cosine distance',
            CASE e.storage WHEN 'halfvec' THEN ' as a halfvec' ELSE '' END
            USING ERRCODE = 'data_exception', HINT = 'Pass a vector with a direction.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._check_query(pgembed.embedding, @extschema:vector@.vector) IS
'An error when a vector cannot be compared with those of an embedding.';


CREATE OR REPLACE FUNCTION pgembed._distance_operator(e pgembed.embedding)
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE
        WHEN e.storage = 'bit' THEN '<~>'
        WHEN e.distance = 'l2' THEN '<->'
        WHEN e.distance = 'inner_product' THEN '<#>'
        ELSE '<=>' END;
END;
$$;
COMMENT ON FUNCTION pgembed._distance_operator(pgembed.embedding) IS
'pgvector''s operator for an embedding''s distance; Hamming for bits.';


CREATE OR REPLACE FUNCTION pgembed._usable_index(
    e pgembed.embedding, named text[],
    OUT index regclass, OUT method text, OUT lists integer, OUT rows float8, OUT partial boolean
)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    operator_class text := pgembed._operator_class(e.storage, e.distance);
BEGIN
    SELECT
        i.indexrelid, m.amname, coalesce(substring(c.reloptions::text FROM E'lists=(\\d+)')::integer, 100),
        greatest(c.reltuples, 0), w.expression IS NOT NULL
    INTO index, method, lists, rows, partial
    FROM pg_catalog.pg_index AS i
    INNER JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attname = e.target_column
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    INNER JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
    INNER JOIN pg_catalog.pg_opclass AS f ON f.oid = i.indclass[0] AND f.opcname = operator_class
    -- All rows that have a vector are all rows.
    CROSS JOIN LATERAL (
        SELECT nullif(pg_get_expr(i.indpred, i.indrelid), format('(%I IS NOT NULL)', a.attname)) AS expression
    ) AS w
    WHERE i.indrelid = e.target AND i.indisvalid AND i.indnatts = 1
        AND CASE WHEN named = '{}' THEN w.expression IS NULL ELSE c.relname = ANY (named) END
    ORDER BY w.expression IS NOT NULL, m.amname, i.indexrelid
    LIMIT 1;
END;
$$;
COMMENT ON FUNCTION pgembed._usable_index(pgembed.embedding, text[]) IS
'The valid index on the vectors of an embedding that serves its distance, HNSW before IVFFlat: one of those named, or, with no names, one over all rows.';


CREATE OR REPLACE FUNCTION pgembed._table_size(relation regclass, OUT rows float8, OUT pages float8)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind "char";
BEGIN
    SELECT c.relkind, c.reltuples, c.relpages INTO kind, rows, pages
    FROM pg_catalog.pg_class AS c WHERE c.oid = relation;
    IF kind = 'p' THEN
        SELECT sum(s.rows), sum(s.pages) INTO rows, pages
        FROM pg_partition_tree(relation) AS p
        CROSS JOIN LATERAL pgembed._table_size(p.relid) AS s
        WHERE p.isleaf AND p.relid <> relation;
    ELSIF rows < 0 THEN
        pages := pg_relation_size(relation) / 8192;
        rows := pages * 8;
    END IF;
    rows := coalesce(rows, 0);
    pages := coalesce(pages, 0);
END;
$$;
COMMENT ON FUNCTION pgembed._table_size(regclass) IS
'About how many rows and pages a table has, from its statistics.';


CREATE OR REPLACE FUNCTION pgembed._exact_text(value anyelement)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
AS $$
BEGIN
    RETURN format('%s', value);
END;
$$;
COMMENT ON FUNCTION pgembed._exact_text(anyelement) IS
'A value as the text that is read as the very same value: with all digits of the floats in it, whatever extra_float_digits the caller has.';


-- Parameters whose type the driver leaves open are of this one.
CREATE OR REPLACE FUNCTION pgembed._exact_text(value text)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN value;
COMMENT ON FUNCTION pgembed._exact_text(text) IS
'A text as it is.';
