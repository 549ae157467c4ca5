"""Installing the schema: what it leaves, whom it serves, what it refuses."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from pgembed.errors import InstallError, PgembedError
from pgembed.postgres.connection import extension_schema
from pgembed.postgres.guards import open_to_public
from pgembed.postgres.schema import install, verify
from tests.conftest import Connect
from tests.harness.roles import ordinary_role

Connection = psycopg.Connection[Any]


def catalog_state(connection: Connection) -> list[tuple[Any, ...]]:
    """Return the row versions of all that belongs to schema pgembed."""
    return connection.execute(
        """
        SELECT 'class', c.oid, c.xmin::text, c.relname::text FROM pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT 'proc', p.oid, p.xmin::text, p.proname::text FROM pg_proc AS p
        WHERE p.pronamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT 'schema', oid, xmin::text, nspname::text FROM pg_namespace
        WHERE nspname = 'pgembed'
        UNION ALL
        SELECT 'comment', d.objoid, d.xmin::text, d.description FROM pg_description AS d
        JOIN pg_proc AS p ON p.oid = d.objoid
        WHERE p.pronamespace = 'pgembed'::regnamespace
        UNION ALL
        SELECT 'record', 0::oid, xmin::text, digest FROM pgembed.installation
        ORDER BY 1, 2
        """
    ).fetchall()


def test_install_in_an_empty_database(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    report = install(connection)
    assert (report.changed, report.previous_version) == (True, None)
    assert report.transport == "dblink"
    assert str(report).startswith("installed pgembed")
    assert not connection.execute("SELECT count(*) FROM pgembed.models").fetchone()[0]  # type: ignore[index]


def test_vectors_are_known_right_after_install(
    empty_dsn: str, connect: Connect
) -> None:
    connection = connect(empty_dsn)
    install(connection)
    row = connection.execute("SELECT '[1,2]'::public.vector").fetchone()
    assert row is not None
    assert row[0].tolist() == [1.0, 2.0]


def test_second_install_changes_nothing(connection: Connection) -> None:
    install(connection)
    before = catalog_state(connection)
    report = install(connection)
    assert not report.changed
    assert "already up to date" in str(report)
    assert catalog_state(connection) == before


def test_install_restores_what_somebody_dropped(connection: Connection) -> None:
    connection.execute("DROP FUNCTION pgembed.retry_failed(text)")
    assert install(connection).changed
    row = connection.execute("SELECT to_regproc('pgembed.retry_failed')").fetchone()
    assert row is not None
    assert row[0] is not None


def test_concurrent_installs_leave_one_schema(empty_dsn: str, connect: Connect) -> None:
    reports = []

    def run() -> None:
        reports.append(install(connect(empty_dsn)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.changed for report in reports) == [False, False, False, True]


def test_nothing_is_granted_to_public(connection: Connection) -> None:
    rows = connection.execute(
        """
        SELECT p.oid::regprocedure::text FROM pg_proc AS p
        CROSS JOIN LATERAL aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a
        WHERE p.pronamespace = 'pgembed'::regnamespace AND a.grantee = 0
        UNION ALL
        SELECT c.relname FROM pg_class AS c CROSS JOIN LATERAL aclexplode(relacl) AS a
        WHERE c.relnamespace = 'pgembed'::regnamespace AND a.grantee = 0
        UNION ALL
        SELECT n.nspname FROM pg_namespace AS n
        CROSS JOIN LATERAL aclexplode(nspacl) AS a
        WHERE n.nspname = 'pgembed' AND a.grantee = 0
        """
    ).fetchall()
    assert rows == []


def test_every_routine_pins_its_search_path(connection: Connection) -> None:
    rows = connection.execute(
        """
        SELECT oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'pgembed'::regnamespace AND prosecdef
          AND NOT EXISTS (SELECT FROM unnest(proconfig) AS c
                          WHERE c LIKE 'search_path=%pg_temp')
        """
    ).fetchall()
    assert rows == []


def test_no_subtransaction_where_queries_may_be_parallel(
    connection: Connection,
) -> None:
    """Before PostgreSQL 18 a block with handlers ends in an error there."""
    labelled = connection.execute(
        r"""
        SELECT oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'pgembed'::regnamespace AND proparallel <> 'u'
            AND prosrc ~ '\mEXCEPTION\s+WHEN\M'
        """
    ).fetchall()
    assert labelled == []


def test_caller_search_path_does_not_matter(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    connection.execute("CREATE SCHEMA hostile")
    connection.execute(
        "CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE plpgsql "
        "AS $$ BEGIN RAISE 'hijacked'; END $$"
    )
    connection.execute("SET search_path = hostile, pg_catalog")
    assert install(connection).changed


def test_extensions_in_other_schemas(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    connection.execute('CREATE SCHEMA "My ""Types"""')
    connection.execute('CREATE EXTENSION vector SCHEMA "My ""Types"""')
    connection.execute("CREATE SCHEMA links")
    connection.execute("CREATE EXTENSION dblink SCHEMA links")
    assert install(connection).transport == "dblink"


@pytest.mark.parametrize("name", ["100%", "it's", r"back\slash", "$$"])
def test_extensions_in_schemas_of_unfit_names(
    empty_dsn: str, connect: Connect, name: str
) -> None:
    connection = connect(empty_dsn)
    connection.execute(f'CREATE SCHEMA "{name}"'.encode())
    connection.execute(f'CREATE EXTENSION vector SCHEMA "{name}"'.encode())
    with pytest.raises(InstallError, match="SET SCHEMA") as info:
        install(connection)
    assert repr(name) in str(info.value)


def test_without_public_extensions_go_where_the_caller_s_tables_do(
    empty_dsn: str, connect: Connect
) -> None:
    connection = connect(empty_dsn)
    connection.execute("DROP SCHEMA public; CREATE SCHEMA app; CREATE SCHEMA other")
    connection.execute("SET search_path = pg_catalog, missing, app, other")
    assert install(connection).transport == "dblink"
    for name in ("vector", "dblink"):
        assert extension_schema(connection, name) == "app"


def test_without_a_place_for_extensions(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    connection.execute("DROP SCHEMA public")
    with pytest.raises(InstallError, match="CREATE EXTENSION vector SCHEMA"):
        install(connection)
    connection.execute("CREATE SCHEMA types; CREATE EXTENSION vector SCHEMA types")
    assert install(connection).transport == "none"


def test_role_that_may_create_a_schema(empty_dsn: str, connect: Connect) -> None:
    superuser = connect(empty_dsn)
    superuser.execute("CREATE EXTENSION vector")
    superuser.execute("CREATE EXTENSION dblink")
    with ordinary_role(empty_dsn) as role_dsn:
        connection = connect(role_dsn)
        assert install(connection).transport == "dblink"
        assert not install(connection).changed
        assert not [f for f in verify(connection) if f.level == "error"]
        connection.close()


def test_dblink_that_appears_later_is_used(empty_dsn: str, connect: Connect) -> None:
    superuser = connect(empty_dsn)
    superuser.execute("CREATE EXTENSION vector")
    with ordinary_role(empty_dsn) as role_dsn:
        connection = connect(role_dsn)
        assert install(connection).transport == "none"
        superuser.execute("CREATE EXTENSION dblink")
        report = install(connection)
        assert (report.changed, report.transport) == (True, "dblink")
        connection.close()


def has_dblink(connection: psycopg.Connection[Any]) -> bool:
    return extension_schema(connection, "dblink") is not None


def test_no_transport_by_choice(empty_dsn: str, connect: Connect) -> None:
    """It stays, and no extension is created, until another is asked for."""
    connection = connect(empty_dsn)
    for wish in ("none", None):
        report = install(connection, transport=wish)
        assert (report.wish, report.transport) == ("none", "none")
        assert not has_dblink(connection)
        [finding] = [f for f in verify(connection) if f.subject == "transport"]
        assert finding.level == "ok"
        assert "by your choice" in finding.message
    with pytest.raises(psycopg.Error, match="can reach a worker") as caught:
        connection.execute("SELECT pgembed.embed('m', 'text')")
    assert "install --transport auto" in (caught.value.diag.message_hint or "")
    report = install(connection, transport="auto")
    assert (report.wish, report.transport) == ("auto", "dblink")


def test_role_without_create_is_told_what_to_ask_for(
    empty_dsn: str, connect: Connect
) -> None:
    superuser = connect(empty_dsn)
    superuser.execute("CREATE EXTENSION vector")
    with ordinary_role(empty_dsn, may_create=False) as role_dsn:
        connection = connect(role_dsn)
        with pytest.raises(InstallError, match="CREATE SCHEMA pgembed AUTHORIZATION"):
            install(connection)
        role = connection.info.user
        superuser.execute(f'CREATE SCHEMA pgembed AUTHORIZATION "{role}"'.encode())
        assert install(connection).changed
        connection.close()


def test_role_that_cannot_get_vector_is_told(empty_dsn: str, connect: Connect) -> None:
    with ordinary_role(empty_dsn, may_create=False) as role_dsn:
        connection = connect(role_dsn)
        with pytest.raises(InstallError, match="CREATE EXTENSION vector"):
            install(connection)
        connection.close()


SQUATTERS = {
    "function": "CREATE FUNCTION pgembed.embed(text, text) RETURNS int LANGUAGE sql "
    "AS 'SELECT 1'",
    "table": "CREATE TABLE pgembed.model (name text)",
    "type": "CREATE TYPE pgembed.mood AS ENUM ('calm')",
    "view": "CREATE VIEW pgembed.models AS SELECT 1 AS one",
}


@pytest.mark.parametrize("statement", SQUATTERS.values(), ids=SQUATTERS.keys())
def test_unmarked_schema_with_objects_is_refused(
    empty_dsn: str, connect: Connect, statement: str
) -> None:
    connection = connect(empty_dsn)
    connection.execute("CREATE SCHEMA pgembed")
    connection.execute(statement.encode())
    with pytest.raises(InstallError, match=r"pgembed did not make:\n.*owner postgres"):
        install(connection)
    row = connection.execute("SELECT to_regclass('pgembed.embedding')").fetchone()
    assert row == (None,)


def test_schema_of_another_role_is_refused(empty_dsn: str, connect: Connect) -> None:
    superuser = connect(empty_dsn)
    superuser.execute("CREATE EXTENSION vector")
    with ordinary_role(empty_dsn) as role_dsn:
        connection = connect(role_dsn)
        install(connection)
        role = connection.info.user
        with pytest.raises(InstallError, match=f"belongs to role '{role}'"):
            install(superuser)
        with (
            ordinary_role(empty_dsn) as other,
            pytest.raises(InstallError, match=f"belongs to role '{role}'"),
        ):
            install(connect(other))
        connection.close()


@pytest.mark.parametrize("statement", SQUATTERS.values(), ids=SQUATTERS.keys())
def test_objects_of_others_in_our_schema_are_refused(
    dsn: str, role_dsn: str, connect: Connect, statement: str
) -> None:
    connection, other = connect(dsn), connect(role_dsn)
    if not statement.startswith("CREATE TYPE"):
        statement = statement.replace("pgembed.", "pgembed.other_")
    role = other.info.user
    connection.execute(f'GRANT CREATE, USAGE ON SCHEMA pgembed TO "{role}"'.encode())
    other.execute(statement.encode())
    with pytest.raises(InstallError, match=f"owner {role}"):
        install(connection)
    other.close()


def test_install_needs_an_idle_connection(empty_dsn: str, connect: Connect) -> None:
    connection = connect(empty_dsn)
    with (
        connection.transaction(),
        pytest.raises(PgembedError, match=r"INTRANS.*commit or roll back"),
    ):
        install(connection)


def test_role_settings_and_row_factories_do_not_matter(
    empty_dsn: str, connect: Connect
) -> None:
    connection = connect(empty_dsn)
    connection.row_factory = psycopg.rows.dict_row
    assert install(connection).changed
    assert not install(connection).changed


@pytest.mark.parametrize(
    "setting", ["plpgsql.extra_errors = 'all'", "standard_conforming_strings = off"]
)
def test_settings_of_the_database_do_not_matter(
    empty_dsn: str, connect: Connect, setting: str
) -> None:
    database = connect(empty_dsn).info.dbname
    connect(empty_dsn).execute(f"ALTER DATABASE {database} SET {setting}".encode())
    connection = connect(empty_dsn)
    assert install(connection).changed
    name = setting.split(" ")[0]
    assert connection.execute(f"SHOW {name}".encode()).fetchone() in {
        ("all",),
        ("off",),
    }


def test_functions_pass_the_extra_checks_of_plpgsql(connection: Connection) -> None:
    """They are compiled in sessions that may ask for them."""
    connection.execute("SET search_path = pg_catalog, pg_temp")
    definitions = connection.execute(
        "SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p "
        "JOIN pg_language AS l ON l.oid = p.prolang AND l.lanname = 'plpgsql' "
        "WHERE p.pronamespace = 'pgembed'::regnamespace"
    ).fetchall()
    connection.execute("SET plpgsql.extra_errors = 'all'")
    for (definition,) in definitions:
        connection.execute(definition)


def test_install_takes_back_what_a_restore_gave_to_public(
    connection: Connection,
) -> None:
    """What pg_restore --no-privileges leaves: functions that anybody may execute."""
    connection.execute(
        "GRANT EXECUTE ON ALL ROUTINES IN SCHEMA pgembed TO PUBLIC;"
        "GRANT SELECT ON pgembed.model, pgembed.lease_seq TO PUBLIC;"
        "GRANT CREATE ON SCHEMA pgembed TO PUBLIC"
    )
    assert install(connection).changed
    assert open_to_public(connection) == []
    assert not install(connection).changed
