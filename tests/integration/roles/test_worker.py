"""A worker that logs in as a member of pgembed_worker, and is nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psycopg
import pytest

from pgembed.models.session import Model
from pgembed.postgres.connection import Connection, fetch_all, fetch_one
from pgembed.postgres.schema import verify
from pgembed.worker.supervisor import run_worker
from tests.conftest import Connect
from tests.harness.sql_worker import SqlWorker, value
from tests.integration.batch.posting import batch_of, ended, post
from tests.integration.roles.conftest import Roles, execute
from tests.integration.worker.running import (
    add_good,
    answering,
    assert_current,
    embed_all,
    embedding,
    is_drained,
    settings_for,
    status,
    wait_until,
)


@pytest.fixture(autouse=True)
def model(connection: Connection, tmp_path: Path) -> Model:
    """Register model tiny, with files."""
    return add_good(connection, tmp_path)


@pytest.fixture
def docs(olga: Connection, connection: Connection) -> str:
    """Create olga.docs with an embedding of column body; return its name."""
    connection.execute("SET search_path = olga, public")
    olga.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, extra int)")
    olga.execute("INSERT INTO docs VALUES (1, 'a cat'), (2, 'the dog'), (3, NULL)")
    return declare(olga)


def declare(olga: Connection, options: str = "") -> str:
    query = f"SELECT pgembed.create_embedding('docs', 'body', 'tiny'{options})"
    return str(value(olga, query))


def test_it_is_no_superuser_and_owns_nothing(walter: Connection) -> None:
    assert fetch_one(
        walter,
        "SELECT rolsuper OR rolbypassrls OR rolcreaterole, "
        "(SELECT count(*) FROM pg_class WHERE relowner = r.oid) "
        "FROM pg_roles AS r WHERE rolname = current_user",
    ) == (False, 0)


def test_it_drains_a_queue_and_builds_the_index_as_the_owner(
    roles: Roles, docs: str, connection: Connection, model: Model
) -> None:
    """The server lets it log in as the owner of the table here."""
    embed_all(roles.dsn("walter"))
    assert_current(connection, model)
    assert status(connection)["index_state"] == "ready"
    (owner,) = fetch_one(
        connection,
        "SELECT relowner::regrole::text FROM pg_class WHERE relname ~ 'body.*_idx$'",
    )
    assert owner == "olga"
    assert fetch_all(connection, "SELECT count(*) FROM pgembed.workers") == [(0,)]


def test_an_index_that_it_cannot_build_says_who_can(
    roles: Roles, docs: str, olga: Connection, connection: Connection
) -> None:
    connection.execute("ALTER ROLE olga NOLOGIN")
    with embedding(roles.dsn("walter")):
        wait_until(lambda: status(connection)["index_state"] == "failed")
        error = status(connection)["state"]
        assert "does not own the table" in error
        assert "GRANT 'olga' TO 'walter'" in error
        assert is_drained(connection)
    # The owner builds it; the next worker finds it there.
    number = value(connection, "SELECT id FROM pgembed.embedding")
    call = f"pgembed._index_statements({number})"
    assert f"let 'olga' run the statements of {call}" in error
    for _, statement in fetch_all(olga, f"SELECT * FROM {call}".encode()):
        olga.execute(statement)
    embed_all(roles.dsn("walter"))
    assert status(connection)["index_state"] == "ready"


def test_membership_in_the_owner_lets_it_build(
    roles: Roles, docs: str, connection: Connection
) -> None:
    connection.execute("ALTER ROLE olga NOLOGIN")
    execute(connection, "GRANT {} TO {}", "olga", "walter")
    embed_all(roles.dsn("walter"))
    assert status(connection)["index_state"] == "ready"


def test_its_build_as_the_owner_gives_way(
    roles: Roles, docs: str, connection: Connection, connect: Connect
) -> None:
    """What a session of another role waits for, the worker sees in its locks alone."""
    migration = connect(roles.dsn("olga"), autocommit=False)
    migration.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    migration.execute("SELECT FROM olga.docs")
    # The server looks once for a deadlock: a second after a wait began.
    builds = """
        SELECT FROM pg_stat_activity AS a INNER JOIN pg_locks AS l USING (pid)
        WHERE a.application_name = 'pgembed index' AND a.usename = 'olga'
            AND l.waitstart < clock_timestamp() - interval '1.2 seconds'
    """
    with embedding(roles.dsn("walter")):
        wait_until(lambda: fetch_all(connection, builds))
        # For the same lock that a VACUUM takes.
        migration.execute("ALTER TABLE olga.docs ALTER body SET STATISTICS 50")
        migration.commit()
        wait_until(lambda: status(connection)["index_state"] == "waiting")


@pytest.mark.parametrize("partitioned", [False, True])
def test_it_may_touch_no_more_than_the_columns(
    roles: Roles,
    olga: Connection,
    walter: Connection,
    connection: Connection,
    model: Model,
    partitioned: bool,
) -> None:
    connection.execute("SET search_path = olga, public")
    by = " PARTITION BY RANGE (id)" if partitioned else ""
    olga.execute(f"CREATE TABLE docs (id int PRIMARY KEY, body text, extra int){by}")
    if partitioned:
        olga.execute("CREATE TABLE part PARTITION OF docs DEFAULT")
    olga.execute("INSERT INTO docs VALUES (1, 'a cat'), (2, 'the dog')")
    declare(olga, ", index => 'none'")
    embed_all(roles.dsn("walter"))
    assert_current(connection, model)
    walter.execute("SELECT id, body, body_embedding FROM olga.docs")
    for statement in (
        "SELECT extra FROM olga.docs",
        "UPDATE olga.docs SET body = 'x'",
        "UPDATE olga.docs SET id = 7",
        "DELETE FROM olga.docs",
        "INSERT INTO olga.docs VALUES (9)",
        "TRUNCATE olga.docs",
        "ALTER TABLE olga.docs ADD x int",
        "SELECT pgembed.drop_embedding('docs_body')",
        "SELECT pgembed.create_embedding('olga.docs', 'id', 'tiny')",
        "SELECT pgembed.embed('tiny', 'x')",
        "UPDATE pgembed.embedding SET name = 'x'",
        "UPDATE pgembed.model SET hash = hash",
        "DELETE FROM pgembed.blob_chunk",
        "INSERT INTO pgembed.batch (kind, embedding, results) "
        "VALUES ('join', 'x', 'y')",
        "INSERT INTO pgembed.call (kind, model, contents, expires_at) "
        "VALUES ('query', 'tiny', '{}', now())",
        "CREATE TABLE pgembed.mine (id int)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            walter.execute(statement.encode())


@pytest.mark.parametrize("options", ["", ", chunk_tokens => 8, name => 'cut'"])
def test_a_source_that_it_may_not_write_is_set_aside(
    roles: Roles,
    olga: Connection,
    connection: Connection,
    model: Model,
    options: str,
) -> None:
    connection.execute("SET search_path = olga, public")
    olga.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    olga.execute("INSERT INTO docs VALUES (1, 'a cat')")
    name = declare(olga, f", index => 'none'{options}")
    what = "INSERT ON cut_chunk" if options else "UPDATE (body_embedding) ON docs"
    olga.execute(f"REVOKE {what} FROM pgembed_worker".encode())
    embed_all(roles.dsn("walter"))
    assert "permission denied" in status(connection, name)["state"]
    assert status(connection, name)["pending"] == 1
    olga.execute(f"GRANT {what} TO pgembed_worker".encode())
    embed_all(roles.dsn("walter"))
    assert status(connection, name)["state"] == "current"


def test_it_waits_for_nobody(
    roles: Roles, docs: str, olga: Connection, walter: Connection
) -> None:
    """With rights on columns alone, too, it leaves a locked table alone."""
    worker = SqlWorker(walter)
    assert worker.work() == {"docs_body": 3}
    with olga.transaction():
        olga.execute("LOCK TABLE docs IN ACCESS EXCLUSIVE MODE")
        assert len(worker.claim("docs_body")) == 0
    claim = worker.claim("docs_body")
    with olga.transaction():
        olga.execute("LOCK TABLE docs IN SHARE MODE")
        assert worker.complete(claim) == []
    assert len(worker.complete(claim)) == 3


def test_it_forgets_an_embedding_whose_source_was_dropped(
    roles: Roles, docs: str, olga: Connection, connection: Connection
) -> None:
    olga.execute("DROP TABLE docs")
    embed_all(roles.dsn("walter"))
    left = "SELECT count(*) FROM pg_class WHERE relname ~ '^job_'"
    assert value(connection, left) == 0
    assert value(connection, "SELECT count(*) FROM pgembed.embedding") == 0


def test_tables_declared_by_others_and_before_the_roles(
    roles: Roles, connection: Connection, model: Model
) -> None:
    connection.execute("SELECT pgembed.revoke_all('pgembed_worker')")
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO docs VALUES (1, 'a cat'), (2, 'the dog')")
    declare(connection, ", index => 'none'")
    connection.execute("SELECT pgembed.create_roles()")
    embed_all(roles.dsn("walter"))
    assert_current(connection, model)


def test_row_level_security(
    roles: Roles,
    docs: str,
    olga: Connection,
    connection: Connection,
    model: Model,
) -> None:
    """It never takes hidden rows for deleted ones: it says what it needs, and waits."""
    olga.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    olga.execute("CREATE POLICY first ON docs USING (id = 1)")
    embed_all(roles.dsn("walter"))
    state = status(connection)["state"]
    assert state.startswith("blocked: row-level security hides rows of table olga.docs")
    assert "GRANT olga TO walter" in state

    execute(connection, "GRANT {} TO {}", "olga", "walter")
    connection.execute("SELECT pgembed.resume_embedding('docs_body')")
    embed_all(roles.dsn("walter"))
    assert_current(connection, model)

    # Now the owner is subject to the policies as well.
    olga.execute("ALTER TABLE docs FORCE ROW LEVEL SECURITY")
    connection.execute("UPDATE docs SET body = 'blue'")
    embed_all(roles.dsn("walter"))
    assert "BYPASSRLS" in status(connection)["state"]

    connection.execute("ALTER ROLE walter BYPASSRLS")
    connection.execute("SELECT pgembed.resume_embedding('docs_body')")
    embed_all(roles.dsn("walter"))
    assert_current(connection, model)


def test_it_answers_calls(
    roles: Roles, docs: str, connect: Connect, model: Model
) -> None:
    user = connect(roles.dsn("ursula"))
    with answering(roles.dsn("walter")):
        (vector,) = fetch_one(user, "SELECT pgembed.embed('tiny', 'a cat')")
        np.testing.assert_allclose(vector, model.embed(["a cat"])[0], atol=1e-4)


def test_it_carries_out_a_batch_as_the_caller(
    roles: Roles, docs: str, olga: Connection, connection: Connection, tmp_path: Path
) -> None:
    """What a batch runs sees the caller as its role, whoever the worker is."""
    embed_all(roles.dsn("walter"))
    olga.execute(
        "CREATE FUNCTION whoami() RETURNS text LANGUAGE sql "
        "RETURN current_user || session_user"
    )
    olga.execute(
        "CREATE TABLE queries AS SELECT 1 AS id, body_embedding AS embedding, "
        "'olga.whoami() = ''olgaolga''' AS predicate FROM docs WHERE id = 1"
    )
    with answering(roles.dsn("walter"), cache_dir=tmp_path / "cache"):
        batch = post(olga, "search_batch('docs_body', 'queries', 'results')")
        assert ended(olga, batch)["state"] == "done"
        layout = post(olga, "build_layout('docs_body')")
        assert ended(olga, layout)["error"] is None
        dropped = post(olga, "drop_layout('docs_body')")
        assert ended(olga, dropped)["state"] == "done"
    found = fetch_all(olga, "SELECT id FROM results ORDER BY rank")
    assert found == [(1,), (2,)]
    owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'results'"
    assert fetch_one(connection, owner) == ("olga",)


def test_it_carries_out_what_others_posted_when_it_runs_once(
    roles: Roles, docs: str, olga: Connection, tmp_path: Path
) -> None:
    batch = post(olga, "knn_join('docs_body', 'results', memory => '64MB')")
    settings = settings_for(roles.dsn("walter"), cache_dir=tmp_path / "cache")
    run_worker(settings, once=True, quiet=True)
    row = batch_of(olga, batch)
    assert (row["state"], row["rows"]) == ("done", 2)
    assert row["report"]["memory"] == 64 << 20


def test_a_partition_that_is_attached(
    roles: Roles, olga: Connection, connection: Connection, model: Model
) -> None:
    """Triggers on it are the owner's to make: until then the doctor says so."""
    connection.execute("SET search_path = olga, public")
    olga.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)"
    )
    name = declare(olga, ", index => 'none'")
    embed_all(roles.dsn("walter"))
    olga.execute("CREATE TABLE part (LIKE docs INCLUDING ALL)")
    olga.execute("INSERT INTO part VALUES (1, 'a cat'), (2, 'the dog')")
    olga.execute("ALTER TABLE docs ATTACH PARTITION part FOR VALUES FROM (0) TO (9)")
    embed_all(roles.dsn("walter"))
    (finding,) = (
        f
        for f in verify(connection)
        if f.subject == f"embedding {name}" and f.level == "warning"
    )
    assert "its rows in part may not be known" in finding.message
    assert value(olga, "SELECT pgembed.reconcile(%s)", name) == 2
    embed_all(roles.dsn("walter"))
    assert_current(connection, model)
    assert f"embedding {name}" in [
        f.subject for f in verify(connection) if f.level == "ok"
    ]

    # A worker that is a member of the owner notices by itself.
    execute(connection, "GRANT {} TO {}", "olga", "walter")
    olga.execute("CREATE TABLE more (LIKE docs INCLUDING ALL)")
    olga.execute("INSERT INTO more VALUES (11, 'blue')")
    olga.execute("ALTER TABLE docs ATTACH PARTITION more FOR VALUES FROM (10) TO (19)")
    embed_all(roles.dsn("walter"))
    assert_current(connection, model)
