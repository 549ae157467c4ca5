"""What a person reads when something went wrong."""

from __future__ import annotations

import psycopg


def explain(error: Exception) -> str:
    """Return the message of an error; PostgreSQL's detail and hint on further lines."""
    if not isinstance(error, psycopg.Error) or error.diag.message_primary is None:
        return str(error)
    diagnosis = error.diag
    lines = [
        diagnosis.message_primary,
        diagnosis.message_detail,
        diagnosis.message_hint,
    ]
    return "\n".join(line for line in lines if line)
