"""Declaring embeddings on one's own tables, without owning schema pgembed."""

from __future__ import annotations

import re

import psycopg
import pytest

from pgembed.postgres.connection import Connection, fetch_all, fetch_one
from pgembed.postgres.schema import install, uninstall, verify
from tests.conftest import Connect
from tests.harness.models import register_model
from tests.harness.sql_worker import SqlWorker, assert_converged, rows, value
from tests.integration.roles.conftest import Roles, execute


@pytest.fixture(autouse=True)
def model(connection: Connection) -> None:
    """Register model tiny."""
    register_model(connection)


def create_docs(olga: Connection) -> None:
    olga.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    olga.execute("INSERT INTO docs VALUES (1, 'one'), (2, 'two words more')")


def declare(olga: Connection, options: str = "", name: str = "docs_body") -> str:
    query = f"SELECT pgembed.create_embedding('docs', 'body', 'tiny'{options})"
    assert value(olga, query) == name
    return name


def drain(walter: Connection) -> None:
    worker = SqlWorker(walter)
    worker.work()
    worker.drain()


def change_everything(writer: Connection) -> None:
    writer.execute("INSERT INTO olga.docs VALUES (3, 'three'), (4, NULL)")
    writer.execute("UPDATE olga.docs SET body = 'changed' WHERE id = 1")
    writer.execute("UPDATE olga.docs SET id = 20 WHERE id = 2")
    writer.execute("DELETE FROM olga.docs WHERE id = 3")


@pytest.mark.parametrize(
    "options", ["", ", on_change => 'clear'", ", chunk_tokens => 8"]
)
def test_an_embedding_is_kept(
    olga: Connection, walter: Connection, connection: Connection, options: str
) -> None:
    create_docs(olga)
    name = declare(olga, options)
    drain(walter)
    assert_converged(connection, name)
    change_everything(olga)
    drain(walter)
    assert_converged(connection, name)
    olga.execute("TRUNCATE docs")
    assert_converged(connection, name)


def test_writers_need_nothing_but_the_table(
    roles: Roles, olga: Connection, walter: Connection, connect: Connect
) -> None:
    create_docs(olga)
    declare(olga, ", on_change => 'clear'")
    declare(olga, ", chunk_tokens => 8, name => 'cut'", "cut")
    drain(walter)
    olga.execute("GRANT USAGE ON SCHEMA olga TO stranger")
    olga.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON docs TO stranger")
    change_everything(connect(roles.dsn("stranger")))
    drain(walter)
    assert_converged(connect(roles.superuser), "docs_body")
    assert_converged(connect(roles.superuser), "cut")


def test_the_capture_runs_as_the_owner_of_the_table(
    olga: Connection, connection: Connection
) -> None:
    """What olga puts in its way cannot reach the rights of the schema's owner."""
    create_docs(olga)
    declare(olga, ", chunk_tokens => 8")
    olga.execute(
        """
        CREATE TABLE seen (who name);
        CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO olga.seen VALUES (current_user); RETURN OLD; END';
        CREATE TRIGGER spy BEFORE DELETE ON docs_body_chunk
            FOR EACH ROW EXECUTE FUNCTION spy();
        INSERT INTO docs_body_chunk VALUES (1, 0, 'one', '[1,2,3]')
        """
    )
    connection.execute("DELETE FROM olga.docs")
    assert fetch_all(olga, "SELECT who FROM seen") == [("olga",)]
    owners = fetch_all(
        connection,
        "SELECT DISTINCT proowner::regrole::text FROM pg_proc "
        "WHERE pronamespace = 'pgembed'::regnamespace AND proname ~ '^_capture_'",
    )
    assert owners == [("olga",)]


FUNCTIONS = """
    SELECT f::text FROM pgembed.embedding AS e, pgembed._trigger_functions(e) AS f
"""


def test_the_owner_has_no_way_into_the_schema(olga: Connection) -> None:
    create_docs(olga)
    declare(olga)
    capture = value(olga, "SELECT min(f::text) FROM (" + FUNCTIONS + ") AS t (f)")
    for statement in (
        "CREATE FUNCTION pgembed.search(text) RETURNS int LANGUAGE sql RETURN 1",
        f"CREATE OR REPLACE FUNCTION {capture} RETURNS trigger "
        "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TABLE pgembed.mine (id int)",
        "ALTER TABLE pgembed.job_1 ADD COLUMN more int",
        "INSERT INTO pgembed.model SELECT * FROM pgembed.model",
        "SELECT nextval('pgembed.lease_seq')",
        "UPDATE pgembed.embedding SET source = 'docs'",
        "SELECT * FROM pgembed.blob_chunk",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            olga.execute(statement.encode())


def test_a_direct_insert_is_checked_too(
    olga: Connection, connection: Connection
) -> None:
    """The function is a convenience: the row is what is guarded."""
    create_docs(olga)
    olga.execute("ALTER TABLE docs ADD v vector(3)")
    connection.execute("CREATE TABLE public.theirs (id int PRIMARY KEY, body text)")
    connection.execute("ALTER TABLE public.theirs ADD v vector(3)")
    insert = """
        INSERT INTO pgembed.embedding (name, kind, source, key_columns, content,
            content_columns, model, target, target_column, storage, dimensions,
            distance, index_method, index_name)
        VALUES ('forged', 'kept', %s::regclass, '{nonsense}', 'body', '{"; DROP"}',
            'tiny', %s::regclass, 'v', 'vector', 3, 'cosine', 'hnsw', 'not this')
        RETURNING key_columns, content_columns, index_name <> 'not this', enqueued
    """
    for source, target in (
        ("public.theirs", "olga.docs"),
        ("olga.docs", "public.theirs"),
    ):
        with pytest.raises(
            psycopg.errors.InsufficientPrivilege,
            match=r"must be owner of table public\.theirs",
        ):
            olga.execute(insert, [source, target])
    assert fetch_one(olga, insert, ["docs", "docs"]) == (["id"], ["body"], True, False)


def test_other_tables_and_embeddings_are_out_of_reach(
    olga: Connection, connection: Connection
) -> None:
    connection.execute("CREATE TABLE public.theirs (id int PRIMARY KEY, body text)")
    connection.execute("SELECT pgembed.create_embedding('theirs', 'body', 'tiny')")
    for granting in ("", "GRANT ALL ON public.theirs TO olga"):
        connection.execute(granting.encode())
        for statement in (
            "SELECT pgembed.create_embedding('theirs', 'id', 'tiny', name => 'x')",
            "SELECT pgembed.drop_embedding('theirs_body')",
            "SELECT pgembed.pause_embedding('theirs_body')",
            "SELECT pgembed.reconcile('theirs_body')",
            "SELECT pgembed.retry_failed('theirs_body')",
            "DELETE FROM pgembed.embedding",
            "UPDATE pgembed.embedding SET paused = true",
        ):
            with pytest.raises(
                psycopg.errors.InsufficientPrivilege,
                match=r"^must be owner of table public\.theirs",
            ):
                olga.execute(statement.encode())
    assert value(connection, "SELECT count(*) FROM pgembed.embedding") == 1


def test_what_an_owner_does_with_an_embedding(
    olga: Connection, walter: Connection, connection: Connection
) -> None:
    create_docs(olga)
    name = declare(olga)
    olga.execute("SELECT pgembed.pause_embedding('docs_body')")
    assert SqlWorker(walter).work() == {}
    olga.execute("SELECT pgembed.resume_embedding('docs_body')")
    drain(walter)
    olga.execute("ALTER TABLE docs DISABLE TRIGGER ALL")
    olga.execute("UPDATE docs SET body = 'unseen'")
    olga.execute("ALTER TABLE docs RENAME COLUMN id TO number")
    assert value(olga, "SELECT pgembed.reconcile('docs_body')") == 2
    drain(walter)
    assert_converged(connection, name)
    assert value(olga, "SELECT pgembed.retry_failed('docs_body')") == 0
    assert rows(olga, "SELECT * FROM pgembed.failures") == []
    state = "SELECT state, rows, embedded FROM pgembed.embedding_status"
    assert rows(olga, state) == [("current", 2, 2)]


def test_failures_are_those_of_one_s_own_tables(
    olga: Connection, connection: Connection
) -> None:
    connection.execute("CREATE TABLE secret (name text PRIMARY KEY, body text)")
    connection.execute("INSERT INTO secret VALUES ('agent', 'one')")
    connection.execute("SELECT pgembed.create_embedding('secret', 'body', 'tiny')")
    create_docs(olga)
    declare(olga)
    drain(connection)
    connection.execute("UPDATE secret SET body = 'two'")
    connection.execute("UPDATE olga.docs SET body = 'changed'")
    for (embedding,) in rows(connection, "SELECT id FROM pgembed.embedding"):
        jobs = f"job_{embedding}"
        execute(
            connection,
            "UPDATE pgembed.{} SET pgembed_available_at = NULL, pgembed_error = 'bad'",
            jobs,
        )
    query = "SELECT embedding, key FROM pgembed.failures ORDER BY key::text"
    docs = [("docs_body", {"id": 1}), ("docs_body", {"id": 2})]
    assert rows(olga, query) == docs
    assert rows(connection, query) == [*docs, ("secret_body", {"name": "agent"})]


def test_dropping_leaves_nothing(olga: Connection, connection: Connection) -> None:
    create_docs(olga)
    declare(olga, ", chunk_tokens => 8, name => 'cut'", "cut")
    declare(olga)
    granted = """
        SELECT count(*) FROM information_schema.column_privileges
        WHERE table_name = 'docs' AND grantee = 'pgembed_worker'
    """
    assert value(connection, granted) > 0
    on_advice = value(
        connection,
        "SELECT pgembed._advised_name(e, '[\"id\"]') FROM pgembed.embedding AS e "
        "WHERE e.name = 'docs_body'",
    )
    olga.execute(f"CREATE INDEX {on_advice} ON docs (id)".encode())
    olga.execute("SELECT pgembed.drop_embedding('docs_body')")
    assert value(connection, f"SELECT to_regclass('olga.{on_advice}')") is None
    declare(olga)
    olga.execute("SELECT pgembed.drop_embedding('docs_body', true)")
    assert value(connection, granted) > 0  # the other one needs the same columns
    olga.execute("SELECT pgembed.drop_embedding('cut', true)")
    assert value(connection, granted) == 0
    left = """
        SELECT count(*) FROM pg_proc WHERE proname ~ '^_capture_[0-9]'
        UNION ALL SELECT count(*) FROM pg_class WHERE relname ~ '^job_|_chunk$'
        UNION ALL SELECT count(*) FROM pgembed.embedding
    """
    assert rows(connection, left) == [(0,), (1,), (0,)]  # pgembed.blob_chunk


def test_a_group_that_owns_the_table_needs_the_rights_itself(
    roles: Roles, olga: Connection, connection: Connection, walter: Connection
) -> None:
    execute(connection, "CREATE ROLE {}", "landlord")
    execute(connection, "GRANT {} TO {}", "landlord", "olga")
    create_docs(olga)
    execute(connection, "ALTER TABLE olga.docs OWNER TO {}", "landlord")
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
        declare(olga)
    assert "GRANT pgembed_owner TO landlord" in str(caught.value.diag.message_hint)
    execute(connection, "GRANT {} TO {}", "pgembed_owner", "landlord")
    execute(connection, "GRANT USAGE ON SCHEMA olga TO {}", "landlord")
    name = declare(olga)
    change_everything(olga)
    drain(walter)
    assert_converged(connection, name)


def test_installing_again_and_uninstalling(
    roles: Roles, olga: Connection, connection: Connection
) -> None:
    """The functions that olga owns are not taken for a stranger's."""
    create_docs(olga)
    declare(olga)
    connection.execute("UPDATE pgembed.installation SET digest = ''")
    assert install(connection).changed
    olga.execute("INSERT INTO docs VALUES (7, 'seven')")
    uninstall(connection)
    olga.execute("INSERT INTO docs VALUES (8, 'eight')")
    granted = "SELECT attacl FROM pg_attribute WHERE attrelid = 'olga.docs'::regclass"
    assert {row for (row,) in rows(connection, granted)} <= {None}


@pytest.mark.parametrize("mender", ["postgres", "stranger"])
@pytest.mark.parametrize("options", [", on_change => 'clear'", ", chunk_tokens => 8"])
def test_a_table_that_is_given_away(
    roles: Roles,
    olga: Connection,
    walter: Connection,
    connection: Connection,
    connect: Connect,
    options: str,
    mender: str,
) -> None:
    create_docs(olga)
    name = declare(olga, options)
    drain(walter)
    assert [f for f in verify(connection) if "triggers run as" in f.message] == []
    connection.execute(
        "GRANT pgembed_owner TO stranger; GRANT ALL ON SCHEMA olga TO stranger"
    )
    connection.execute("ALTER TABLE olga.docs OWNER TO stranger")
    [finding] = [f for f in verify(connection) if "triggers run as" in f.message]
    assert "role olga" in finding.message
    assert "belongs to stranger" in finding.message
    found = re.fullmatch("(?:(.*); then, )?as stranger: (.*)", finding.remedy)
    assert found is not None
    if "chunk" in options:  # which only its owner, or a superuser, can give away
        connection.execute(found[1].encode())
    with connect(roles.dsn(mender), purpose="test") as role:
        role.execute(found[2].encode())
    assert [f for f in verify(connection) if "triggers run as" in f.message] == []
    change_everything(connect(roles.dsn("stranger"), purpose="test"))
    drain(walter)
    assert_converged(connection, name)


@pytest.mark.parametrize("options", ["", ", chunk_tokens => 8"])
def test_a_key_of_another_type(
    olga: Connection, walter: Connection, connection: Connection, options: str
) -> None:
    create_docs(olga)
    name = declare(olga, options)
    drain(walter)
    olga.execute(
        """
        ALTER TABLE docs ADD fresh bigint;
        UPDATE docs SET fresh = id;
        ALTER TABLE docs DROP CONSTRAINT docs_pkey;
        ALTER TABLE docs RENAME id TO former;
        ALTER TABLE docs ALTER former DROP NOT NULL;
        ALTER TABLE docs RENAME fresh TO id;
        ALTER TABLE docs ADD PRIMARY KEY (id);
        """
    )
    drain(walter)
    assert value(olga, "SELECT pgembed.reconcile(%s)", name) == 0
    olga.execute("INSERT INTO docs (id, body) VALUES (5000000000, 'far away')")
    drain(walter)
    assert_converged(connection, name)


@pytest.mark.parametrize("options", ["", ", chunk_tokens => 8"])
def test_key_columns_that_swap_names(
    olga: Connection, walter: Connection, connection: Connection, options: str
) -> None:
    olga.execute("CREATE TABLE docs (a int, b text, body text, PRIMARY KEY (a, b))")
    olga.execute("INSERT INTO docs VALUES (1, 'x', 'one'), (2, 'y', 'two words more')")
    name = declare(olga, options)
    drain(walter)
    olga.execute("ALTER TABLE docs RENAME a TO c")
    olga.execute("ALTER TABLE docs RENAME b TO a")
    olga.execute("ALTER TABLE docs RENAME c TO b")
    assert value(olga, "SELECT pgembed.reconcile(%s)", name) == 0
    olga.execute("INSERT INTO docs VALUES (3, 'z', 'new')")
    drain(walter)
    assert_converged(connection, name)


def replace_body(olga: Connection, former: str) -> None:
    olga.execute("ALTER TABLE docs ADD fresh text; UPDATE docs SET fresh = body || 1")
    olga.execute(f"ALTER TABLE docs RENAME body TO {former}".encode())
    olga.execute("ALTER TABLE docs RENAME fresh TO body")


def test_columns_that_a_worker_without_the_table_cannot_follow(
    olga: Connection, walter: Connection, connection: Connection
) -> None:
    create_docs(olga)
    declare(olga)
    drain(walter)
    replace_body(olga, "first")
    drain(walter)
    findings = [f for f in verify(connection) if f.subject == "embedding docs_body"]
    assert "columns that were replaced" in findings[0].message
    olga.execute("SELECT pgembed.reconcile('docs_body')")
    drain(walter)
    assert_converged(connection, "docs_body")
    (finding,) = [f for f in verify(connection) if f.subject == "embedding docs_body"]
    assert finding.level == "ok"
    execute(connection, "GRANT {} TO {}", "olga", "walter")
    replace_body(olga, "second")
    drain(walter)
    assert_converged(connection, "docs_body")


def test_partitions_that_a_worker_without_the_table_follows(
    olga: Connection, walter: Connection, connection: Connection
) -> None:
    """It sees that one was dropped; one that came back is the owner's to read."""
    olga.execute(
        """
        CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF docs FOR VALUES FROM (0) TO (10);
        CREATE TABLE high PARTITION OF docs FOR VALUES FROM (10) TO (20);
        INSERT INTO docs VALUES (1, 'one'), (11, 'eleven'), (12, 'twelve');
        """
    )
    name = declare(olga, ", chunk_tokens => 8")
    drain(walter)
    olga.execute("DROP TABLE low")
    drain(walter)
    assert_converged(connection, name)
    olga.execute("ALTER TABLE docs DETACH PARTITION high")
    olga.execute("UPDATE high SET body = 'changed' WHERE id = 11")
    olga.execute("ALTER TABLE docs ATTACH PARTITION high FOR VALUES FROM (10) TO (20)")
    drain(walter)
    (finding,) = [f for f in verify(connection) if f.subject == f"embedding {name}"]
    assert "partitions were attached or dropped" in finding.message
    olga.execute("SELECT pgembed.reconcile('docs_body')")
    drain(walter)
    assert_converged(connection, name)
    (finding,) = [f for f in verify(connection) if f.subject == f"embedding {name}"]
    assert finding.level == "ok"


def test_a_cast_that_spoils_the_key_stops_no_other(
    olga: Connection, walter: Connection, connection: Connection
) -> None:
    olga.execute("CREATE TYPE kind AS ENUM ('a')")
    olga.execute("CREATE TABLE odd (id kind PRIMARY KEY, body text)")
    olga.execute("SELECT pgembed.create_embedding('odd', 'body', 'tiny')")
    create_docs(olga)
    name = declare(olga)
    olga.execute("CREATE FUNCTION number(k kind) RETURNS int LANGUAGE sql RETURN 1")
    olga.execute("CREATE CAST (kind AS int) WITH FUNCTION number(kind) AS IMPLICIT")
    drain(walter)
    assert_converged(connection, name)
    query = "SELECT blocked FROM pgembed.embedding WHERE name = 'odd_body'"
    assert "operator is not unique" in value(connection, query)


CAPTURED_AS = """
    SELECT DISTINCT proowner::regrole::text FROM pg_proc
    WHERE pronamespace = 'pgembed'::regnamespace AND proname ~ '^_capture_[0-9]'
"""


def spy_on(stranger: Connection) -> None:
    """Let a role's own trigger note as whom it runs when vectors are cleared."""
    stranger.execute(
        """
        CREATE TABLE public.seen (who name);
        CREATE FUNCTION public.spy() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.body_embedding IS NULL AND OLD.body_embedding IS NOT NULL THEN
                    INSERT INTO public.seen VALUES (current_user);
                END IF;
                RETURN NEW;
            END $$;
        CREATE TRIGGER spy BEFORE UPDATE ON public.theirs
            FOR EACH ROW EXECUTE FUNCTION public.spy()
        """
    )


@pytest.fixture
def stranger(roles: Roles, connect: Connect, connection: Connection) -> Connection:
    """Return the session of a role without rights on pgembed, with table theirs."""
    connection.execute("GRANT CREATE ON SCHEMA public TO stranger")
    session = connect(roles.dsn("stranger"), purpose="test")
    session.execute("CREATE TABLE public.theirs (id int PRIMARY KEY, body text)")
    session.execute("INSERT INTO public.theirs VALUES (1, 'one'), (2, 'two more')")
    return session


def change_theirs(writer: Connection) -> None:
    writer.execute("INSERT INTO theirs VALUES (3, 'three'), (4, NULL)")
    writer.execute("UPDATE theirs SET body = 'changed' WHERE id = 1")
    writer.execute("UPDATE theirs SET id = 20 WHERE id = 2")
    writer.execute("DELETE FROM theirs WHERE id = 3")


@pytest.mark.parametrize("partitioned", [False, True])
@pytest.mark.parametrize(
    "options", ["", ", on_change => 'clear'", ", chunk_tokens => 8"]
)
def test_a_superuser_declares_on_the_table_of_a_role_without_rights(
    stranger: Connection, connection: Connection, options: str, partitioned: bool
) -> None:
    """The table's owner can write it, gets what capturing takes, and no more."""
    if partitioned:
        stranger.execute("DROP TABLE theirs")
        stranger.execute(
            "CREATE TABLE theirs (id int PRIMARY KEY, body text) "
            "PARTITION BY RANGE (id)"
        )
        stranger.execute("CREATE TABLE part PARTITION OF theirs DEFAULT")
        stranger.execute("INSERT INTO theirs VALUES (1, 'one'), (2, 'two more')")
    connection.execute(
        f"SELECT pgembed.create_embedding('theirs', 'body', 'tiny'{options})".encode()
    )
    assert rows(connection, CAPTURED_AS) == [("stranger",)]
    drain(connection)
    change_theirs(stranger)
    drain(connection)
    assert_converged(connection, "theirs_body")
    stranger.execute("TRUNCATE part" if partitioned else "TRUNCATE theirs")
    assert_converged(connection, "theirs_body")
    for statement in (
        "SELECT pgembed.create_embedding('theirs', 'body', 'tiny', name => 'x')",
        "SELECT pgembed.embed('tiny', 'x')",
        "SELECT * FROM pgembed.model",
        "DELETE FROM pgembed.embedding",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute(statement.encode())


@pytest.mark.parametrize(
    "hide", ["OWNER TO stranger", "FORCE ROW LEVEL SECURITY"], ids=["other", "forced"]
)
def test_truncate_of_a_partition_that_its_parents_owner_may_not_read(
    roles: Roles,
    olga: Connection,
    walter: Connection,
    connection: Connection,
    hide: str,
) -> None:
    olga.execute(
        """
        CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF docs FOR VALUES FROM (1) TO (10);
        CREATE TABLE high PARTITION OF docs FOR VALUES FROM (10) TO (20);
        INSERT INTO docs VALUES (1, 'one'), (2, 'two'), (10, 'ten');
        """
    )
    names = [declare(olga), declare(olga, ", chunk_tokens => 8, name => 'cut'", "cut")]
    drain(walter)
    connection.execute("ALTER TABLE olga.low ENABLE ROW LEVEL SECURITY")
    rows(connection, f"ALTER TABLE olga.low {hide}")
    connection.execute("TRUNCATE olga.low")
    for name in names:
        assert_converged(connection, name)


def test_what_the_owner_puts_in_the_way_never_runs_as_the_superuser(
    stranger: Connection, connection: Connection
) -> None:
    connection.execute(
        "SELECT pgembed.create_embedding("
        "'theirs', 'body', 'tiny', on_change => 'clear')"
    )
    drain(connection)
    spy_on(stranger)
    stranger.execute("UPDATE theirs SET body = 'go'")
    assert set(rows(stranger, "SELECT who FROM seen")) == {("stranger",)}


def test_an_installation_mends_functions_that_a_superuser_kept(
    stranger: Connection, connection: Connection
) -> None:
    connection.execute(
        "SELECT pgembed.create_embedding('theirs', 'body', 'tiny', chunk_tokens => 8)"
    )
    connection.execute("ALTER TABLE theirs_body_chunk OWNER TO postgres")
    for (function,) in rows(connection, FUNCTIONS):
        connection.execute(f"ALTER FUNCTION {function} OWNER TO postgres".encode())
    connection.execute("SELECT pgembed.revoke_all('stranger')")
    [finding] = [f for f in verify(connection) if "triggers run as" in f.message]
    assert "role postgres" in finding.message
    assert "as a superuser: SELECT pgembed.reconcile" in finding.remedy
    connection.execute("UPDATE pgembed.installation SET digest = ''")
    assert install(connection).changed
    assert rows(connection, CAPTURED_AS) == [("stranger",)]
    drain(connection)
    change_theirs(stranger)
    drain(connection)
    assert_converged(connection, "theirs_body")


HELD = """
    SELECT count(*) FROM (
        SELECT attrelid, attacl FROM pg_attribute
        UNION ALL SELECT oid, relacl FROM pg_class
    ) AS o (relation, acl), aclexplode(o.acl) AS a
    WHERE o.relation::regclass::text IN ('olga.docs', 'olga.cut_chunk')
        AND a.grantee = 'pgembed_worker'::regrole
"""


@pytest.mark.parametrize("renamed", ["id", "body", "body_embedding"])
def test_what_workers_hold_is_taken_back_from_columns_that_changed(
    olga: Connection, connection: Connection, renamed: str
) -> None:
    create_docs(olga)
    declare(olga)
    declare(olga, ", chunk_tokens => 8, name => 'cut'", "cut")
    olga.execute(f"ALTER TABLE docs RENAME {renamed} TO other".encode())
    assert value(connection, HELD) > 0
    olga.execute("SELECT pgembed.drop_embedding('docs_body')")
    olga.execute("SELECT pgembed.drop_embedding('cut')")
    assert value(connection, HELD) == 0


def test_what_workers_hold_of_columns_that_were_replaced_is_taken_back(
    olga: Connection, connection: Connection
) -> None:
    create_docs(olga)
    declare(olga)
    declare(olga, ", chunk_tokens => 8, name => 'cut'", "cut")
    before = value(connection, HELD)
    replace_body(olga, "former")
    for name in ("docs_body", "cut"):
        olga.execute("SELECT pgembed.reconcile(%s)", (name,))
        assert value(connection, HELD) == before
    olga.execute("SELECT pgembed.drop_embedding('docs_body')")
    olga.execute("SELECT pgembed.drop_embedding('cut')")
    assert value(connection, HELD) == 0


@pytest.mark.parametrize("renamed", ["title", "body"])
def test_what_another_embedding_needs_stays_while_a_column_is_renamed(
    olga: Connection, walter: Connection, connection: Connection, renamed: str
) -> None:
    """It needs it again when the column has its name back."""
    create_docs(olga)
    olga.execute("ALTER TABLE docs ADD title text")
    olga.execute(
        "SELECT pgembed.create_embedding("
        "'docs', '{title}: {body}', 'tiny', name => 'both')"
    )
    before = value(connection, HELD)
    declare(olga)
    olga.execute(f"ALTER TABLE docs RENAME {renamed} TO former".encode())
    olga.execute("SELECT pgembed.drop_embedding('docs_body', true)")
    assert value(connection, HELD) == before
    connection.execute("SELECT pgembed.revoke_all('pgembed_worker')")
    connection.execute("SELECT pgembed.create_roles()")
    assert value(connection, HELD) == before
    olga.execute(f"ALTER TABLE docs RENAME former TO {renamed}".encode())
    drain(walter)
    assert_converged(connection, "both")


def test_what_another_embedding_with_chunks_needs_stays(
    olga: Connection, connection: Connection
) -> None:
    create_docs(olga)
    declare(olga, ", chunk_tokens => 8, name => 'cut'", "cut")
    before = value(connection, HELD)
    declare(olga, ", chunk_tokens => 8")
    olga.execute("ALTER TABLE docs RENAME body TO former")
    olga.execute("SELECT pgembed.drop_embedding('docs_body', true)")
    assert value(connection, HELD) == before


def test_who_does_not_own_a_table_locks_nobody_out(
    olga: Connection, connection: Connection
) -> None:
    """He is refused before he waits for a lock, and others behind him."""
    connection.execute("CREATE TABLE public.theirs (id int PRIMARY KEY, body text)")
    connection.execute("GRANT SELECT, UPDATE ON public.theirs TO olga")
    with connection.transaction():
        connection.execute("LOCK TABLE public.theirs IN ACCESS SHARE MODE")
        olga.execute("SET lock_timeout = '1s'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="be owner of"):
            olga.execute(
                "SELECT pgembed.create_embedding('public.theirs', 'body', 'tiny')"
            )


def test_what_workers_were_granted_for_other_reasons_stays(
    olga: Connection, connection: Connection
) -> None:
    create_docs(olga)
    olga.execute("ALTER TABLE docs ADD price int")
    olga.execute("GRANT SELECT (price), UPDATE (price) ON docs TO pgembed_worker")
    declare(olga)
    declare(olga, ", chunk_tokens => 8, name => 'cut'", "cut")
    olga.execute("SELECT pgembed.drop_embedding('docs_body')")
    olga.execute("SELECT pgembed.drop_embedding('cut')")
    assert value(connection, HELD) == 2
