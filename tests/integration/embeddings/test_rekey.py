"""Keys that change hands: swaps, shifts, and both within a deferred constraint."""

from __future__ import annotations

import itertools

from tests.harness.sql_worker import Connection, SqlWorker, assert_converged, pending
from tests.integration.embeddings.support import declare

NAMES = ("docs_body", "cut", "cleared", "cleared_cut")
STATEMENTS = [
    "UPDATE docs SET id = CASE id WHEN 1 THEN 2 WHEN 2 THEN 1 ELSE id END",
    "UPDATE docs SET id = id + 1",
    "UPDATE docs SET id = id - 1",
    "UPDATE docs SET id = 5 - id",
    "UPDATE docs SET id = id % 4 + 1, body = body || '!' ",
    "WITH gone AS (DELETE FROM docs WHERE id = 2) UPDATE docs SET id = 2 WHERE id = 3",
    "WITH gone AS (DELETE FROM docs WHERE id = 1) "
    "INSERT INTO docs VALUES (1, 'a new one')",
    "WITH new AS (INSERT INTO docs VALUES (1, 'a new one')) "
    "DELETE FROM docs WHERE id = 1",
    "BEGIN; UPDATE docs SET id = 2 WHERE id = 1; "
    "UPDATE docs SET id = 1 WHERE body = 'row 2'; COMMIT",
    "BEGIN; UPDATE docs SET id = 3; DELETE FROM docs WHERE body <> 'row 3'; COMMIT",
    "BEGIN; UPDATE docs SET id = 3; DELETE FROM docs WHERE body <> 'row 1'; COMMIT",
]


def four_rows(
    connection: Connection, worker: SqlWorker, order: tuple[int, ...]
) -> None:
    connection.execute("TRUNCATE docs")
    for number in order:
        connection.execute(
            "INSERT INTO docs VALUES (%s, %s)", (number, f"row {number}")
        )
    worker.drain()


def test_deferrable_keys(db: Connection, worker: SqlWorker) -> None:
    db.execute(
        "CREATE TABLE docs "
        "(id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, body text)"
    )
    declare_four(db)
    orders = list(itertools.islice(itertools.permutations(range(1, 5)), 0, 24, 9))
    for statement, order in itertools.product(STATEMENTS, orders):
        four_rows(db, worker, order)
        db.execute(statement.encode())
        worker.drain()
        for name in NAMES:
            assert_converged(db, name)


def declare_four(db: Connection) -> None:
    declare(db, "docs", "body")
    declare(db, "docs", "body", name="cut", chunk_tokens=8)
    declare(db, "docs", "body", name="cleared", target_column="v", on_change="clear")
    declare(db, "docs", "body", name="cleared_cut", chunk_tokens=8, on_change="clear")


def test_immediate_keys_shifted_in_order(db: Connection, worker: SqlWorker) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    declare_four(db)
    four_rows(db, worker, (4, 3, 2, 1))
    db.execute("UPDATE docs SET id = id + 1")
    assert pending(db, "docs_body") == 4
    worker.drain()
    for name in NAMES:
        assert_converged(db, name)


def test_swap_while_the_rows_are_embedded(db: Connection, worker: SqlWorker) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY DEFERRABLE, body text)")
    declare_four(db)
    four_rows(db, worker, (1, 2, 3, 4))
    db.execute("UPDATE docs SET body = body || ' again'")
    claims = [worker.claim(name) for name in NAMES]
    db.execute("UPDATE docs SET id = 5 - id")
    for claim in claims:
        assert worker.complete(claim) == claim.slots
    worker.drain()
    for name in NAMES:
        assert_converged(db, name)


def test_rekey_while_the_row_is_embedded(db: Connection, worker: SqlWorker) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    declare_four(db)
    db.execute("INSERT INTO docs VALUES (1, 'one two three')")
    claims = [worker.claim(name) for name in NAMES]
    db.execute("UPDATE docs SET id = 2")
    db.execute("INSERT INTO docs VALUES (1, 'another row')")
    for claim in claims:
        assert worker.complete(claim) == [1]
    worker.drain()
    for name in NAMES:
        assert_converged(db, name)
