"""What capture costs writers: ``python -m tests.benchmarks.capture``.

INSERT of 200,000 rows, UPDATE of an unrelated column and UPDATE of the content, each
into a plain table and into the same table with an embedding, in turns on one server;
microseconds per row over the plain table, medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import psycopg

from pgembed.postgres.connection import connect
from tests.harness.models import register_model
from tests.harness.server import running_server

COLUMNS = "id bigint PRIMARY KEY, title text, body text, price integer"
STEPS = {
    "insert": "INSERT INTO {table} SELECT i, 'title ' || i, 'body of row ' || i, i "
    "FROM generate_series(1, {rows}) AS i",
    "update unrelated column": "UPDATE {table} SET price = price + 1",
    "update content": "UPDATE {table} SET body = body || '!'",
}


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with (
        running_server() as databases,
        databases.database(databases.installed_template()) as name,
        connect(databases.dsn(name), purpose="benchmark") as connection,
    ):
        register_model(connection, "tiny", dimensions=8)
        connection.execute(f"CREATE TABLE plain ({COLUMNS})".encode())
        connection.execute(f"CREATE TABLE kept ({COLUMNS})".encode())
        connection.execute("SELECT pgembed.create_embedding('kept', 'body', 'tiny')")
        seconds = [measure(connection, arguments.rows) for _ in range(arguments.rounds)]
    report(seconds, arguments.rows)


def measure(
    connection: psycopg.Connection[Any], rows: int
) -> dict[tuple[str, str], float]:
    """Return the seconds of each step on each table."""
    seconds = {}
    for step, statement in STEPS.items():
        for table in ("plain", "kept"):
            if step == "insert":
                connection.execute(f"TRUNCATE {table}".encode())
            connection.execute("CHECKPOINT")
            start = time.perf_counter()
            connection.execute(statement.format(table=table, rows=rows).encode())
            seconds[step, table] = time.perf_counter() - start
            connection.execute(f"VACUUM {table}".encode())
    return seconds


def report(seconds: list[dict[tuple[str, str], float]], rows: int) -> None:
    """Print medians per row and the difference, in microseconds."""
    print(f"{'microseconds per row':28} {'plain':>8} {'kept':>8} {'cost':>8}")
    for step in STEPS:
        plain, kept = (
            statistics.median(s[step, table] for s in seconds) / rows * 1e6
            for table in ("plain", "kept")
        )
        print(f"{step:28} {plain:8.2f} {kept:8.2f} {kept - plain:8.2f}")


if __name__ == "__main__":
    main()
