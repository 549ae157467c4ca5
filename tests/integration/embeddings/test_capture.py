"""Every way to change a row ends in the right vectors, and queues only what changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.harness.models import register_model
from tests.harness.server import Databases
from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    pending,
    rows,
    value,
)
from tests.integration.embeddings.support import declare, documents

NAMES = ("docs_body", "cut")

# What is done to rows 1 (one), 2 (two), 3 (three), 4 (NULL): how many are queued then.
CHANGES = {
    "INSERT INTO docs (id, body) VALUES (5, 'five'), (6, NULL), (7, '')": 3,
    "INSERT INTO docs (id, body) SELECT i, 'x' FROM generate_series(5, 104) AS i": 100,
    "INSERT INTO docs (id, body) VALUES (1, 'x') ON CONFLICT DO NOTHING": 0,
    "INSERT INTO docs (id, body) VALUES (1, 'x'), (5, 'y') "
    "ON CONFLICT (id) DO UPDATE SET body = excluded.body": 2,
    "INSERT INTO docs (id, body) VALUES (1, 'one') "
    "ON CONFLICT (id) DO UPDATE SET body = excluded.body": 0,
    "MERGE INTO docs USING (VALUES (1, 'x'), (2, 'two'), (5, 'y'), (3, NULL)) "
    "AS n (id, body) ON n.id = docs.id "
    "WHEN MATCHED AND n.body IS NULL THEN DELETE "
    "WHEN MATCHED THEN UPDATE SET body = n.body "
    "WHEN NOT MATCHED THEN INSERT (id, body) VALUES (n.id, n.body)": 2,
    "UPDATE docs SET body = 'x'": 4,
    "UPDATE docs SET body = body": 0,
    "UPDATE docs SET price = price + 1, title = 'x'": 0,
    "UPDATE docs SET body = NULL WHERE id = 1": 1,
    "UPDATE docs SET body = '' WHERE id = 4": 1,
    "UPDATE docs SET body = 'ONE' WHERE id = 1": 1,
    "UPDATE docs SET id = id + 10": 4,
    "UPDATE docs SET id = id + 10, body = 'x' WHERE id = 1": 1,
    "UPDATE docs SET body_embedding = NULL WHERE false": 0,
    "DELETE FROM docs WHERE id < 3": 0,
    "DELETE FROM docs": 0,
    "TRUNCATE docs": 0,
    "WITH gone AS (DELETE FROM docs WHERE id = 1 RETURNING *) "
    "INSERT INTO docs (id, body) SELECT id + 10, body || '!' FROM gone": 1,
    "BEGIN; DELETE FROM docs WHERE id = 1; "
    "INSERT INTO docs (id, body) VALUES (1, 'again'); COMMIT": 1,
    "BEGIN; DELETE FROM docs; INSERT INTO docs (id, body) VALUES (1, 'one'); "
    "UPDATE docs SET body = 'x'; DELETE FROM docs; COMMIT": 0,
    "BEGIN; TRUNCATE docs; INSERT INTO docs (id, body) VALUES (1, 'x'); COMMIT": 1,
    "BEGIN; UPDATE docs SET body = 'x'; ROLLBACK": 0,
    "BEGIN; DELETE FROM docs; TRUNCATE docs; ROLLBACK": 0,
    "BEGIN; UPDATE docs SET body = 'x' WHERE id = 1; SAVEPOINT s; "
    "UPDATE docs SET body = 'y'; DELETE FROM docs WHERE id = 2; "
    "ROLLBACK TO s; UPDATE docs SET body = 'z' WHERE id = 3; COMMIT": 2,
    "SET session_replication_role = replica; UPDATE docs SET body = 'x' WHERE id = 1; "
    "INSERT INTO docs (id, body) VALUES (5, 'y'); DELETE FROM docs WHERE id = 2; "
    "SET session_replication_role = origin": 2,
    "SET session_replication_role = replica; TRUNCATE docs; "
    "SET session_replication_role = origin": 0,
    "DO $$ BEGIN FOR i IN 1 .. 50 LOOP "
    "UPDATE docs SET body = 'turn ' || i; END LOOP; END $$": 4,
    "PREPARE p (int, text) AS UPDATE docs SET body = $2 WHERE id = $1; "
    "EXECUTE p (1, 'a'); EXECUTE p (1, 'b'); EXECUTE p (2, 'c'); DEALLOCATE p": 2,
}


ROWS_READ_IN_FULL = """
    SELECT relname, seq_tup_read FROM pg_stat_xact_user_tables
    WHERE relname IN ('job_1', 'job_2', 'cut_chunk') ORDER BY relname
"""


@pytest.fixture
def drained(db: Connection, worker: SqlWorker) -> Connection:
    """Return a database with four rows and their vectors, in a column and chunks."""
    documents(db, "one", "two and more words", "three", None)
    declare(db, "docs", "body")
    declare(db, "docs", "body", name="cut", chunk_tokens=8)
    worker.drain()
    return db


def converge(connection: Connection, worker: SqlWorker) -> None:
    worker.drain()
    for name in NAMES:
        assert_converged(connection, name)


def test_changes(db: Connection, worker: SqlWorker) -> None:
    # One database for all: each change begins with the same four rows.
    documents(db)
    declare(db, "docs", "body")
    declare(db, "docs", "body", name="cut", chunk_tokens=8)
    for change, queued in CHANGES.items():
        db.execute("TRUNCATE docs")
        db.execute(
            "INSERT INTO docs (id, body) VALUES "
            "(1, 'one'), (2, 'two and more words'), (3, 'three'), (4, NULL)"
        )
        worker.drain()
        change = change.replace("'two')", "'two and more words')")
        db.execute(change.encode())
        assert [pending(db, name) for name in NAMES] == [queued] * 2, change
        converge(db, worker)


def test_copy(drained: Connection, worker: SqlWorker) -> None:
    with drained.cursor().copy("COPY docs (id, body) FROM STDIN") as copy:
        for number in range(5, 1005):
            copy.write_row((number, f"copied {number}"))
    assert pending(drained, "cut") == 1000
    converge(drained, worker)


def test_a_publication_of_all_tables(drained: Connection, worker: SqlWorker) -> None:
    """Its tables can be updated only as long as their rows can be told apart."""
    drained.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    try:
        drained.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
        drained.execute("UPDATE docs SET id = 9 WHERE id = 2")
        drained.execute("DELETE FROM docs WHERE id = 3")
        converge(drained, worker)
        unknowable = """
            SELECT c.oid::regclass::text FROM pg_class AS c
            WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind = 'r'
                AND c.relpersistence = 'p' AND c.relreplident = 'd' AND NOT EXISTS (
                    SELECT FROM pg_index AS i
                    WHERE i.indrelid = c.oid AND i.indisprimary)
        """
        assert rows(drained, unknowable) == [("pgembed.job",)]  # It has no rows.
    finally:
        drained.execute("DROP PUBLICATION everything")


def test_before_trigger_that_rewrites(drained: Connection, worker: SqlWorker) -> None:
    drained.execute(
        """
        CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.body := 'price ' || NEW.price;
            RETURN NEW;
        END $$;
        CREATE TRIGGER a BEFORE INSERT OR UPDATE ON docs
            FOR EACH ROW EXECUTE FUNCTION rewrite();
        """
    )
    drained.execute("INSERT INTO docs (id, body) VALUES (5, 'never stored')")
    drained.execute("UPDATE docs SET price = 7 WHERE id = 1")
    converge(drained, worker)
    assert value(drained, "SELECT body FROM docs WHERE id = 1") == "price 7"


def test_before_trigger_that_forbids(drained: Connection, worker: SqlWorker) -> None:
    drained.execute(
        """
        CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RETURN NULL; END $$;
        CREATE TRIGGER a BEFORE UPDATE OR DELETE ON docs
            FOR EACH ROW WHEN (OLD.id = 1) EXECUTE FUNCTION forbid();
        """
    )
    drained.execute("UPDATE docs SET body = 'x'")
    drained.execute("DELETE FROM docs")
    assert value(drained, "SELECT count(*) FROM pgembed.job_1") == 1
    converge(drained, worker)


def test_after_trigger_that_puts_the_row_back(
    drained: Connection, worker: SqlWorker
) -> None:
    # Its name comes before ours, so the new row is captured before the old one's end.
    drained.execute(
        """
        CREATE FUNCTION undelete() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO docs (id, body) VALUES (OLD.id, 'it is back');
            RETURN NULL;
        END $$;
        CREATE TRIGGER a AFTER DELETE ON docs
            FOR EACH ROW EXECUTE FUNCTION undelete();
        """
    )
    drained.execute("DELETE FROM docs WHERE id = 1")
    converge(drained, worker)
    assert value(drained, "SELECT body FROM docs WHERE id = 1") == "it is back"


def test_cascades(drained: Connection, worker: SqlWorker) -> None:
    drained.execute(
        """
        CREATE TABLE notes (
            id int PRIMARY KEY,
            doc int REFERENCES docs ON DELETE CASCADE ON UPDATE CASCADE,
            word text
        );
        CREATE TABLE parts (
            doc int REFERENCES docs ON DELETE CASCADE ON UPDATE CASCADE,
            note int REFERENCES notes ON DELETE SET NULL,
            n int, body text, PRIMARY KEY (doc, n)
        );
        INSERT INTO notes VALUES (1, 1, 'w'), (2, 2, 'v');
        INSERT INTO parts VALUES (1, 1, 1, 'a b c'), (1, 1, 2, 'd'), (2, 2, 1, 'e');
        """
    )
    declare(drained, "parts", "{note}: {body}")
    declare(drained, "parts", "body", name="parts_cut", chunk_tokens=8)
    worker.drain()
    drained.execute("UPDATE docs SET id = 7 WHERE id = 1")
    drained.execute("DELETE FROM notes WHERE id = 2")
    converge(drained, worker)
    for name in ("parts_content", "parts_cut"):
        assert_converged(drained, name)
    drained.execute("DELETE FROM docs WHERE id = 7")
    for name in ("parts_content", "parts_cut"):
        assert_converged(drained, name)
    drained.execute("TRUNCATE docs CASCADE")
    assert value(drained, "SELECT count(*) FROM parts_cut_chunk") == 0
    converge(drained, worker)
    for name in ("parts_content", "parts_cut"):
        assert_converged(drained, name)


def test_the_queue_is_bounded_by_the_rows(
    drained: Connection, worker: SqlWorker
) -> None:
    for turn in range(30):
        rows(drained, "UPDATE docs SET body = %s", f"turn {turn}")
    assert value(drained, "SELECT count(*) FROM pgembed.job_1") == 4
    assert value(drained, "SELECT max(pgembed_version) FROM pgembed.job_1") == 30
    converge(drained, worker)


def test_versions_begin_again(drained: Connection, worker: SqlWorker) -> None:
    for name, job in zip(NAMES, ("pgembed.job_1", "pgembed.job_2"), strict=True):
        last = f"UPDATE {job} SET pgembed_version = 2147483647"
        twin = f"INSERT INTO {job} (id) VALUES (1); {last}"
        reconcile = f"SELECT pgembed.reconcile('{name}')"
        for change in (
            f"{last}; UPDATE docs SET body = body || ' x'",
            f"{last}, pgembed_fingerprint = NULL; {reconcile}",
            twin,
            f"{twin}; {reconcile}",
        ):
            drained.execute(change.encode())
            converge(drained, worker)


@pytest.mark.parametrize(
    "change",
    ["UPDATE docs SET body = 'z'", "UPDATE docs SET id = -id", "DELETE FROM docs"],
)
def test_no_change_reads_the_whole_queue(
    drained: Connection, worker: SqlWorker, change: str
) -> None:
    """A session keeps the plans it made while there was next to nothing to read."""
    drained.execute(
        "INSERT INTO docs (id, body) SELECT i, 'x y z' FROM generate_series(5, 30) AS i"
    )
    worker.drain()
    for table in ("pgembed.job_1", "pgembed.job_2", "cut_chunk"):
        drained.execute(f"VACUUM ANALYZE {table}".encode())
    drained.execute(f"{change} WHERE id < 20".encode())
    with drained.transaction():
        drained.execute(
            "INSERT INTO docs (id, body) SELECT i, 'x' FROM generate_series(31, 99) i"
        )
        before = rows(drained, ROWS_READ_IN_FULL)
        drained.execute(f"{change} WHERE id > 30".encode())
        assert rows(drained, ROWS_READ_IN_FULL) == before


def test_content_that_the_write_back_changes_ends(
    drained: Connection, worker: SqlWorker
) -> None:
    drained.execute(
        """
        CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN NEW.title := 'changed ' || NEW.price; RETURN NEW; END $$;
        CREATE TRIGGER a BEFORE UPDATE ON docs
            FOR EACH ROW EXECUTE FUNCTION stamp();
        """
    )
    declare(drained, "docs", "{title} {body}")
    worker.drain()
    drained.execute("UPDATE docs SET price = 3")
    converge(drained, worker)
    assert_converged(drained, "docs_content")


@pytest.mark.parametrize("storage", ["EXTERNAL", "EXTENDED", "MAIN"])
def test_long_content(db: Connection, worker: SqlWorker, storage: str) -> None:
    # It lies outside of the row, and is compared by its number there.
    documents(db)
    db.execute(f"ALTER TABLE docs ALTER COLUMN body SET STORAGE {storage}".encode())
    db.execute(
        "CREATE FUNCTION long(seed int) RETURNS text LANGUAGE sql RETURN "
        "(SELECT string_agg(md5((seed * i)::text), ' ') "
        "FROM generate_series(1, 400) AS i)"
    )
    declare(db, "docs", "body")
    declare(db, "docs", "{title} {body}", name="cut", chunk_tokens=8)
    db.execute(
        "INSERT INTO docs (id, body) SELECT i, long(i) FROM generate_series(1, 4) AS i"
    )
    worker.drain()
    for change, queued in {
        "UPDATE docs SET price = price + 1": 0,
        "UPDATE docs SET body = long(id)": 0,
        "VACUUM FULL docs": 0,
        "UPDATE docs SET price = price + 2": 0,
        "UPDATE docs SET body = long(5) WHERE id = 1": 1,
        "UPDATE docs SET body = body || '!' WHERE id < 3": 2,
        "UPDATE docs SET body = (SELECT body FROM docs WHERE id = 4) WHERE id = 3": 1,
        "UPDATE docs SET body = 'short'": 4,
        "UPDATE docs SET body = long(id + 1)": 4,
        "UPDATE docs SET body = NULL WHERE id = 1": 1,
        "UPDATE docs SET id = id + 10": 4,
    }.items():
        db.execute(change.encode())
        assert pending(db, "docs_body") == queued, change
        assert pending(db, "cut") == queued, change
        converge(db, worker)


def test_no_change_is_worth_compiling(full_server: Databases, connect: Connect) -> None:
    """Scans that are priced to be avoided would have JIT compile each of these."""
    with full_server.database(full_server.installed_template("dblink")) as name:
        connection = connect(full_server.dsn(name), purpose="test")
        connection.execute("SET jit = on")
        register_model(connection)
        documents(connection, "one", "two")
        declare(connection, "docs", "body")
        declare(connection, "docs", "body", name="cut", chunk_tokens=8)
        for change in ("UPDATE docs SET body = 'x'", "DELETE FROM docs"):
            rows(connection, change)
        # The library comes with the first statement that is compiled.
        maps = Path(f"/proc/{connection.info.backend_pid}/maps").read_text()
        assert "llvmjit" not in maps
        connection.close()
