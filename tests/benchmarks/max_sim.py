"""Where MaxSim is computed best: ``python -m tests.benchmarks.max_sim``.

Milliseconds for one document, on Debian's PostgreSQL: pgembed.max_sim, which is SQL;
the same in PL/Python with the standard library alone; and a document's vectors as text
and back, which is the least that it takes to hand them to a worker.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
import psycopg

from pgembed.postgres.connection import connect
from pgembed.postgres.vectors import Float32, VectorArray
from tests.harness.debian import HOW_TO_INSTALL, installed_major
from tests.harness.server import running_debian_server

Connection = psycopg.Connection[Any]

_PLPYTHON = """
    CREATE FUNCTION max_sim_plpython(query vector[], document vector[])
    RETURNS double precision LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL SAFE
    AS $$
from operator import mul
rows = [list(map(float, v[1:-1].split(","))) for v in query]
columns = [list(map(float, v[1:-1].split(","))) for v in document]
return sum(max(sum(map(mul, r, c)) for c in columns) for r in rows)
    $$
"""

# What is computed for each document, and of how many it can be afforded.
_WAYS = {
    "SQL": ("pgembed.max_sim(%s::vector[], vectors)", 200),
    "PL/Python": ("max_sim_plpython(%s::vector[], vectors)", 10),
    "as text, back": ("%s::vector[] = vectors::text::vector[]", 50),
}


def main() -> None:
    """Measure, check the answers against NumPy, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--query", type=int, default=32, help="vectors of the query")
    parser.add_argument("--document", type=int, default=100, help="of a document")
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if installed_major() is None:
        sys.exit(f"no PostgreSQL with PL/Python here: {HOW_TO_INSTALL}")
    random = np.random.default_rng(7)
    query = _normal(random, arguments.query, arguments.dimensions)
    documents = [
        _normal(random, arguments.document, arguments.dimensions) for _ in range(200)
    ]
    with running_debian_server() as server:
        template = server.installed_template("dblink")
        with server.database(template) as name, connect(server.dsn(name)) as connection:
            _fill(connection, documents)
            _check(connection, query, documents)
            print(f"{'ms a document':16}{'best':>8}{'median':>8}")
            for way, (expression, count) in _WAYS.items():
                taken = [
                    _milliseconds(connection, expression, query, count)
                    for _ in range(arguments.rounds)
                ]
                print(f"{way:16}{min(taken):8.2f}{statistics.median(taken):8.2f}")


def _normal(random: np.random.Generator, rows: int, dimensions: int) -> Float32:
    values = random.standard_normal((rows, dimensions))
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Float32 = (values / lengths).astype(np.float32)
    return unit


def _fill(connection: Connection, documents: list[Float32]) -> None:
    connection.execute("CREATE EXTENSION plpython3u")
    connection.execute(_PLPYTHON)
    connection.execute("CREATE TABLE document (id int PRIMARY KEY, vectors vector[])")
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO document VALUES (%s, %s)",
            [(i, VectorArray(vectors)) for i, vectors in enumerate(documents)],
        )
    connection.execute("ANALYZE document")


def _check(connection: Connection, query: Float32, documents: list[Float32]) -> None:
    wanted = (query @ documents[0].T).max(axis=1).sum()
    for way in ("SQL", "PL/Python"):
        statement = f"SELECT {_WAYS[way][0]} FROM document WHERE id = 0".encode()
        row = connection.execute(statement, (VectorArray(query),)).fetchone()
        assert row is not None
        np.testing.assert_allclose(row[0], wanted, rtol=1e-4)


def _milliseconds(
    connection: Connection, expression: str, query: Float32, count: int
) -> float:
    # OFFSET 0 keeps count() from doing without the values.
    statement = (
        f"SELECT count(v) FROM (SELECT {expression} AS v FROM document "
        f"WHERE id < {count} OFFSET 0) AS d"
    ).encode()
    started = time.perf_counter()
    connection.execute(statement, (VectorArray(query),))
    return (time.perf_counter() - started) / count * 1000


if __name__ == "__main__":
    main()
