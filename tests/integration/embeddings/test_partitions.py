"""Partitioned tables: rows that move, partitions that come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    expire,
    job_table,
    rows,
    value,
)
from tests.integration.embeddings.support import catalog, declare, refused, status

NAMES = ("docs_body", "cut")


@pytest.fixture
def partitioned(scratch: Connection, scratch_worker: SqlWorker) -> Iterator[Connection]:
    """Return a database with docs by region, one of them by year; kept twice."""
    scratch.execute(
        """
        CREATE TABLE docs (region text, id int, year int, body text,
            PRIMARY KEY (id, region, year)) PARTITION BY LIST (region);
        CREATE TABLE docs_a PARTITION OF docs FOR VALUES IN ('a');
        CREATE SCHEMA far;
        CREATE TABLE far.docs_b PARTITION OF docs FOR VALUES IN ('b')
            PARTITION BY RANGE (year);
        -- Its columns stand in another order.
        CREATE TABLE docs_b_old (body text, year int NOT NULL, more int,
            region text NOT NULL, id int NOT NULL);
        ALTER TABLE docs_b_old DROP COLUMN more;
        ALTER TABLE far.docs_b ATTACH PARTITION docs_b_old
            FOR VALUES FROM (0) TO (2000);
        CREATE TABLE docs_b_new PARTITION OF far.docs_b
            FOR VALUES FROM (2000) TO (3000);
        INSERT INTO docs VALUES ('a', 1, 1990, 'one'),
            ('b', 1, 1990, 'two'), ('b', 2, 2020, 'three four five');
        """
    )
    declare(scratch, "docs", "body")
    declare(scratch, "docs", "{region} {body}", name="cut", chunk_tokens=8)
    scratch_worker.drain()
    yield scratch
    converge(scratch, scratch_worker)
    for name in NAMES:
        assert value(scratch, "SELECT pgembed.reconcile(%s)", name) == 0


def converge(connection: Connection, worker: SqlWorker) -> None:
    worker.drain()
    for name in NAMES:
        assert_converged(connection, name)


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO docs VALUES ('a', 5, 1, 'x'), ('b', 5, 1, 'y'), "
        "('b', 6, 2000, 'z')",
        "INSERT INTO docs_b_old VALUES ('x', 1, 'b', 9)",
        "INSERT INTO far.docs_b VALUES ('b', 9, 2001, 'x')",
        "UPDATE docs SET region = 'a', id = id + 10 WHERE region = 'b'",
        "UPDATE docs SET year = 2001 WHERE year = 1990",
        "UPDATE docs SET year = 1, body = 'moved and changed'",
        "UPDATE docs_b_old SET body = 'x'",
        "UPDATE far.docs_b SET year = 1999",
        "DELETE FROM docs_b_new",
        "DELETE FROM docs",
        "TRUNCATE docs_b_new",
        "TRUNCATE far.docs_b",
        "TRUNCATE docs",
        "TRUNCATE docs_a, docs",
        "DROP TABLE docs_a; SELECT pgembed.reconcile(name) FROM pgembed.embedding",
        "DROP TABLE docs_a",
        "DROP TABLE far.docs_b",
    ],
)
def test_changes(
    partitioned: Connection, scratch_worker: SqlWorker, change: str
) -> None:
    partitioned.execute(change.encode())
    converge(partitioned, scratch_worker)


def test_row_that_moves_while_it_is_embedded(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    partitioned.execute("UPDATE docs SET body = body || '!'")
    claims = [scratch_worker.claim(name) for name in NAMES]
    partitioned.execute("UPDATE docs SET year = 2001 WHERE year = 1990")
    for claim in claims:
        assert scratch_worker.complete(claim) == claim.slots
    converge(partitioned, scratch_worker)


def test_partitions_created_and_attached_later(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    partitioned.execute(
        """
        CREATE TABLE docs_c PARTITION OF docs FOR VALUES IN ('c');
        INSERT INTO docs VALUES ('c', 1, 1, 'seen by the triggers');
        CREATE TABLE docs_d (LIKE docs INCLUDING ALL);
        INSERT INTO docs_d VALUES ('d', 1, 1, 'there before'), ('d', 2, 1, NULL);
        ALTER TABLE docs ATTACH PARTITION docs_d FOR VALUES IN ('d');
        """
    )
    converge(partitioned, scratch_worker)
    assert (
        value(
            partitioned, f"SELECT count(*) FROM {job_table(partitioned, 'docs_body')}"
        )
        == 6
    )
    partitioned.execute("TRUNCATE docs_c; TRUNCATE docs_d")
    for name in NAMES:
        assert_converged(partitioned, name)


def test_partition_detached(partitioned: Connection, scratch_worker: SqlWorker) -> None:
    partitioned.execute("ALTER TABLE far.docs_b DETACH PARTITION docs_b_new")
    converge(partitioned, scratch_worker)
    triggers = (
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'docs_b_new'::regclass "
        "AND tgname LIKE 'pgembed%'"
    )
    assert value(partitioned, triggers) == 0
    partitioned.execute("INSERT INTO docs_b_new VALUES ('b', 7, 2000, 'not ours')")
    partitioned.execute("TRUNCATE docs_b_new")


def test_truncating_what_was_a_partition(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    """Its rows stand in another partition by now; no worker has noticed yet."""
    partitioned.execute(
        """
        ALTER TABLE docs DETACH PARTITION docs_a;
        CREATE TABLE docs_a2 PARTITION OF docs FOR VALUES IN ('a');
        INSERT INTO docs SELECT * FROM docs_a;
        TRUNCATE docs_a;
        """
    )
    converge(partitioned, scratch_worker)


def test_triggers_that_fire_after_truncate_are_made_anew(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    """An earlier release looked for what was left over, in all partitions."""
    ((trigger, function),) = rows(
        partitioned,
        "SELECT pgembed._trigger_name(e.id, 'truncate'), "
        "pgembed._trigger_routine(e, 'truncate') FROM pgembed.embedding AS e "
        "WHERE name = 'cut'",
    )
    after = "SELECT count(*) FROM pg_trigger WHERE tgtype & 34 = 32"
    for table in ("docs", "docs_a", "far.docs_b", "docs_b_old", "docs_b_new"):
        rows(
            partitioned,
            f"CREATE OR REPLACE TRIGGER {trigger} AFTER TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {function}",
        )
    assert value(partitioned, after) == 5
    partitioned.execute("TRUNCATE docs_a")
    converge(partitioned, scratch_worker)
    assert value(partitioned, after) == 0


PARTITIONS = [
    ("docs", "docs_a", "IN ('a')"),
    ("docs", "far.docs_b", "IN ('b')"),
    ("far.docs_b", "docs_b_new", "FROM (2000) TO (3000)"),
]


@pytest.mark.parametrize(("parent", "part", "bound"), PARTITIONS)
def test_partition_changed_while_it_was_detached(
    partitioned: Connection,
    scratch_worker: SqlWorker,
    parent: str,
    part: str,
    bound: str,
) -> None:
    ((id_,),) = rows(partitioned, f"SELECT min(id) FROM {part}")
    rows(
        partitioned,
        f"""
        ALTER TABLE {parent} DETACH PARTITION {part};
        UPDATE {part} SET body = 'changed' WHERE id = {id_};
        UPDATE {part} SET id = 70 WHERE id > {id_};
        ALTER TABLE {parent} ATTACH PARTITION {part} FOR VALUES {bound};
        """,
    )
    converge(partitioned, scratch_worker)
    rows(partitioned, f"UPDATE {part} SET body = 'again'")
    converge(partitioned, scratch_worker)
    rows(
        partitioned,
        f"""
        ALTER TABLE {parent} DETACH PARTITION {part};
        DELETE FROM {part};
        ALTER TABLE {parent} ATTACH PARTITION {part} FOR VALUES {bound};
        """,
    )
    converge(partitioned, scratch_worker)


def test_partitions_that_stay_are_not_read_again(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    """What is done for a new partition would otherwise grow with the whole table."""
    scratch_worker.work()
    partitioned.execute("ALTER TABLE docs DISABLE TRIGGER ALL")
    partitioned.execute("UPDATE docs SET body = 'unseen' WHERE region = 'a'")
    partitioned.execute("ALTER TABLE docs ENABLE TRIGGER ALL")
    partitioned.execute("CREATE TABLE docs_c PARTITION OF docs FOR VALUES IN ('c')")
    partitioned.execute("INSERT INTO docs VALUES ('c', 1, 1, 'new')")
    for _ in range(5):
        assert scratch_worker.work() == dict.fromkeys(NAMES, 1)
    for name in NAMES:
        assert value(partitioned, "SELECT pgembed.reconcile(%s)", name) == 1


def test_jobs_of_a_partition_detached_while_they_are_claimed(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    partitioned.execute("UPDATE docs SET body = 'changed'")
    claims = [scratch_worker.claim(name) for name in NAMES]
    partitioned.execute("ALTER TABLE docs DETACH PARTITION docs_a")
    for claim in claims:
        settled = scratch_worker.complete(claim)
        assert len(settled) == 2
    for name in NAMES:
        expire(partitioned, name)
    converge(partitioned, scratch_worker)


def test_dropping_leaves_nothing_on_partitions(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    partitioned.execute("ALTER TABLE docs DETACH PARTITION docs_a")
    for name in NAMES:
        rows(partitioned, "SELECT pgembed.drop_embedding(%s, true)", name)
    triggers = [row for row in catalog(partitioned) if row[0] == "trigger"]
    left = [row for row in triggers if not row[1].startswith("pgembed.")]
    assert left == []
    declare(partitioned, "docs", "body")
    declare(partitioned, "docs", "body", name="cut", chunk_tokens=8)


def test_a_partition_as_source(
    partitioned: Connection, scratch_worker: SqlWorker
) -> None:
    partitioned.execute("ALTER TABLE docs ADD COLUMN v vector(3)")
    declare(partitioned, "docs_b_new", "body", name="part", target_column="v")
    declare(partitioned, "docs_b_new", "body", name="part_cut", chunk_tokens=8)
    scratch_worker.drain()
    partitioned.execute("UPDATE docs SET year = 2001 WHERE region = 'b'")
    partitioned.execute("INSERT INTO docs VALUES ('b', 4, 2001, 'four')")
    scratch_worker.drain()
    for name in ("part", "part_cut"):
        assert_converged(partitioned, name)
    partitioned.execute("UPDATE docs SET year = 1990 WHERE region = 'b'")
    partitioned.execute("TRUNCATE docs")
    for name in ("part", "part_cut"):
        assert_converged(partitioned, name)


@pytest.mark.parametrize(
    ("table", "owner", "other"),
    [
        ("docs_a", "docs", "docs_body"),
        ("far.docs_b", "docs", "docs_body"),
        ("docs_b_new", "docs", "docs_body"),
        ("docs", "far.docs_b", "of_b"),
        ("docs_b_new", "far.docs_b", "of_b"),
    ],
)
def test_a_column_belongs_to_one_embedding(
    partitioned: Connection, table: str, owner: str, other: str
) -> None:
    column = "body_embedding"
    if other == "of_b":
        column = "v"
        partitioned.execute("ALTER TABLE docs ADD COLUMN v vector(3)")
        rows(partitioned, "SELECT pgembed.adopt_vectors(%s, 'v', 'of_b')", owner)
    for call in (
        f"create_embedding('{table}', 'body', 'tiny', 'new', '{column}')",
        f"adopt_vectors('{table}', '{column}', 'new')",
    ):
        with refused(
            partitioned, "42710", message=f"belongs to the embedding '{other}'", hint=""
        ):
            rows(partitioned, f"SELECT pgembed.{call}")
    if other == "of_b":
        rows(partitioned, "SELECT pgembed.adopt_vectors('docs_a', 'v', 'free')")
        rows(partitioned, "DELETE FROM pgembed.embedding WHERE kind = 'adopted'")


def test_status(partitioned: Connection, scratch_worker: SqlWorker) -> None:
    found = status(partitioned, "docs_body")
    assert (found["rows"], found["embedded"], found["pending"]) == (3, 3, 0)


@pytest.mark.parametrize("is_claimed", [False, True])
def test_a_source_becomes_a_partition_of_one_that_has_its_column(
    partitioned: Connection, scratch_worker: SqlWorker, is_claimed: bool
) -> None:
    """The parent's embedding keeps the column; the other writes no more."""
    partitioned.execute("CREATE TABLE docs_c (LIKE docs INCLUDING ALL)")
    partitioned.execute("INSERT INTO docs_c VALUES ('c', 1, 1, 'three', NULL)")
    part = declare(partitioned, "docs_c", "{body} {id}", target_column="body_embedding")
    scratch_worker.drain()
    claim = None
    if is_claimed:
        partitioned.execute("UPDATE docs_c SET body = 'four'")
        claim = scratch_worker.claim(part)
    partitioned.execute("ALTER TABLE docs ATTACH PARTITION docs_c FOR VALUES IN ('c')")
    converge(partitioned, scratch_worker)
    if claim is not None:
        scratch_worker.complete(claim)
    partitioned.execute("UPDATE docs SET year = 2 WHERE region = 'c'")
    converge(partitioned, scratch_worker)
    assert status(partitioned, part)["state"] == (
        "blocked: table public.docs_c became a partition of public.docs, where the "
        "embedding 'docs_body' keeps column body_embedding: "
        f"SELECT pgembed.drop_embedding('{part}')"
    )
    rows(partitioned, "SELECT pgembed.drop_embedding(%s)", part)


def test_a_source_becomes_a_partition_and_stops_being_one(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    scratch.execute(
        """
        CREATE TABLE docs (region text, id int, body text, PRIMARY KEY (region, id));
        CREATE TABLE parent (region text, id int, body text, PRIMARY KEY (region, id))
            PARTITION BY LIST (region);
        """
    )
    declare(scratch, "docs", "body")
    scratch.execute("INSERT INTO docs VALUES ('a', 1, 'one')")
    scratch_worker.drain()
    scratch.execute("ALTER TABLE parent ADD body_embedding vector(3)")
    scratch.execute("ALTER TABLE parent ATTACH PARTITION docs FOR VALUES IN ('a')")
    scratch.execute("INSERT INTO parent VALUES ('a', 2, 'before it is noticed')")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    scratch.execute("INSERT INTO parent VALUES ('a', 3, 'after')")
    assert len(rows(scratch, pending(scratch))) == 1
    scratch_worker.drain()
    scratch.execute("ALTER TABLE parent DETACH PARTITION docs")
    scratch_worker.drain()
    scratch.execute("INSERT INTO docs VALUES ('a', 4, 'alone again')")
    assert len(rows(scratch, pending(scratch))) == 1
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")


def pending(connection: Connection) -> str:
    table = job_table(connection, "docs_body")
    return f"SELECT 1 FROM {table} WHERE pgembed_available_at IS NOT NULL"
