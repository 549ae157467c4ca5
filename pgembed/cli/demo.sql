-- PostgreSQL's own manual page of itself: every function and every setting, one row each.

CREATE TABLE public.manual (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    name text NOT NULL,
    arguments text,
    argument_count integer,
    result text,
    volatility text,
    description text NOT NULL
);

INSERT INTO public.manual (
    kind, name, arguments, argument_count, result, volatility, description
)
SELECT
    CASE p.prokind
        WHEN 'a' THEN 'aggregate'
        WHEN 'w' THEN 'window function'
        WHEN 'p' THEN 'procedure'
        ELSE 'function'
    END,
    p.proname,
    pg_catalog.pg_get_function_arguments(p.oid),
    p.pronargs,
    pg_catalog.pg_get_function_result(p.oid),
    CASE p.provolatile
        WHEN 'i' THEN 'immutable'
        WHEN 's' THEN 'stable'
        ELSE 'volatile'
    END,
    d.description
FROM pg_catalog.pg_proc AS p
INNER JOIN pg_catalog.pg_description AS d
    ON d.objoid = p.oid AND d.classoid = 'pg_catalog.pg_proc'::regclass
WHERE p.pronamespace = 'pg_catalog'::regnamespace
ORDER BY p.proname, p.oid;

INSERT INTO public.manual (kind, name, result, description)
SELECT
    'setting',
    s.name,
    s.vartype,
    pg_catalog.concat_ws(' ', s.short_desc, s.extra_desc)
FROM pg_catalog.pg_settings AS s
ORDER BY s.name;
