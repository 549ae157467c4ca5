"""The commands against a real database, as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgembed.cli.errors import explain
from pgembed.cli.main import pgembed
from pgembed.embeddings import declare
from pgembed.postgres.connection import connect
from tests.harness.models import register_model
from tests.harness.roles import ordinary_role
from tests.harness.sql_worker import SqlWorker

Connection = psycopg.Connection[Any]
Run = Callable[..., Result]


@pytest.fixture
def run(dsn: str) -> Run:
    """Run a command with the test's database in the environment."""

    def invoke(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(
            pgembed, arguments, env={"PGEMBED_DSN": dsn}, **options
        )

    return invoke


@pytest.fixture
def docs(connection: Connection) -> Connection:
    """Return a connection to a database with a table, a model and an embedding."""
    register_model(connection)
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO docs VALUES (1, 'one'), (2, 'two')")
    connection.execute("SELECT pgembed.create_embedding('docs', 'body', 'tiny')")
    return connection


def test_install_says_that_nothing_was_to_do(run: Run) -> None:
    """A second install is a no-op and says so."""
    result = run("install")
    assert result.exit_code == 0
    assert "already up to date" in result.stdout


def test_install_on_an_empty_database(empty_dsn: str) -> None:
    """The DSN is taken from --dsn before the environment."""
    result = CliRunner().invoke(
        pgembed, ["install", "--dsn", empty_dsn], env={"PGEMBED_DSN": "nonsense"}
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("installed pgembed")


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "model list",
        "model add x /absent",
        "embedding retry x",
        "search x y",
        "batch x --self --results r",
        "layout show",
    ],
)
def test_a_database_without_pgembed(empty_dsn: str, line: str) -> None:
    runner = CliRunner(env={"PGEMBED_DSN": empty_dsn})
    error = runner.invoke(pgembed, line.split()).exception
    assert isinstance(error, psycopg.Error)
    first, remedy = explain(error).splitlines()
    assert "does not exist" in first
    assert "run 'pgembed install' with the same DSN" in remedy


def test_an_older_pgembed(run: Run, connection: Connection) -> None:
    connection.execute("DROP FUNCTION pgembed.retry_failed(text)")
    error = run("embedding", "retry", "x").exception
    assert isinstance(error, psycopg.Error)
    assert "or an older version of it is: run 'pgembed install'" in explain(error)
    assert "is an extension, ALTER EXTENSION pgembed UPDATE" in explain(error)


def test_install_without_a_transport(empty_dsn: str) -> None:
    runner = CliRunner(env={"PGEMBED_DSN": empty_dsn})
    for arguments in (["--transport", "none"], []):
        said = runner.invoke(pgembed, ["install", *arguments]).output
        assert "by your choice: 'pgembed install --transport auto'" in said
        assert "dblink" not in said
    said = runner.invoke(pgembed, ["install", "--transport", "auto"]).output
    assert "by your choice" not in said


def test_uninstall_asks_first(run: Run, connection: Connection) -> None:
    """Without a yes nothing is removed."""
    assert run("uninstall", input="n\n").exit_code == 1
    assert _schema_exists(connection)
    assert run("uninstall", "--yes").exit_code == 0
    assert not _schema_exists(connection)


def test_status_as_json(run: Run, docs: Connection) -> None:
    """Programs read JSON."""
    (row,) = json.loads(run("status", "--json").stdout)
    assert (row["name"], row["rows"], row["pending"]) == ("docs_body", 2, 2)


def test_interrupted_while_it_is_imported(tmp_path: Path) -> None:
    """Ctrl-C gives no traceback, however early it comes."""
    (tmp_path / "psycopg.py").write_text(
        "import signal, time; signal.raise_signal(signal.SIGINT); time.sleep(60)"
    )
    root = Path(__file__).parents[3]
    path = os.pathsep.join(map(str, (tmp_path, root)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pgembed", "status"],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "\nAborted!\n")


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["status", "--json"]])
def test_the_disk_of_its_output_is_full(
    dsn: str, docs: Connection, arguments: list[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pgembed", *arguments],
            env={**os.environ, "PGEMBED_DSN": dsn},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.endswith("finds no room: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_status_is_watched_until_interrupted(dsn: str, docs: Connection) -> None:
    """Every look is a whole answer; Ctrl-C is no error."""
    with subprocess.Popen(
        [sys.executable, "-m", "pgembed", "status", "--json", "--watch", "0.1"],
        env={**os.environ, "PGEMBED_DSN": dsn},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        looks = 0
        while looks < 2:
            looks += process.stdout.readline() == "]\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_status_is_watched_across_lost_connections(dsn: str, docs: Connection) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pgembed", "status", "--json", "--watch", "0.1"],
        env={**os.environ, "PGEMBED_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(2):
            while process.stdout.readline() != "]\n":
                continue
        docs.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'pgembed status' "
            "AND datname = current_database()"
        )
        assert "trying again" in process.stderr.readline()
        while process.stdout.readline() != "]\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_status_as_a_table(run: Run, docs: Connection) -> None:
    """People read a table, and are told that no worker runs."""
    output = run("status").stdout
    assert "docs_body" in output
    assert "pgembed worker" in output


def test_errors_do_not_command_the_terminal(dsn: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgembed", "embedding", "pause", "\x1b[2J"],
        env={**os.environ, "PGEMBED_DSN": dsn},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert r"\x1b[2J" in done.stderr
    assert "\x1b" not in done.stderr


def test_failures_show_keys_with_all_their_digits(
    run: Run, connection: Connection
) -> None:
    register_model(connection)
    connection.execute(
        "CREATE TABLE docs (id numeric PRIMARY KEY, body text);"
        "INSERT INTO docs VALUES (12345678901234567.89, 'one');"
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny')"
    )
    worker = SqlWorker(connection)
    worker.work()
    assert worker.fail(worker.claim("docs_body"), "no", max_attempts=1) == 1
    command = ("embedding", "status", "docs_body", "--failures")
    assert "12345678901234567.89" in run(*command).stdout
    (failure,) = json.loads(run(*command, "--json").stdout)
    assert failure["key"] == {"id": "12345678901234567.89"}


def test_embedding_create_and_drop(run: Run, docs: Connection) -> None:
    """An embedding is declared and dropped again."""
    docs.execute("ALTER TABLE docs ADD title text")
    result = run("embedding", "create", "docs", "{title}: {body}", "--model", "tiny")
    assert result.stdout == "created embedding docs_content\n", result.output
    names = [e["name"] for e in json.loads(run("embedding", "list", "--json").stdout)]
    assert names == ["docs_body", "docs_content"]
    assert run("embedding", "drop", "docs_content", "--drop-vectors").exit_code == 0
    names = [e["name"] for e in json.loads(run("embedding", "list", "--json").stdout)]
    assert names == ["docs_body"]


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("retry", "0 rows of docs_body are tried again"),
        ("reconcile", "2 rows of docs_body were queued"),
        ("pause", "paused docs_body"),
        ("resume", "resumed docs_body"),
    ],
)
def test_embedding_verbs(run: Run, docs: Connection, verb: str, said: str) -> None:
    """Each verb says what it did."""
    result = run("embedding", verb, "docs_body")
    assert result.stdout.strip() == said, result.output


def by_command(dsn: str) -> None:
    arguments = ["embedding", "reconcile", "docs_body", "--dsn", dsn]
    CliRunner().invoke(pgembed, arguments, catch_exceptions=False)


def by_function(dsn: str) -> None:
    with connect(dsn) as connection:
        declare.reconcile(connection, "docs_body")


@pytest.mark.parametrize("reconcile", [by_command, by_function])
def test_reconciling_locks_writers_out_for_a_moment(
    docs: Connection, dsn: str, reconcile: Callable[[str], None]
) -> None:
    """The repair of triggers is committed before rows are compared."""
    states = "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname ~ '^pgembed'"
    before = sorted(docs.execute(states))
    docs.execute("ALTER TABLE docs DISABLE TRIGGER ALL")
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE pgembed.job_1 IN SHARE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            reconcile(make_conninfo(dsn, options="-c lock_timeout=200ms"))
    assert sorted(docs.execute(states)) == before


def test_waiting_without_a_worker(run: Run, docs: Connection) -> None:
    """Waiting for a worker that is not there is an error that says how to start one."""
    result = run("embedding", "wait", "docs_body")
    assert "pgembed worker" in str(result.exception)


def test_waiting_for_nothing(run: Run, docs: Connection) -> None:
    """It takes no worker."""
    docs.execute("UPDATE pgembed.embedding SET enqueued = true")
    result = run("embedding", "wait", "docs_body")
    assert result.exit_code == 0, result.output


def test_waiting_for_rows_that_one_may_not_count(dsn: str, docs: Connection) -> None:
    """Waiting would be for ever."""
    docs.execute("SELECT pgembed._register_worker('embed', 'here', 1, '0.1.0')")
    with ordinary_role(dsn, may_create=False) as role:
        name = conninfo_to_dict(role)["user"]
        docs.execute("SELECT pgembed.grant_owner(%s::text::regrole)", [name])
        result = CliRunner().invoke(
            pgembed, ["embedding", "wait", "docs_body"], env={"PGEMBED_DSN": role}
        )
    assert "'docs_body' cannot be watched: unknown; not counted" in str(
        result.exception
    )


def test_models_are_listed_shown_and_removed(run: Run, docs: Connection) -> None:
    """A model in use is not removed."""
    (listed,) = json.loads(run("model", "list", "--json").stdout)
    assert (listed["name"], listed["embeddings"]) == ("tiny", 1)
    assert json.loads(run("model", "show", "tiny").stdout)["dimensions"] == 3
    assert "docs_body" in str(run("model", "remove", "tiny").exception)
    run("embedding", "drop", "docs_body")
    assert run("model", "remove", "tiny").exit_code == 0


def test_a_filter_that_is_not_json(run: Run, docs: Connection) -> None:
    """The message shows how a filter is written."""
    result = run("search", "docs_body", "x", "--filter", "price < 3")
    assert "is not JSON" in str(result.exception)


def test_doctor_reports_every_subject(run: Run, docs: Connection) -> None:
    """The doctor's findings have a level, a subject and a message."""
    findings = json.loads(run("doctor", "--json").stdout)
    assert {"level", "subject", "message", "remedy"} == set(findings[0])
    assert any("worker" in finding["subject"] for finding in findings)


def _commands(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    found = [(name, command)]
    if isinstance(command, click.Group):
        for child_name, child in command.commands.items():
            found += _commands(child, f"{name} {child_name}")
    return found


@pytest.mark.parametrize(
    ("name", "command"), _commands(pgembed, "pgembed"), ids=lambda v: str(v)
)
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    """Nothing is left unexplained."""
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"


def _schema_exists(connection: Connection) -> bool:
    row = connection.execute("SELECT to_regnamespace('pgembed') IS NOT NULL").fetchone()
    return bool(row and row[0])
