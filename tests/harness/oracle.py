"""The check that ends every fault test: each row's vector is computed anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import psycopg

from pgembed.models.session import Model
from pgembed.postgres.connection import fetch_all, fetch_one

# The shape of a batch changes the last bits of a vector.
TOLERANCE = 1e-4

Connection = psycopg.Connection[Any]


def assert_converged(
    connection: Connection,
    model: Model,
    *,
    table: str = "docs",
    name: str | None = None,
    failed: Mapping[int, str] | None = None,
) -> None:
    """Check that each row has the vector of its content now, or failed as expected.

    *table* has columns id, body and body_embedding; *failed* says which ids are in
    pgembed.failures, and a part of the reason. Nothing waits, nothing is left over.
    """
    name = name or f"{table}_body"
    reasons = _failures(connection, name)
    for key, reason in (failed or {}).items():
        assert reason in reasons.get(key, ""), reasons
    assert reasons.keys() == (failed or {}).keys(), reasons
    assert stale_rows(connection, model, table=table, failed=reasons) == []
    assert unsettled(connection, name) == {"waiting": 0, "held": 0, "orphans": 0}


def stale_rows(
    connection: Connection,
    model: Model,
    *,
    table: str = "docs",
    failed: Mapping[int, str] | None = None,
) -> list[int]:
    """Return the ids of rows whose vector is not that of their content."""
    query = f"SELECT id, body, body_embedding FROM {table} ORDER BY id"
    found = [
        row for row in fetch_all(connection, query) if row[0] not in (failed or {})
    ]
    full = [row for row in found if row[1] is not None and row[1].strip()]
    wanted = model.embed([body for _, body, _ in full])
    stale = [
        key
        for (key, _, vector), right in zip(full, wanted, strict=True)
        if vector is None or np.abs(vector - right).max() > TOLERANCE
    ]
    blank = {key for key, _, _ in found} - {key for key, _, _ in full}
    return stale + [k for k, _, vector in found if k in blank and vector is not None]


def unsettled(connection: Connection, name: str) -> dict[str, int]:
    """Count jobs that wait, jobs under a lease, and jobs whose row is gone."""
    number, source = fetch_one(
        connection,
        "SELECT id, source::regclass::text FROM pgembed.embedding WHERE name = %s",
        (name,),
    )
    query = f"""
        SELECT count(*) FILTER (WHERE j.pgembed_available_at IS NOT NULL),
            count(*) FILTER (WHERE j.pgembed_lease IS NOT NULL),
            count(*) FILTER (WHERE s.id IS NULL)
        FROM pgembed.job_{number} AS j LEFT JOIN {source} AS s USING (id)
    """
    counts = fetch_one(connection, query)
    return dict(zip(("waiting", "held", "orphans"), counts, strict=True))


def _failures(connection: Connection, name: str) -> dict[int, str]:
    query = "SELECT key, error FROM pgembed.failures WHERE embedding = %s"
    return {key["id"]: error for key, error in fetch_all(connection, query, (name,))}
