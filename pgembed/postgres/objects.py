"""The routines and views in schema pgembed: what is there, and dropping them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import psycopg
from psycopg import errors

from pgembed.errors import InstallError
from pgembed.postgres.connection import Connection, fetch_all


@dataclasses.dataclass(frozen=True)
class CatalogObject:
    """A routine or a view of schema pgembed, as the catalog has it."""

    kind: str
    """ROUTINE or VIEW: what DROP calls it."""
    identity: str
    """Its qualified and quoted name, with a routine's argument types."""
    oid: int
    stamp: str
    """Changes whenever the definition is written, be it with the same text."""


# The capture functions belong to embeddings: they come and go with these.
_OBJECTS = """
    SELECT 'ROUTINE', i.identity, p.oid, p.xmin::pg_catalog.text
    FROM pg_catalog.pg_proc AS p,
        pg_catalog.pg_identify_object('pg_catalog.pg_proc'::regclass, p.oid, 0) AS i
    WHERE p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
      AND p.proname !~ '^_capture_[0-9]+(_|$)'
    UNION ALL
    SELECT 'VIEW', i.identity, c.oid, r.xmin::pg_catalog.text
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = c.oid AND r.rulename = '_RETURN',
        pg_catalog.pg_identify_object('pg_catalog.pg_class'::regclass, c.oid, 0) AS i
    WHERE c.relnamespace = pg_catalog.to_regnamespace('pgembed')::oid
      AND c.relkind = 'v'
    ORDER BY 1, 2
"""

_GRANTS = """
    SELECT 'ROUTINE', p.proname, p.oid, a.privilege_type, a.is_grantable,
        a.grantee::pg_catalog.regrole::pg_catalog.text
    FROM pg_catalog.pg_proc AS p, pg_catalog.aclexplode(p.proacl) AS a
    WHERE p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
      AND a.grantee <> 0::oid AND a.grantee <> p.proowner
    UNION ALL
    SELECT 'TABLE', c.relname, c.oid, a.privilege_type, a.is_grantable,
        a.grantee::pg_catalog.regrole::pg_catalog.text
    FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl) AS a
    WHERE c.relnamespace = pg_catalog.to_regnamespace('pgembed')::oid
      AND c.relkind = 'v'
      AND a.grantee <> 0::oid AND a.grantee <> c.relowner
"""

_NAMES = """
    SELECT 'ROUTINE', p.proname, p.oid, i.identity
    FROM pg_catalog.pg_proc AS p,
        pg_catalog.pg_identify_object('pg_catalog.pg_proc'::regclass, p.oid, 0) AS i
    WHERE p.pronamespace = pg_catalog.to_regnamespace('pgembed')::oid
    UNION ALL
    SELECT 'TABLE', c.relname, c.oid, i.identity
    FROM pg_catalog.pg_class AS c,
        pg_catalog.pg_identify_object('pg_catalog.pg_class'::regclass, c.oid, 0) AS i
    WHERE c.relnamespace = pg_catalog.to_regnamespace('pgembed')::oid
      AND c.relkind = 'v'
"""


def routines_and_views(connection: Connection) -> dict[str, CatalogObject]:
    """Return the routines and views of schema pgembed by their identity."""
    rows = fetch_all(connection, _OBJECTS)
    return {row[1]: CatalogObject(*row) for row in rows}


def written_since(
    before: Mapping[str, CatalogObject], after: Mapping[str, CatalogObject]
) -> set[str]:
    """Return the identities in *after* that were created or replaced since *before*."""
    unchanged = {(found.oid, found.stamp) for found in before.values()}
    return {
        identity
        for identity, found in after.items()
        if (found.oid, found.stamp) not in unchanged
    }


def drop_what_can_go(
    connection: Connection, statements: Iterable[str]
) -> dict[str, psycopg.Error]:
    """Run DROP statements in rounds, so that their order does not matter.

    Returns those that failed because something else depends on the object, with the
    error. Other errors are raised.
    """
    failed: dict[str, psycopg.Error] = {}
    remaining = list(statements)
    while remaining:
        failed = {}
        for statement in remaining:
            try:
                with connection.transaction():
                    connection.execute(statement.encode())
            except errors.DependentObjectsStillExist as error:
                failed[statement] = error
        if len(failed) == len(remaining):
            break
        remaining = list(failed)
    return failed


def drop_all_or_refuse(connection: Connection, statements: Iterable[str]) -> None:
    """Run DROP statements; raise InstallError naming what of others depends on them."""
    failed = drop_what_can_go(connection, statements)
    if failed:
        details = "\n".join(
            f"{error.diag.message_primary}\n{error.diag.message_detail or ''}".strip()
            for error in failed.values()
        )
        raise InstallError(
            "objects that are not pgembed's depend on its schema:\n"
            f"{details}\nDrop or change them first; nothing was changed."
        )


def drop_statements(found: Iterable[CatalogObject]) -> list[str]:
    """Return the statements that drop *found*, without anything that depends on it."""
    return [f"DROP {each.kind} {each.identity}" for each in found]


Grants = list[tuple[str, str, int, str, bool, str]]


def grants(connection: Connection) -> Grants:
    """Return what the database's owner granted on routines and views, by name."""
    return fetch_all(connection, _GRANTS)


def grant_again(connection: Connection, before: Grants) -> None:
    """Grant on objects that were made anew what their predecessors' users had."""
    old = {oid for _, _, oid, *_ in before}
    new = [row for row in fetch_all(connection, _NAMES) if row[2] not in old]
    for kind, name, _, privilege, grantable, grantee in before:
        for identity in (r[3] for r in new if r[:2] == (kind, name)):
            option = " WITH GRANT OPTION" if grantable else ""
            connection.execute(
                f"GRANT {privilege} ON {kind} {identity} TO {grantee}{option}".encode()
            )
