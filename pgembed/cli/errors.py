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
# PostgreSQL does not say in which schema that is which a role may not use.
_OF_ROLES = re.compile(
    r" for (schema pgembed|function \w+|(table|view|sequence) (installation|embedding|"
    r"embedding_status|job_\d+|lease_seq|progress|failures|workers?|models?|model_file|"
    r"blob_chunk|call|batch(es|_progress)?|layouts?))$"
)


def explain(error: Exception) -> str:
    """Return the message of an error; PostgreSQL's detail and hint on further lines."""
    if not isinstance(error, psycopg.Error) or error.diag.message_primary is None:
        return str(error)
    diagnosis = error.diag
    hint = diagnosis.message_hint
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and not hint:
        hint = _permission(str(diagnosis.message_primary))
    if isinstance(error, _MISSING) and _OURS.search(str(diagnosis.message_primary)):
        hint = (
            "pgembed is not installed in this database, or an older version of it is: "
            "run 'pgembed install' with the same DSN or, where pgembed is an "
            "extension, ALTER EXTENSION pgembed UPDATE; 'pgembed doctor' tells."
        )
    lines = [diagnosis.message_primary, diagnosis.message_detail, hint]
    return "\n".join(line for line in lines if line)


def _permission(message: str) -> str | None:
    if _OF_ROLES.search(message):
        return (
            "GRANT pgembed_user, pgembed_owner or pgembed_worker to the role, which "
            "'pgembed install --roles' makes."
        )
    return "Its owner may grant that." if " for " in message else None
