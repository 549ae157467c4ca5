"""pgembed search, as a person types it: what tables may be called and may hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgembed.cli.main import pgembed
from pgembed.cli.progress import wait_until_current
from tests.harness.models import register_model

Connection = psycopg.Connection[Any]
Run = Callable[..., Result]


@pytest.fixture
def run(dsn: str, connection: Connection) -> Run:
    """Run a command in a database where every query becomes the same vector."""
    register_model(connection)
    connection.execute(
        "CREATE OR REPLACE FUNCTION pgembed.embed_query(model text, content text) "
        "RETURNS public.vector LANGUAGE sql STABLE STRICT PARALLEL UNSAFE "
        "SECURITY DEFINER RETURN '[1,0,0]'::public.vector"
    )

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(
            pgembed, arguments, env={"PGEMBED_DSN": dsn}, catch_exceptions=False
        )

    return invoke


def found(run: Run, embedding: str) -> list[dict[str, Any]]:
    """Return what a search prints as JSON, which JSON's own rules allow."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    result = run("search", embedding, "text", "--json")
    rows: list[dict[str, Any]] = json.loads(result.stdout, parse_constant=refuse)
    return rows


def test_columns_called_like_something_else(run: Run, connection: Connection) -> None:
    """A column distance beside the search's own, percent signs, brackets."""
    connection.execute(
        'CREATE TABLE "50% off" (id int PRIMARY KEY, v public.vector(3), '
        'distance int, "%s" int, "%(k)s" int, "[b]x[/b]" int);'
        "INSERT INTO \"50% off\" VALUES (1, '[1,0,0]', 500, 5, 6, 7);"
        "SELECT pgembed.adopt_vectors('\"50% off\"', 'v', name => 'off', "
        "model => 'tiny')"
    )
    assert found(run, "off") == [
        {
            "distance": 0.0,
            "id": 1,
            "50% off.distance": 500,
            "%s": 5,
            "%(k)s": 6,
            "[b]x[/b]": 7,
        }
    ]
    assert "[b]x[/b]" in run("search", "off", "text").stdout
    assert "off" in run("search", "off", "text", "--explain").stdout


def test_vectors_of_other_embeddings_are_not_printed(
    run: Run, connection: Connection
) -> None:
    connection.execute(
        "CREATE TABLE twice (id int PRIMARY KEY, v vector(3), w vector(3));"
        "INSERT INTO twice VALUES (1, '[1,0,0]', '[0,1,0]');"
        "SELECT pgembed.adopt_vectors('twice', 'v', name => 'one', model => 'tiny');"
        "SELECT pgembed.adopt_vectors('twice', 'w', name => 'two', model => 'tiny')"
    )
    assert found(run, "one") == [{"distance": 0.0, "id": 1}]


def test_values_that_python_does_not_have(run: Run, connection: Connection) -> None:
    """Dates beyond its calendar are PostgreSQL's text; JSON has no NaN."""
    connection.execute(
        "SET datestyle = 'ISO'; SET timezone = 'UTC';"
        "CREATE TABLE wide (id int PRIMARY KEY, v public.vector(3), d date, "
        "t timestamptz, w tsrange, n time, i interval, f float8, a float8[]);"
        "INSERT INTO wide VALUES (1, '[1,0,0]', 'infinity', 'infinity', "
        "'[2024-01-01,infinity)', '24:00', '1000000000 days', 'NaN', '{1,-Infinity}'), "
        "(2, '[1,1,0]', '20000-01-01', '0044-03-15 BC', 'empty', '12:00', '1 hour', "
        "'Infinity', '{}');"
        "SELECT pgembed.adopt_vectors('wide', 'v', model => 'tiny')"
    )
    one, two = found(run, "wide_v")
    assert (one["d"], one["t"], one["n"]) == ("infinity", "infinity", "24:00:00")
    assert one["i"] == "1000000000 days"
    assert "infinity" in one["w"]
    assert (one["f"], one["a"]) == ("NaN", [1, "-Infinity"])
    assert (two["d"], two["n"], two["i"]) == ("20000-01-01", "12:00:00", 3600)
    assert two["t"].endswith("BC")
    assert two["f"] == "Infinity"
    assert "20000-01-01" in run("search", "wide_v", "text").stdout


def test_ranges_are_those_of_the_server(run: Run, connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE spans (id int PRIMARY KEY, v public.vector(3), r int4range, "
        "d daterange, m nummultirange, a int8range[]);"
        "INSERT INTO spans VALUES (1, '[1,0,0]', '[5,)', '(,)', '{[1,2),[3.5,)}', "
        "ARRAY['(,5)'::int8range, 'empty']);"
        "SELECT pgembed.adopt_vectors('spans', 'v', model => 'tiny')"
    )
    (row,) = found(run, "spans_v")
    assert (row["r"], row["d"], row["m"]) == ("[5,)", "(,)", "{[1,2),[3.5,)}")
    assert row["a"] == ["(,5)", "empty"]
    assert "[5,)  (,)  {[1,2),[3.5,)}" in run("search", "spans_v", "text").stdout


def test_only_distances_are_rounded(run: Run, connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE places (id int PRIMARY KEY, v public.vector(3), "
        "latitude float8, price float8, ratio float4, hot float8);"
        "INSERT INTO places VALUES (1, '[1,2,2]', 52.520008, 1234567.5, 3, 'NaN');"
        "SELECT pgembed.adopt_vectors('places', 'v', model => 'tiny')"
    )
    _, line = run("search", "places_v", "text").stdout.splitlines()
    assert line.split() == ["0.6667", "1", "52.520008", "1234567.5", "3", "NaN"]


def test_numbers_in_json_keep_their_digits(run: Run, connection: Connection) -> None:
    """Those that are no float's are shown as texts, like numeric columns."""
    connection.execute(
        "CREATE TABLE exact (id int PRIMARY KEY, v public.vector(3), n numeric, "
        "b jsonb, j json);"
        "INSERT INTO exact VALUES (1, '[1,0,0]', 12345678901234567.89, "
        "'[12345678901234567.89, 1.5, 1.10, 12345678901234567890]', "
        "'[1e400, 1e99999999999999999999, 0.1, -0.0]');"
        "SELECT pgembed.adopt_vectors('exact', 'v', model => 'tiny')"
    )
    (row,) = found(run, "exact_v")
    assert row["n"] == "12345678901234567.89"
    assert row["b"] == [row["n"], 1.5, 1.1, 12345678901234567890]
    assert row["j"] == ["1e400", "1e99999999999999999999", 0.1, 0]
    printed = run("search", "exact_v", "text").stdout
    assert '["12345678901234567.89", 1.5, 1.1' in printed


@pytest.mark.parametrize("style", ["sql_standard", "postgres_verbose", "iso_8601"])
def test_intervals_are_seconds_whatever_their_style(
    run: Run, connection: Connection, style: str
) -> None:
    connection.execute(
        f"ALTER DATABASE {connection.info.dbname} SET intervalstyle = {style};"
        "CREATE TABLE timed (id int PRIMARY KEY, v public.vector(3), i interval);"
        "INSERT INTO timed VALUES (1, '[1,0,0]', '1 day 1 hour');"
        "SELECT pgembed.adopt_vectors('timed', 'v', model => 'tiny')".encode()
    )
    assert found(run, "timed_v") == [{"distance": 0.0, "id": 1, "i": 90000.0}]


@pytest.mark.parametrize(
    "text", ["[/b] left", r"\[bold]both", "[bold]x[/bold]", ":smile:", "a \\"]
)
def test_text_is_no_markup(run: Run, connection: Connection, text: str) -> None:
    """Brackets in a table are printed as they are, also inside arrays and jsonb."""
    connection.execute(
        "CREATE TABLE marks (id int PRIMARY KEY, v public.vector(3), body text, "
        "tags text[], meta jsonb)"
    )
    connection.execute(
        "INSERT INTO marks VALUES (1, '[1,0,0]', %s, %s, %s)",
        (text, [text], json.dumps({"key": text})),
    )
    connection.execute("SELECT pgembed.adopt_vectors('marks', 'v', model => 'tiny')")
    printed = run("search", "marks_v", "text").stdout
    assert text in printed
    assert json.dumps([text]) in printed
    assert json.dumps({"key": text}) in printed


def test_text_does_not_command_the_terminal(run: Run, connection: Connection) -> None:
    """Lines stay lines; what else a terminal obeys is spelled out, in names as well."""
    connection.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, v public.vector(3), "
        'body text, tags text[], U&"x\\001b[1m" int);'
        "INSERT INTO orders VALUES (1, '[1,0,0]', "
        "E'\\x1b]0;owned\\x07\\rone\\r\\ntwo\\u009b2J', ARRAY[E'\\x7f'], 1);"
        "SELECT pgembed.adopt_vectors('orders', 'v', model => 'tiny')"
    )
    printed = run("search", "orders_v", "text").stdout
    assert r"\x1b]0;owned\x07\rone" in printed
    assert r"two\x9b2J" in printed
    assert r'["\x7f"]' in printed
    assert r"x\x1b[1m" in printed
    assert all(character.isprintable() for character in printed.replace("\n", ""))


def test_a_column_called_like_that_of_the_chunks(
    run: Run, connection: Connection
) -> None:
    """With chunks, the vectors are in another table: the source's column is shown."""
    connection.execute(
        "CREATE TABLE pages (id int PRIMARY KEY, body text, embedding text);"
        "INSERT INTO pages VALUES (1, 'one', 'shown');"
        "SELECT pgembed.create_embedding('pages', 'body', 'tiny', chunk_tokens => 8, "
        "index => 'none')"
    )
    connection.execute("INSERT INTO pages_body_chunk VALUES (1, 0, 'one', '[1,0,0]')")
    assert found(run, "pages_body") == [
        {"distance": 0.0, "id": 1, "body": "one", "embedding": "shown"}
    ]


def test_names_are_no_markup(
    run: Run, connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed while one waits names the embedding."""
    connection.execute("CREATE TABLE empty (id int PRIMARY KEY, body text)")
    connection.execute(
        "SELECT pgembed.create_embedding('empty', 'body', 'tiny', '[b]x[/b]')"
    )
    wait_until_current(connection, "[b]x[/b]")
    assert "[b]x[/b]: 0 of 0 rows" in capsys.readouterr().out
