"""pgembed recall, advise and calibrate, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import psycopg
import pytest
from click.testing import CliRunner, Result

from pgembed.cli.advise import advise
from pgembed.cli.calibrate import calibrate
from pgembed.cli.recall import recall
from pgembed.errors import FilterError, PgembedError
from pgembed.search import advice

Run = Callable[..., Result]


@click.group()
def commands() -> None:
    """Hold the commands under test."""


for command in (advise, calibrate, recall):
    commands.add_command(command)


@pytest.fixture
def run(dsn: str) -> Run:
    """Run a command with the test's database in the environment."""

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(
            commands, arguments, env={"PGEMBED_DSN": dsn}, catch_exceptions=False
        )

    return invoke


@pytest.fixture
def items(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """3,000 rows in three kinds, an index, and a workload that asks for one kind."""
    connection.execute(
        "CREATE TABLE items (id int PRIMARY KEY, kind int, v public.vector(8)); "
        "CREATE TABLE workload (filter jsonb); "
        "INSERT INTO workload SELECT '{\"kind\": 1}' FROM generate_series(1, 20)"
    )
    vectors = np.random.default_rng(0).standard_normal((3000, 8)).round(4)
    with connection.cursor().copy("COPY items FROM STDIN") as copy:
        for i, vector in enumerate(vectors):
            copy.write_row((i, i % 3, str(vector.tolist())))
    connection.execute(
        "CREATE INDEX items_hnsw ON items USING hnsw (v public.vector_cosine_ops); "
        "ANALYZE items; SELECT pgembed.adopt_vectors('items', 'v')"
    )
    return connection


def test_recall(run: Run, items: psycopg.Connection[Any]) -> None:
    """Each shape of filter is a row; JSON has the same."""
    given = ("recall", "items_v", "--sample", "5", "--filter", '{"kind": [0, 1]}')
    table = run(*given)
    assert table.exit_code == 0, table.output
    assert "exact_ms" in table.stdout
    (row,) = json.loads(run(*given, "--json").stdout)
    assert row["filter_shape"] == {"kind": ["?"]}
    assert row["queries"] == 5
    assert row["recall"] >= 0.9


def test_recall_says_what_is_wrong_with_a_filter(run: Run) -> None:
    """A filter that is no JSON is named."""
    with pytest.raises(FilterError, match="is not JSON"):
        run("recall", "items_v", "--filter", "{kind: 1}")


def test_recall_draws(run: Run, items: psycopg.Connection[Any], tmp_path: Path) -> None:
    """--plot writes a picture, where matplotlib is installed."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "recall.png"
    file.write_text("an earlier one")
    result = run("recall", "items_v", "--sample", "3", "--plot", str(file))
    assert result.exit_code == 0, result.output
    assert file.read_bytes().startswith(b"\x89PNG")


def test_recall_draws_names_with_dollars(
    run: Run, items: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """And into the very file that is named."""
    pytest.importorskip("matplotlib")
    items.execute(
        'CREATE TABLE prices (id int PRIMARY KEY, "a$_$b" text, "$v" vector(2)); '
        "INSERT INTO prices SELECT i, '$x', ARRAY[i, 1]::vector "
        "FROM generate_series(1, 9) AS i; "
        "SELECT pgembed.adopt_vectors('prices', '$v', name => '$^a$')"
    )
    other = tmp_path / "recall.png"
    other.write_text("another's")
    given = ["--filter", '{"a$_$b": "$x"}', "--plot", str(tmp_path / "recall")]
    result = run("recall", "$^a$", "--sample", "3", *given)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "recall").read_bytes().startswith(b"\x89PNG")
    assert other.read_text() == "another's"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent/x.png", r"cannot write .*absent/x\.png: No such file or directory"),
        ("file/x.png", r"cannot write .*file/x\.png: Not a directory"),
        ("x.txt", r"cannot write .*x\.txt: its name must end in one of .*png, "),
    ],
)
def test_where_nothing_can_be_drawn(tmp_path: Path, name: str, says: str) -> None:
    """It is told before the database is asked for anything."""
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    with pytest.raises(PgembedError, match=says):
        draw_nowhere(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_drawing_needs_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the message says what to install, before anything is done."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(PgembedError, match=r"pgembed-vector\[plot\]"):
        draw_nowhere(tmp_path / "x.png")


def draw_nowhere(file: Path) -> None:
    CliRunner().invoke(
        commands,
        ["recall", "items_v", "--plot", str(file)],
        env={"PGEMBED_DSN": "host=/nonexistent"},
        catch_exceptions=False,
    )


def test_advise_apply_and_drop(run: Run, items: psycopg.Connection[Any]) -> None:
    """Proposals, their creation with its measured effect, and the way back."""
    items.execute(
        "ALTER DATABASE " + items.info.dbname + " SET pgembed.cost_dimension = 1"
    )
    given = ("advise", "items_v", "--workload", "workload")
    (row,) = json.loads(run(*given, "--json").stdout)
    assert row["filter"] == {"kind": {"eq": 1}}
    assert not row["present"]
    items.execute("INSERT INTO workload VALUES ('{\"gone\": 1}')")
    applied = run(*given, "--apply")
    assert applied.exit_code == 0, applied.output
    assert "before: " in applied.stdout
    assert "after: " in applied.stdout
    (row,) = json.loads(run(*given, "--json").stdout)
    assert row["present"]
    assert "serves a search" in run(*given, "--drop-unused").stdout
    items.execute("UPDATE workload SET filter = '{\"kind\": 2}'")
    assert row["index_name"] in run(*given, "--drop-unused").stdout


def test_statements_can_be_copied(run: Run, items: psycopg.Connection[Any]) -> None:
    """However long they are, out of a pipe."""
    items.execute(
        "ALTER DATABASE " + items.info.dbname + " SET pgembed.cost_dimension = 1"
    )
    items.execute(
        "UPDATE workload SET filter = jsonb_build_object('kind', 1, 'id', "
        "jsonb_build_object('not_in', array(SELECT generate_series(9000, 9300))))"
    )
    given = ("advise", "items_v", "--workload", "workload", "--budget", "50")
    rows = json.loads(run(*given, "--json").stdout)
    assert max(len(row["statement"]) for row in rows) > 1000
    shown = run(*given).stdout.splitlines()
    assert len(shown) == 1 + len(rows)
    for row, line in zip(rows, shown[1:], strict=True):
        assert row["statement"] in line


def test_advise_drops_what_misses_rows(
    run: Run, items: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, succeeds all the same, and proposes the index again."""
    items.execute(
        "ALTER DATABASE " + items.info.dbname + " SET pgembed.cost_dimension = 1"
    )
    monkeypatch.setattr(advice, "LEAST_RECALL", 1.01)
    given = ("advise", "items_v", "--workload", "workload")
    applied = run(*given, "--apply")
    assert applied.exit_code == 0, applied.output
    (row,) = json.loads(run(*given, "--json").stdout)
    assert not row["present"]
    assert f"dropped {row['index_name']} again" in applied.stderr
    assert "under 1.01" in applied.stderr
    assert "after: " in applied.stdout


def test_advise_without_a_record(run: Run, items: psycopg.Connection[Any]) -> None:
    """Nothing recorded, nothing proposed."""
    assert "no index would pay" in run("advise", "items_v").stdout


def test_calibrate(run: Run, items: psycopg.Connection[Any]) -> None:
    """The constants are printed; a dry run stores none of them."""
    rows = json.loads(run("calibrate", "items_v", "--dry-run", "--json").stdout)
    assert "cost_planner" in [row["name"] for row in rows]
    stored = "SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text ~ 'cost_'"
    assert items.execute(stored).fetchone() == (0,)
    assert run("calibrate", "items_v").exit_code == 0
    assert items.execute(stored).fetchone() == (1,)
