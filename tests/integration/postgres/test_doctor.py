"""The doctor names what is broken, and what mends it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgembed.errors import InstallError
from pgembed.postgres import server_checks
from pgembed.postgres.findings import Finding
from pgembed.postgres.schema import install, uninstall, verify
from tests.conftest import Connect
from tests.harness.sql_worker import SqlWorker
from tests.integration.postgres.test_uninstall import REGISTER_MODEL
from tests.integration.worker.running import add_good, answering

Connection = psycopg.Connection[Any]


@pytest.fixture
def docs(connection: Connection) -> Connection:
    """Return a connection to a database with the embedding docs_body, and workers."""
    connection.execute(REGISTER_MODEL)
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    for role in ("embed", "calls"):
        connection.execute(
            "SELECT pgembed._register_worker(%s, 'here', 1, '0.1.0')", (role,)
        )
    return connection


def bad(connection: Connection, subject: str) -> list[Finding]:
    return [
        finding
        for finding in verify(connection)
        if finding.subject == subject and finding.level != "ok"
    ]


def test_empty_database(empty_dsn: str, connect: Connect) -> None:
    findings = verify(connect(empty_dsn))
    assert [(f.subject, f.level) for f in findings] == [
        ("server", "ok"),
        ("pgvector", "error"),
    ]
    assert "'pgembed install', which creates it" in findings[-1].remedy


def test_database_without_schema(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    connection.execute("CREATE EXTENSION vector")
    assert verify(connection)[-1].remedy == "run 'pgembed install'"


def test_healthy(docs: Connection) -> None:
    findings = verify(docs)
    # Debian's pgvector has known faults, of which the doctor tells.
    ignored = ("model tiny", "pgvector")
    wrong = [f for f in findings if f.level != "ok" and f.subject not in ignored]
    assert wrong == []
    assert {f.subject for f in findings} >= {
        *("server", "pgvector", "schema", "privileges", "transport", "workers"),
        "embedding docs_body",
    }
    assert all(bool(f.remedy) == (f.level != "ok") for f in findings)


def test_model_with_lost_files(docs: Connection) -> None:
    docs.execute(
        "INSERT INTO pgembed.model_file VALUES ('tiny', 'model.onnx', sha256('m'), 4)"
    )
    [finding] = bad(docs, "model tiny")
    assert "missing in the database" in finding.message
    assert re.search("pgembed model add tiny [^ ]+$", finding.remedy)
    docs.execute("INSERT INTO pgembed.blob_chunk VALUES (sha256('m'), 0, 'abcd')")
    assert bad(docs, "model tiny") == []


def test_no_workers(docs: Connection) -> None:
    docs.execute("DELETE FROM pgembed.worker WHERE role = 'calls'")
    [finding] = bad(docs, "workers")
    assert finding.message == "no process answers pgembed.embed()"
    docs.execute("UPDATE pgembed.worker SET seen_at = now() - interval '1 hour'")
    assert "embeds rows" in bad(docs, "workers")[0].message


def test_workers_of_another_version(docs: Connection) -> None:
    docs.execute("UPDATE pgembed.worker SET version = '0.0.1'")
    assert "0.0.1" in bad(docs, "workers")[0].message


BREAKAGES = {
    "source": ("DROP TABLE docs", "source table was dropped"),
    "column": ("ALTER TABLE docs DROP COLUMN body_embedding", "column was dropped"),
    "trigger": (
        "DO $$ BEGIN EXECUTE (SELECT format('DROP TRIGGER %I ON docs', tgname) "
        "FROM pg_trigger WHERE tgname LIKE '%update'); END $$",
        "UPDATE are missing or disabled",
    ),
    "renamed": ("ALTER TABLE docs RENAME body TO text", "column body of table"),
    "replaced": (
        "ALTER TABLE docs RENAME body TO former; ALTER TABLE docs ADD body text",
        "watch columns that were replaced",
    ),
    "retyped": (
        "ALTER TABLE docs ALTER body_embedding TYPE text",
        "is of type text, not",
    ),
    "disabled": (
        "ALTER TABLE docs DISABLE TRIGGER ALL",
        "INSERT, DELETE, UPDATE, TRUNCATE are missing or disabled",
    ),
    "origin": ("ALTER TABLE docs ENABLE TRIGGER ALL", "are missing or disabled"),
    "queue": ("DROP TABLE pgembed.job_1", "pgembed.job_1, was dropped"),
    "blocked": ("SELECT pgembed._block(1, 'bad model')", "go on with it: bad model"),
    "paused": ("SELECT pgembed.pause_embedding('docs_body')", "paused"),
    "index": (
        "UPDATE pgembed.embedding SET index_state = 'failed', "
        "index_error = 'disk full'",
        "disk full",
    ),
    "failed": (
        "INSERT INTO pgembed.job_1 (id, pgembed_available_at, pgembed_error) "
        "VALUES (1, NULL, 'bad')",
        "1 rows failed",
    ),
}


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_broken_embedding(docs: Connection, breakage: str, message: str) -> None:
    docs.execute(breakage.encode())
    findings = bad(docs, "embedding docs_body")
    assert any(message in finding.message for finding in findings), findings
    assert all(finding.remedy for finding in findings)


@pytest.mark.parametrize(
    ("breakage", "message"),
    {
        "ALTER TABLE docs_2 DISABLE TRIGGER ALL": "INSERT, DELETE, UPDATE, TRUNCATE "
        "are missing or disabled in docs_2",
        "ALTER TABLE docs_2 ENABLE TRIGGER USER": "missing or disabled in docs_2",
        "ALTER TABLE docs_1 DISABLE TRIGGER pgembed_1_update": "its triggers for "
        "UPDATE are missing or disabled in docs_1",
        "ALTER TABLE docs DISABLE TRIGGER pgembed_1_delete": "its triggers for DELETE "
        "are missing or disabled in docs_1, docs_2",
        "ALTER TABLE ONLY docs DISABLE TRIGGER pgembed_1_truncate": "its triggers for "
        "TRUNCATE are missing or disabled",
    }.items(),
)
def test_triggers_of_partitions(
    connection: Connection, breakage: str, message: str
) -> None:
    connection.execute(REGISTER_MODEL)
    connection.execute(
        """
        CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
        CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (10);
        CREATE TABLE docs_2 PARTITION OF docs DEFAULT;
        SELECT pgembed.create_embedding('docs', 'body', 'tiny');
        """
    )
    assert bad(connection, "embedding docs_body") == []
    connection.execute(breakage.encode())
    [finding] = bad(connection, "embedding docs_body")
    assert finding.level == "error"
    assert finding.message.endswith(message)
    connection.execute("SELECT pgembed.reconcile('docs_body')")
    assert bad(connection, "embedding docs_body") == []


LOSSES = {
    "": "ALTER TABLE docs DROP body_embedding; ALTER TABLE docs ADD body_embedding "
    "vector(3)",
    ", chunk_tokens => 8": "DELETE FROM docs_body_chunk WHERE id = 2",
}


@pytest.mark.parametrize(("options", "loss"), LOSSES.items())
def test_vectors_that_were_taken_away(
    connection: Connection, options: str, loss: str
) -> None:
    connection.execute(REGISTER_MODEL)
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO docs VALUES (1, NULL), (2, 'two'), (3, ' ')")
    declared = f"SELECT pgembed.create_embedding('docs', 'body', 'tiny'{options})"
    connection.execute(declared.encode())
    worker = SqlWorker(connection)
    worker.drain()
    assert bad(connection, "embedding docs_body") == []
    connection.execute(loss.encode())
    [finding] = bad(connection, "embedding docs_body")
    assert "1 of the first rows looked at were embedded" in finding.message
    connection.execute("SELECT pgembed.reconcile('docs_body')")
    worker.drain()
    assert bad(connection, "embedding docs_body") == []


def test_a_table_restored_beside_its_original(docs: Connection) -> None:
    docs.execute("ALTER TABLE docs RENAME TO docs_of_before")
    docs.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    ((name, function),) = docs.execute(
        "SELECT t.tgname, p.oid::regproc::text FROM pg_trigger AS t "
        "JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE t.tgname ~ 'pgembed_.*_delete'"
    ).fetchall()
    docs.execute(
        f"CREATE TRIGGER {name} AFTER DELETE ON docs FOR EACH ROW "
        f"EXECUTE FUNCTION {function}()".encode()
    )
    [finding] = bad(docs, "embedding docs_body")
    assert finding.level == "error"
    assert "table docs, restored beside its own" in finding.message
    assert finding.remedy.endswith(f"DROP TRIGGER {name} ON docs")
    docs.execute(finding.remedy.split(": ")[1].encode())
    assert bad(docs, "embedding docs_body") == []


def test_a_table_that_has_the_number_of_another_embedding_s(docs: Connection) -> None:
    docs.execute("CREATE TABLE gone (id int PRIMARY KEY, body text)")
    docs.execute("SELECT pgembed.create_embedding('gone', 'body', 'tiny')")
    docs.execute("DROP TABLE gone")
    docs.execute(
        "UPDATE pgembed.embedding SET source = 'docs'::regclass, "
        "target = 'docs'::regclass WHERE name = 'gone_body'"
    )
    [finding] = bad(docs, "embedding gone_body")
    assert "that of embedding docs_body" in finding.message
    docs.execute(finding.remedy.encode())
    assert bad(docs, "embedding docs_body") == []


@pytest.mark.parametrize("lock", ["LOCK TABLE docs", "TRUNCATE docs"])
def test_a_table_that_is_locked_hides_nothing_else(
    dsn: str, docs: Connection, connect: Connect, lock: str
) -> None:
    docs.execute("CREATE INDEX ON docs USING hnsw (body_embedding vector_l2_ops)")
    docs.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    docs.execute("SELECT pgembed.create_embedding('other', 'body', 'tiny')")
    docs.execute("SET statement_timeout = '5s'")
    with connect(dsn, autocommit=False) as blocker:
        blocker.execute(lock.encode())
        [finding] = bad(docs, "embedding docs_body")
        pid = blocker.info.backend_pid
        assert f"process {pid} of the server has locked its tables" in finding.message
        assert bad(docs, "embedding other_body") == []
        blocker.rollback()
    assert bad(docs, "embedding docs_body") == []


def test_invalid_index(docs: Connection) -> None:
    docs.execute(
        "CREATE INDEX broken ON docs USING hnsw (body_embedding vector_l2_ops)"
    )
    docs.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass"
    )
    [finding] = bad(docs, "embedding docs_body")
    assert "index broken is invalid" in finding.message
    assert finding.remedy.startswith("DROP INDEX CONCURRENTLY broken, and create")
    docs.execute("UPDATE pgembed.embedding SET index_name = 'broken'")
    [finding] = bad(docs, "embedding docs_body")
    assert "reconcile('docs_body')" in finding.remedy


def test_an_index_that_is_gone(docs: Connection) -> None:
    docs.execute(
        "UPDATE pgembed.embedding SET index_method = 'hnsw', index_state = 'ready'"
    )
    [finding] = bad(docs, "embedding docs_body")
    assert "its index is not there" in finding.message
    docs.execute("SELECT pgembed.reconcile('docs_body')")
    query = "SELECT index_state FROM pgembed.embedding_status"
    row = docs.execute(query).fetchone()
    assert row == ("waiting",)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [("model tiny does not load", "mend the model"), ("no right", "resume_embedding")],
)
def test_what_no_worker_can_go_on_with(
    docs: Connection, reason: str, remedy: str
) -> None:
    docs.execute("UPDATE pgembed.embedding SET blocked = %s", [reason])
    [finding] = bad(docs, "embedding docs_body")
    assert remedy in finding.remedy


def test_grants_to_public(docs: Connection) -> None:
    docs.execute("GRANT EXECUTE ON FUNCTION pgembed.retry_failed(text) TO PUBLIC")
    docs.execute("GRANT CREATE ON SCHEMA pgembed TO PUBLIC")
    [finding] = bad(docs, "privileges")
    assert "pgembed.retry_failed" in finding.message
    assert "schema pgembed" in finding.message
    assert bad(docs, "schema") == []


def test_objects_of_others(docs: Connection, role_dsn: str, connect: Connect) -> None:
    other = connect(role_dsn)
    role = other.info.user
    docs.execute(f'GRANT CREATE, USAGE ON SCHEMA pgembed TO "{role}"'.encode())
    other.execute("CREATE TABLE pgembed.theirs (id int)")
    assert "pgembed.theirs" in bad(docs, "privileges")[0].message
    other.close()


def test_role_without_rights(docs: Connection, role_dsn: str, connect: Connect) -> None:
    other = connect(role_dsn)
    assert bad(other, "schema")[0].remedy == "connect as postgres"
    other.close()


def test_without_dblink(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    install(connection)
    connection.execute("DROP EXTENSION dblink CASCADE")
    assert "dblink" in bad(connection, "transport")[0].remedy
    assert bad(connection, "schema")[0].remedy == "run 'pgembed install'"


@pytest.mark.parametrize("again", [False, True], ids=["absent", "created again"])
def test_a_schema_that_lost_its_vectors(docs: Connection, again: bool) -> None:
    docs.execute("DROP EXTENSION vector CASCADE")
    if again:
        docs.execute("CREATE EXTENSION vector")
    [finding] = bad(docs, "schema" if again else "pgvector")
    assert finding.level == "error"
    assert "went with extension vector" in finding.message
    assert finding.remedy.startswith("run 'pgembed uninstall', then 'pgembed install'")
    with pytest.raises(InstallError, match="went with extension vector: run 'pgembed "):
        install(docs)
    uninstall(docs)
    assert install(docs).changed
    assert bad(docs, "schema") == []


def test_damaged_schema(docs: Connection) -> None:
    docs.execute("DROP FUNCTION pgembed.retry_failed(text)")
    [finding] = bad(docs, "schema")
    assert finding.level == "error"
    assert "pgembed.retry_failed" in finding.message


def test_an_older_schema(docs: Connection) -> None:
    docs.execute("UPDATE pgembed.installation SET version = '0.0.1'")
    docs.execute("DROP FUNCTION pgembed._closed_to_all(pgembed.embedding)")
    [finding] = bad(docs, "embedding docs_body")
    assert finding.level == "warning"
    assert "function pgembed._closed_to_all" in finding.message
    [finding] = bad(docs, "schema")
    assert "has the schema of pgembed 0.0.1" in finding.message


@pytest.mark.parametrize(
    ("version", "level"),
    [("0.7.4", "error"), ("0.8.1", "warning"), ("0.8.3", "warning"), ("0.8.4", "ok")],
)
def test_versions_of_pgvector(docs: Connection, version: str, level: str) -> None:
    docs.execute(
        "UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", (version,)
    )
    [finding] = [f for f in verify(docs) if f.subject == "pgvector"]
    assert finding.level == level


def only(connection: Connection, subject: str) -> Finding:
    [finding] = [f for f in verify(connection) if f.subject == subject]
    return finding


def test_a_call_is_timed(
    dsn: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_good(connection, tmp_path)
    with answering(dsn):
        finding = only(connection, "call")
        assert finding.level == "ok", finding
        assert re.fullmatch(
            r"pgembed\.embed\('tiny'\) takes \d+\.\d ms", finding.message
        )
        monkeypatch.setattr(server_checks, "_SLOW_CALL", 0.0)
        assert only(connection, "call").level == "warning"
    monkeypatch.setattr(server_checks, "_CALL_SECONDS", 0.1)
    finding = only(connection, "call")
    assert finding.level == "warning"
    assert "no worker answered" in finding.message
    assert "pgembed worker" in finding.remedy


def test_a_call_takes_longer_than_transactions_may(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    if connection.info.server_version < 170_000:
        pytest.skip("transaction_timeout came with PostgreSQL 17")
    add_good(connection, tmp_path)
    name = connection.info.dbname
    limit = f"ALTER DATABASE {name} SET transaction_timeout = '1s'"
    connection.execute(limit.encode())
    findings = verify(connect(dsn))
    [call] = [f for f in findings if f.subject == "call"]
    assert "no worker answered" in call.message
    assert findings[-1].subject == "settings"


def test_errors_that_would_end_the_session(
    dsn: str, connection: Connection, connect: Connect, tmp_path: Path
) -> None:
    add_good(connection, tmp_path)
    name = connection.info.dbname
    connection.execute(f"ALTER DATABASE {name} SET exit_on_error = on".encode())
    findings = verify(connect(dsn))
    [call] = [f for f in findings if f.subject == "call"]
    assert "no worker answered" in call.message
    assert findings[-1].subject == "settings"


def test_workers_that_are_superusers(
    dsn: str, connection: Connection, connect: Connect
) -> None:
    assert only(connection, "roles").level == "ok"
    connect(dsn, purpose="worker")
    finding = only(connection, "roles")
    assert finding.level == "warning"
    assert "log in as postgres, a superuser" in finding.message


def test_a_clock_that_is_off(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(connection, "clock").level == "ok"
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    finding = only(connection, "clock")
    assert finding.level == "warning"
    assert re.search("(3600|3599|3601) s ahead of", finding.message)


def test_a_clock_is_read_whatever_digits_floats_are_shown_with(
    connection: Connection,
) -> None:
    connection.execute("SET extra_float_digits = -15")
    assert only(connection, "clock").level == "ok"


def test_a_queue_that_nobody_works_on(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'x')")
    docs.execute("UPDATE pgembed.embedding SET enqueued = true")
    assert bad(docs, "embedding docs_body") == []
    docs.execute(
        "UPDATE pgembed.job_1 SET pgembed_available_at = now() - interval '1 hour'"
    )
    [finding] = bad(docs, "embedding docs_body")
    assert "60 minutes" in finding.message
    docs.execute("SELECT pgembed._record_progress(1, id, 1) FROM pgembed.worker")
    assert bad(docs, "embedding docs_body") == []


def test_workers_that_fell_silent(docs: Connection) -> None:
    docs.execute(
        "INSERT INTO pgembed.worker (role, host, pid, version, seen_at) "
        "VALUES ('embed', 'there', 9, '0.1.0', now() - interval '2 minutes')"
    )
    [finding] = bad(docs, "workers")
    assert "one on there, pid 9" in finding.message


def test_settings_that_are_too_small(
    docs: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bad(docs, "settings") == []
    # As if the table had a million rows; counting is left to ANALYZE.
    docs.execute("UPDATE pg_class SET reltuples = 1e6 WHERE relname = 'docs'")
    docs.execute("SET maintenance_work_mem = '64MB'")
    [finding] = bad(docs, "settings")
    assert "maintenance_work_mem is 64 MB" in finding.message
    docs.execute("UPDATE pg_class SET reltuples = 0 WHERE relname = 'docs'")
    monkeypatch.setattr(server_checks, "_shared_memory", lambda _: 60 << 20)
    [finding] = bad(docs, "settings")
    assert "shm has 60 MB" in finding.message


def test_the_shared_memory_is_seen_over_a_socket(connection: Connection) -> None:
    size = server_checks._shared_memory(connection)
    status = os.statvfs("/dev/shm")  # noqa: S108
    assert size == status.f_frsize * status.f_blocks
