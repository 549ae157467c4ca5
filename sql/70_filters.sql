-- Filters: JSON in, a condition with typed parameters out. A condition is made of
-- quoted column names, operators found in the catalogs and references into one text[]
-- parameter; nothing that a user wrote becomes part of it in any other way.
-- This file knows types, values and operators; 71_filter_terms knows the language.

CREATE OR REPLACE FUNCTION pgembed._value(value text, kind anyelement)
RETURNS anyelement
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE CALLED ON NULL INPUT
AS $$
BEGIN
    kind := value;
    RETURN kind;
END;
$$;
COMMENT ON FUNCTION pgembed._value(text, anyelement) IS
'The text read as a value of the type of kind. Immutable, so that a parameter is read once, when the statement is planned, also for types whose input depends on settings (dates, enums, arrays).';


CREATE OR REPLACE FUNCTION pgembed._comparison(kind oid, word text)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    candidates oid[];
BEGIN
    IF kind IN ('bool'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype,
                'float4'::regtype, 'float8'::regtype, 'numeric'::regtype, 'text'::regtype,
                'varchar'::regtype, 'date'::regtype, 'timestamp'::regtype,
                'timestamptz'::regtype, 'uuid'::regtype)
    THEN  -- What the catalogs would answer, without asking them each time.
        RETURN 'OPERATOR(pg_catalog.' || CASE word WHEN 'lt' THEN '<' WHEN 'lte' THEN '<='
            WHEN 'eq' THEN '=' WHEN 'gte' THEN '>=' WHEN 'gt' THEN '>' ELSE '<>' END || ')';
    END IF;
    SELECT CASE
               WHEN t.typtype = 'e' THEN ARRAY['anyenum'::regtype::oid]
               WHEN t.typtype = 'r' THEN ARRAY['anyrange'::regtype::oid]
               WHEN t.typtype = 'm' THEN ARRAY['anymultirange'::regtype::oid]
               WHEN t.typtype = 'c' THEN ARRAY['record'::regtype::oid]
               WHEN t.typcategory = 'A' AND t.typlen = -1
                   THEN ARRAY[kind, 'anyarray'::regtype::oid]
               ELSE kind || ARRAY(
                   SELECT c.casttarget FROM pg_cast c JOIN pg_type p ON p.oid = c.casttarget
                   WHERE c.castsource = kind AND c.castmethod = 'b' AND c.castcontext = 'i'
                   ORDER BY p.typispreferred DESC, c.casttarget)
           END
    INTO candidates FROM pg_type t WHERE t.oid = kind;
    RETURN (
        SELECT format('OPERATOR(%I.%s)', n.nspname, chosen.oprname)
        FROM pg_opclass c
        JOIN pg_am m ON m.oid = c.opcmethod AND m.amname IN ('btree', 'hash')
        JOIN pg_amop a ON a.amopfamily = c.opcfamily AND a.amoppurpose = 's'
            AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
        JOIN pg_operator o ON o.oid = a.amopopr
        JOIN pg_operator chosen
            ON chosen.oid = CASE word WHEN 'ne' THEN o.oprnegate ELSE o.oid END
        JOIN pg_namespace n ON n.oid = chosen.oprnamespace
        WHERE c.opcdefault AND c.opcintype = ANY (candidates)
          AND (m.amname = 'hash' AND word IN ('eq', 'ne')
               OR m.amname = 'btree' AND a.amopstrategy = CASE word
                   WHEN 'lt' THEN 1 WHEN 'lte' THEN 2 WHEN 'gte' THEN 4
                   WHEN 'gt' THEN 5 ELSE 3 END)
        ORDER BY m.amname, array_position(candidates, c.opcintype)
        LIMIT 1
    );
END;
$$;
COMMENT ON FUNCTION pgembed._comparison(oid, text) IS
'The operator behind eq, ne, lt, lte, gt or gte: that of the type''s own default operator class, wherever it lives; NULL if the type has none.';


CREATE OR REPLACE FUNCTION pgembed._belongs_to(operator oid, kind oid)
RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_catalog.pg_operator AS o
        INNER JOIN pg_catalog.pg_type AS t ON t.oid = kind
        WHERE o.oid = operator AND (o.oprnamespace = 'pg_catalog'::regnamespace OR o.oprowner = t.typowner)
    ) OR EXISTS (
        SELECT FROM pg_catalog.pg_depend AS o
        INNER JOIN pg_catalog.pg_depend AS t ON t.refclassid = o.refclassid AND t.refobjid = o.refobjid
        WHERE o.classid = 'pg_catalog.pg_operator'::regclass AND o.objid = operator AND o.deptype = 'e'
            AND t.classid = 'pg_catalog.pg_type'::regclass AND t.objid = kind AND t.deptype = 'e'
    );
END;
$$;
COMMENT ON FUNCTION pgembed._belongs_to(oid, oid) IS
'Whether an operator is PostgreSQL''s own, or came with a type: with its extension or from its owner. Another''s would run its code with the rights of whoever filters.';


CREATE OR REPLACE FUNCTION pgembed._pattern_operator(
    kind oid, operator text, OUT expression text, OUT right_kind oid)
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname), o.oprright
    INTO expression, right_kind
    FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
    WHERE o.oprname = operator AND o.oprleft IN (kind, 'text'::regtype)
      AND o.oprright IN (kind, 'text'::regtype) AND pgembed._belongs_to(o.oid, kind)
    ORDER BY o.oprleft = kind DESC, o.oprright = kind DESC
    LIMIT 1;
END;
$$;
COMMENT ON FUNCTION pgembed._pattern_operator(oid, text) IS
'The operator behind like (~~) or ilike (~~*) for a type of strings, and the type of its pattern.';


CREATE OR REPLACE FUNCTION pgembed._value_text(value jsonb, kind oid)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shape text := jsonb_typeof(value);
    element oid := (
        SELECT t.typelem FROM pg_type t WHERE t.oid = kind AND t.typcategory = 'A');
BEGIN
    IF kind IN ('json'::regtype, 'jsonb'::regtype) THEN
        RETURN value::text;
    ELSIF shape = 'array' AND element <> 0 THEN
        RETURN pgembed._array_text(value, element);
    ELSIF shape IN ('array', 'object', 'null') THEN
        RAISE EXCEPTION 'filter: % is no value of type %',
            left(value::text, 100), format_type(kind, NULL)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Give a string, a number, true or false.';
    ELSIF shape = 'number' AND kind IN (
            'int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype) THEN
        RETURN trim_scale((value #>> '{}')::numeric)::text;
    END IF;
    RETURN value #>> '{}';
END;
$$;
COMMENT ON FUNCTION pgembed._value_text(jsonb, oid) IS
'A JSON value as the text that the input function of a type reads; 5.0 is 5 to an integer.';


CREATE OR REPLACE FUNCTION pgembed._array_text(elements jsonb, kind oid)
RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    nested boolean := kind NOT IN ('json'::regtype, 'jsonb'::regtype);
    delimiter text := (SELECT t.typdelim FROM pg_type t WHERE t.oid = kind);
BEGIN
    RETURN (
        SELECT '{' || coalesce(string_agg(
            CASE
                WHEN jsonb_typeof(e.value) = 'null' THEN 'NULL'
                WHEN jsonb_typeof(e.value) = 'array' AND nested
                    THEN pgembed._array_text(e.value, kind)
                ELSE '"' || replace(replace(
                    pgembed._value_text(e.value, kind), E'\\', E'\\\\'), '"', E'\\"') || '"'
            END, delimiter ORDER BY e.ordinality), '') || '}'
        FROM jsonb_array_elements(elements) WITH ORDINALITY e
    );
END;
$$;
COMMENT ON FUNCTION pgembed._array_text(jsonb, oid) IS
'A JSON array as PostgreSQL''s text form of an array of the given element type.';


CREATE OR REPLACE FUNCTION pgembed._frequent_value(value jsonb, kind oid, OUT given text, OUT name text)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shape text := jsonb_typeof(value);
    digits numeric := CASE shape WHEN 'number' THEN value::numeric END;
BEGIN
    IF shape = 'string' AND kind IN ('text'::regtype, 'varchar'::regtype) THEN
        name := CASE kind WHEN 'text'::regtype THEN 'pg_catalog.text' ELSE 'pg_catalog."varchar"' END;
        given := value #>> '{}';
    ELSIF shape = 'boolean' AND kind = 'bool'::regtype THEN
        name := 'pg_catalog.bool';
        given := value #>> '{}';
    ELSIF shape = 'number' AND kind = 'numeric'::regtype THEN
        name := 'pg_catalog."numeric"';
        given := value #>> '{}';
    ELSIF shape = 'number' AND kind IN ('int4'::regtype, 'int8'::regtype)
        AND abs(digits) < 2147483648 AND digits = trunc(digits)
    THEN
        name := CASE kind WHEN 'int4'::regtype THEN 'pg_catalog.int4' ELSE 'pg_catalog.int8' END;
        given := trim_scale(digits)::text;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgembed._frequent_value(jsonb, oid) IS
'What most filters compare with: a JSON value that surely is one of a type that most columns have, as its text, and the name of the type. NULL when in doubt. A search waits for this, and asking the catalogs takes longer.';


CREATE OR REPLACE FUNCTION pgembed._like_pattern(part text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN '%' || replace(replace(replace(part, E'\\', E'\\\\'), '%', E'\\%'), '_', E'\\_') || '%';
END;
$$;
COMMENT ON FUNCTION pgembed._like_pattern(text) IS
'The pattern of what contains a text, character for character.';
