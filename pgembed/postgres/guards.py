"""What must hold before the schema is touched: versions, extensions, ownership."""

from __future__ import annotations

import dataclasses

import psycopg
from psycopg import errors, sql

from pgembed.errors import InstallError
from pgembed.postgres.connection import (
    Connection,
    extension_schema,
    fetch_all,
    fetch_one,
)

MIN_SERVER = 150000
MIN_PGVECTOR = (0, 8)

_FOREIGN = """
    SELECT o.kind, o.name, r.rolname
    FROM (
        SELECT 'relation', c.oid::pg_catalog.regclass::pg_catalog.text, c.relowner
        FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = %(schema)s::pg_catalog.oid
          AND c.relkind NOT IN ('i', 'I', 't')
        UNION ALL
        SELECT 'function', p.oid::pg_catalog.regprocedure::pg_catalog.text, p.proowner
        FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = %(schema)s::pg_catalog.oid
        UNION ALL
        SELECT 'type', t.oid::pg_catalog.regtype::pg_catalog.text, t.typowner
        FROM pg_catalog.pg_type AS t
        WHERE t.typnamespace = %(schema)s::pg_catalog.oid
          AND t.typtype IN ('d', 'e', 'r', 'b') AND t.typelem = 0::oid
        UNION ALL
        SELECT 'operator', o.oid::pg_catalog.regoperator::pg_catalog.text, o.oprowner
        FROM pg_catalog.pg_operator AS o
        WHERE o.oprnamespace = %(schema)s::pg_catalog.oid
    ) AS o (kind, name, owner)
    JOIN pg_catalog.pg_roles AS r ON r.oid = o.owner
    WHERE %(all)s OR (
        o.owner <> %(owner)s::pg_catalog.oid AND NOT r.rolsuper
        -- Made for the owners of tables, who cannot create anything here.
        AND NOT (
            o.kind = 'function'
            AND o.name ~ '^pgembed[.]_capture_[0-9]+_[a-z]+(_[0-9a-f]+)?[(][)]$'
            AND NOT pg_catalog.has_schema_privilege(
                r.oid, %(schema)s::pg_catalog.oid, 'CREATE'))
    )
    ORDER BY 1, 2
"""


_PUBLIC = """
    SELECT o.name
    FROM (
        SELECT p.oid::pg_catalog.regprocedure::pg_catalog.text, p.proowner,
            coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
        FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
        UNION ALL
        SELECT c.oid::pg_catalog.regclass::pg_catalog.text, c.relowner, c.relacl
        FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = pg_catalog.to_regnamespace('pgembed')::oid
        UNION ALL
        SELECT 'schema pgembed', n.nspowner, n.nspacl
        FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pgembed'
    ) AS o (name, owner, acl)
    -- What belongs to owners of tables they alone can mend: pgembed.reconcile does.
    WHERE pg_catalog.pg_has_role(o.owner, 'USAGE')
        AND EXISTS (
            SELECT FROM pg_catalog.aclexplode(o.acl) AS a WHERE a.grantee = 0::oid)
    ORDER BY 1
"""


@dataclasses.dataclass(frozen=True)
class Schema:
    """The schema pgembed as it was found."""

    oid: int
    owner: str
    owner_oid: int
    installed: bool


def open_to_public(connection: Connection) -> list[str]:
    """Return what in schema pgembed anybody may use; of what this role may change."""
    return [name for (name,) in fetch_all(connection, _PUBLIC)]


def require_versions(connection: Connection) -> None:
    """Raise InstallError for a PostgreSQL that is too old."""
    version = connection.info.server_version
    if version < MIN_SERVER:
        raise InstallError(
            f"the server is PostgreSQL {version // 10000}, but pgembed needs "
            f"{MIN_SERVER // 10000} or later: upgrade it, or try 'pgembed up'"
        )


def extension_place(connection: Connection) -> str | None:
    """Return the schema for extensions to be created in: public as a rule.

    Where that is missing, the first one of the search_path; None where there is none.
    """
    (place,) = fetch_one(
        connection,
        """
        SELECT coalesce(
            (SELECT n.nspname FROM pg_catalog.pg_namespace AS n
             WHERE n.nspname = 'public'),
            (SELECT s.name
             FROM pg_catalog.unnest(pg_catalog.current_schemas(false))
                 WITH ORDINALITY AS s (name, position)
             WHERE s.name <> 'pgembed' AND s.name !~ '^pg_'
             ORDER BY s.position LIMIT 1))
        """,
    )
    return place and str(place)


def require_vector(connection: Connection, place: str | None) -> str:
    """Return the schema of pgvector, which is created in *place* when permitted.

    Raises InstallError saying what to do when it is missing or too old.
    """
    if extension_schema(connection, "vector") is None:
        if place is None:
            raise InstallError(
                "extension vector is missing, and there is neither a schema public nor "
                "another of the search_path to create it in: run 'CREATE EXTENSION "
                "vector SCHEMA ...' with a schema of yours, then install again"
            )
        failure = create_extension(connection, "vector", place)
        if failure is not None:
            raise InstallError(
                f"extension vector cannot be created ({failure}): install pgvector "
                "0.8 or later on the server (package postgresql-NN-pgvector), then let "
                "a superuser run 'CREATE EXTENSION vector' in this database"
            )
    version = extension_version(connection, "vector")
    if version < MIN_PGVECTOR:
        text = ".".join(map(str, version))
        raise InstallError(
            f"the database has pgvector {text}, but pgembed needs 0.8 or later: "
            "upgrade the server's package, then run 'ALTER EXTENSION vector UPDATE'"
        )
    schema = extension_schema(connection, "vector")
    assert schema is not None  # noqa: S101 - created above
    return schema


def offer_dblink(connection: Connection, place: str | None) -> str | None:
    """Return the schema of dblink, which is created in *place* when permitted.

    One that is created here is for its owner alone: only then can a session keep its
    connection to a worker, since whoever may execute dblink can use it too.
    """
    if (
        place is not None
        and extension_schema(connection, "dblink") is None
        and create_extension(connection, "dblink", place) is None
    ):
        _revoke_from_public(connection, "dblink")
    return extension_schema(connection, "dblink")


def _revoke_from_public(connection: Connection, extension: str) -> None:
    functions = fetch_all(
        connection,
        """
        SELECT n.nspname, p.proname,
            pg_catalog.pg_get_function_identity_arguments(p.oid)
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
        JOIN pg_catalog.pg_proc AS p ON p.oid = d.objid
        JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
        WHERE e.extname = %s AND d.deptype = 'e'
            AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass::oid
            AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass::oid
        """,
        (extension,),
    )
    for schema, name, arguments in functions:
        connection.execute(
            sql.SQL("REVOKE ALL ON FUNCTION {}({}) FROM PUBLIC").format(
                sql.Identifier(schema, name), sql.SQL(arguments)
            )
        )


def extension_version(connection: Connection, name: str) -> tuple[int, ...]:
    """Return the version of an installed extension as numbers."""
    row = fetch_one(
        connection,
        "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = %s",
        (name,),
    )
    return tuple(int(part) for part in str(row[0]).split(".") if part.isdigit())


def create_extension(connection: Connection, name: str, schema: str) -> str | None:
    """Create an extension; return why that cannot be done, or None."""
    statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}")
    try:
        with connection.transaction():
            connection.execute(
                statement.format(sql.Identifier(name), sql.Identifier(schema))
            )
    except psycopg.Error as error:
        return error.diag.message_primary or str(error)
    return None


def find_schema(connection: Connection) -> Schema | None:
    """Return what is known of schema pgembed, or None when there is none."""
    row = fetch_one(
        connection,
        """
        SELECT n.oid, r.rolname, r.oid, EXISTS (
            SELECT FROM pg_catalog.pg_class AS c
            WHERE c.relnamespace = n.oid AND c.relname = 'installation')
        FROM pg_catalog.pg_namespace AS n
        JOIN pg_catalog.pg_roles AS r ON r.oid = n.nspowner
        WHERE n.nspname = 'pgembed'
        """,
    )
    return row and Schema(*row)


def has_table(connection: Connection, name: str) -> bool:
    """Whether schema pgembed has a table *name*; needs no rights on the schema."""
    row = fetch_one(
        connection,
        """
        SELECT FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'pgembed' AND c.relname = %s AND c.relkind = 'r'
        """,
        (name,),
    )
    return row is not None


def claim_schema(connection: Connection) -> None:
    """Create schema pgembed, or make sure that it is ours, and act as its owner.

    Raises InstallError naming the objects of others and their owners.
    """
    schema = find_schema(connection)
    if schema is None:
        _create_schema(connection)
        return
    become_owner(connection, schema)
    refuse_foreign(connection, schema)


def _create_schema(connection: Connection) -> None:
    try:
        with connection.transaction():
            connection.execute("CREATE SCHEMA pgembed")
    except errors.InsufficientPrivilege:
        user, database = fetch_one(
            connection, "SELECT current_user, pg_catalog.current_database()"
        )
        raise InstallError(
            f"role {user!r} may not create a schema in database {database!r}: let the "
            f"database's owner run 'CREATE SCHEMA pgembed AUTHORIZATION \"{user}\"'"
        ) from None


def become_owner(connection: Connection, schema: Schema) -> None:
    """Act as the schema's owner until the transaction ends.

    A superuser does not do that for an ordinary owner: whoever may create a schema
    could have put one in the way, to be filled with a superuser's work.
    """
    user, is_super, member, owner_super = fetch_one(
        connection,
        """
        SELECT current_user, u.rolsuper,
            pg_catalog.pg_has_role(current_user, %(owner)s::pg_catalog.oid, 'MEMBER'),
            o.rolsuper
        FROM pg_catalog.pg_roles AS u, pg_catalog.pg_roles AS o
        WHERE u.rolname = current_user AND o.oid = %(owner)s::pg_catalog.oid
        """,
        {"owner": schema.owner_oid},
    )
    if user == schema.owner:
        return
    if not member or (is_super and not owner_super):
        raise InstallError(
            f"schema pgembed belongs to role {schema.owner!r}, and you are {user!r}: "
            f"connect as {schema.owner!r}. If that role should not have it, look at "
            "what it holds and rename or drop it; nothing was touched"
        )
    connection.execute(
        sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(schema.owner))
    )


def refuse_foreign(connection: Connection, schema: Schema) -> None:
    """Raise InstallError when the schema holds objects that are not ours."""
    names = foreign_objects(connection, schema)
    if names:
        listing = "\n".join(f"  {name}" for name in names)
        raise InstallError(
            f"schema pgembed holds objects that pgembed did not make:\n{listing}\n"
            "They are not touched. Move them with ALTER … SET SCHEMA, or drop them, "
            "and try again"
        )


def foreign_objects(connection: Connection, schema: Schema) -> list[str]:
    """Return the objects in the schema that are not ours, with their owners.

    In a schema that was never installed into, any object is one.
    """
    rows = fetch_all(
        connection,
        _FOREIGN,
        {
            "schema": schema.oid,
            "owner": schema.owner_oid,
            "all": not schema.installed,
        },
    )
    return [f"{kind} {name} (owner {owner})" for kind, name, owner in rows]
