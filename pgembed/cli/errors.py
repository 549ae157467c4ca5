"""What a person reads when something went wrong."""

from __future__ import annotations

import re

import psycopg

_MISSING = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
)
_OURS = re.compile(r"\bpgembed[.\"]")


def explain(error: Exception) -> str:
    """Return the message of an error; PostgreSQL's detail and hint on further lines."""
    if not isinstance(error, psycopg.Error) or error.diag.message_primary is None:
        return str(error)
    diagnosis = error.diag
    hint = diagnosis.message_hint
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and not hint:
        hint = (
            "Its owner may grant that. For what is in schema pgembed: GRANT "
            "pgembed_user, pgembed_owner or pgembed_worker to the role, which "
            "'pgembed install --roles' makes."
        )
    if isinstance(error, _MISSING) and _OURS.search(str(diagnosis.message_primary)):
        hint = (
            "pgembed is not installed in this database, or an older version of it is: "
            "run 'pgembed install' with the same DSN or, where pgembed is an "
            "extension, ALTER EXTENSION pgembed UPDATE; 'pgembed doctor' tells."
        )
    lines = [diagnosis.message_primary, diagnosis.message_detail, hint]
    return "\n".join(line for line in lines if line)
