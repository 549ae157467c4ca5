"""Workloads to give advice on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.integration.search.support import Connection, Matrix

ROWS, WIDTH = 6000, 16


def vectors() -> Matrix:
    """Return 6,000 vectors of 16 dimensions."""
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)


def recorded(connection: Connection) -> list[Any]:
    """Return the filters on record, in order."""
    query = "SELECT filter FROM pgembed.recorded_filter ORDER BY id"
    return [row[0] for row in connection.execute(query)]


def workload(connection: Connection, *counted: tuple[dict[str, Any], int]) -> None:
    """Put filters into table workload, each so many times."""
    connection.execute(
        "DROP TABLE IF EXISTS workload; CREATE TABLE workload (filter jsonb)"
    )
    for where, count in counted:
        for _ in range(count):
            connection.execute("INSERT INTO workload VALUES (%s)", [json.dumps(where)])
