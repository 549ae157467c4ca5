"""Roles without superuser rights."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

_numbers = itertools.count(1)


@contextlib.contextmanager
def ordinary_role(superuser_dsn: str, *, may_create: bool = True) -> Iterator[str]:
    """Create a login role for one database and yield the DSN to use it with.

    With *may_create* it may create schemas in that database. What it owns there is
    dropped with it.
    """
    database = conninfo_to_dict(superuser_dsn)["dbname"]
    names = {
        "role": sql.Identifier(f"test_role_{next(_numbers)}"),
        "database": sql.Identifier(str(database)),
    }
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
        superuser.execute(sql.SQL("CREATE ROLE {role} LOGIN").format(**names))
        if may_create:
            superuser.execute(
                sql.SQL("GRANT CREATE ON DATABASE {database} TO {role}").format(**names)
            )
        try:
            role = names["role"].as_string().strip('"')
            yield superuser_dsn.replace("postgres@", f"{role}@", 1)
        finally:
            superuser.execute(sql.SQL("DROP OWNED BY {role} CASCADE").format(**names))
            superuser.execute(sql.SQL("DROP ROLE {role}").format(**names))
