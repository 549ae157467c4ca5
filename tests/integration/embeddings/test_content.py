"""What is embedded of a row: columns and templates, and when it counts as changed."""

from __future__ import annotations

import psycopg
import pytest

from tests.harness.sql_worker import (
    Connection,
    SqlWorker,
    assert_converged,
    pending,
    rows,
    value,
)
from tests.integration.embeddings.support import (
    create_blind_collation,
    declare,
    documents,
)


def require_xml(connection: Connection) -> None:
    try:
        with connection.transaction():
            connection.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server was built without XML")


def content_of(worker: SqlWorker, name: str) -> list[str | None]:
    worker.work()
    return worker.claim(name).texts


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("title", "T"),
        ("{title}: {body}", "T: B"),
        ("{title}{title}", "TT"),
        ("{{{title}}} {{body}} 100%s", "{T} {body} 100%s"),
        ("it's \\ {title} $body$ %I", "it's \\ T $body$ %I"),
        ("{odd \"'%@ name}/{body}", "O/B"),
        ("{price} {title}", "7 T"),
        ("line\n{title}", "line\nT"),
    ],
)
def test_templates(
    scratch: Connection, scratch_worker: SqlWorker, template: str, expected: str
) -> None:
    documents(scratch)
    scratch.execute("""ALTER TABLE docs ADD COLUMN "odd ""'%@ name" text""")
    name = declare(scratch, "docs", template)
    scratch.execute("INSERT INTO docs VALUES (1, 'T', 'B', 7, 'O')")
    assert content_of(scratch_worker, name) == [expected]


@pytest.mark.parametrize(
    ("title", "body", "expected"),
    [
        (None, None, None),
        ("", " \n\t ", None),
        (None, "B", ": B"),
        ("T", None, "T: "),
    ],
)
def test_null_parts(
    scratch: Connection,
    scratch_worker: SqlWorker,
    title: str | None,
    body: str | None,
    expected: str | None,
) -> None:
    documents(scratch)
    name = declare(scratch, "docs", "{title}: {body}")
    scratch.execute("INSERT INTO docs VALUES (1, %s, %s)", (title, body))
    assert content_of(scratch_worker, name) == [expected]


def test_content_that_becomes_null_takes_the_vector_away(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "one", "two", "three")
    declare(scratch, "docs", "body")
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET body = NULL WHERE id = 1")
    scratch.execute("UPDATE docs SET body = '  ' WHERE id = 2")
    scratch_worker.drain()
    assert_converged(scratch, "docs_body")
    assert value(scratch, "SELECT count(body_embedding) FROM docs") == 1


def test_text_is_cut_at_a_million_characters(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    documents(scratch, "é" * 1_000_001)
    declare(scratch, "docs", "body")
    declare(scratch, "docs", "{body}{body}")
    assert content_of(scratch_worker, "docs_body") == ["é" * 1_000_000]
    assert content_of(scratch_worker, "docs_content") == ["é" * 1_000_000]


def test_braces_in_a_column_name(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    scratch.execute('CREATE TABLE docs (id int PRIMARY KEY, "{id}" text)')
    scratch.execute("INSERT INTO docs VALUES (1, 'x')")
    name = declare(scratch, "docs", "{id}", name="braces")
    assert content_of(scratch_worker, name) == ["x"]


@pytest.mark.parametrize("generated", ["STORED", "VIRTUAL"])
def test_generated_columns(
    scratch: Connection, scratch_worker: SqlWorker, generated: str
) -> None:
    if generated == "VIRTUAL" and scratch.info.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    documents(scratch, "one", "two")
    scratch.execute(
        "ALTER TABLE docs ADD COLUMN loud text "
        f"GENERATED ALWAYS AS (upper(body)) {generated}".encode()
    )
    declare(scratch, "docs", "loud")
    declare(scratch, "docs", "{loud}!")
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET body = 'other' WHERE id = 1")
    scratch.execute("UPDATE docs SET body = 'TWO' WHERE id = 2")
    assert pending(scratch, "docs_loud") == 1
    scratch_worker.drain()
    assert_converged(scratch, "docs_loud")
    assert_converged(scratch, "docs_content")


@pytest.mark.parametrize(
    ("definition", "first", "second"),
    [
        ("json", '{"a": 1}', '{"a":1}'),
        ("jsonb", '{"a": 1}', '{"a": 2}'),
        ("xml", "<a/>", "<a></a>"),
        ("point", "(1,2)", "(1,3)"),
        ("float8", "0.1", "0.10000000000000002"),
        ("numeric", "1.0", "1.00"),
        ("interval", "24 hours", "1 day"),
        ("bytea", "\\x01", "\\x02"),
        ("int[]", "{1}", "{1,2}"),
        ("char(9)", "a", "b"),
        ("timestamptz", "2020-01-01", "2020-01-02"),
    ],
)
def test_types_of_content(
    scratch: Connection,
    scratch_worker: SqlWorker,
    definition: str,
    first: str,
    second: str,
) -> None:
    if definition == "xml":
        require_xml(scratch)
    scratch.execute(
        f"CREATE TABLE docs (id int PRIMARY KEY, body {definition})".encode()
    )
    declare(scratch, "docs", "body")
    scratch.execute("SET LOCAL extra_float_digits = -3")
    rows(scratch, "INSERT INTO docs VALUES (1, %s), (2, NULL)", first)
    scratch_worker.drain()
    rows(scratch, "UPDATE docs SET body = %s WHERE id = 1", first)
    assert pending(scratch, "docs_body") == 0
    rows(scratch, "UPDATE docs SET body = %s WHERE id = 1", second)
    assert pending(scratch, "docs_body") == 1
    scratch_worker.drain()
    scratch.execute("SET LOCAL extra_float_digits = 1")
    assert_converged(scratch, "docs_body")


@pytest.mark.parametrize("chunk_tokens", [None, 8])
@pytest.mark.parametrize("definition", ["text COLLATE blind", "citext"])
def test_case_insensitive_content(
    scratch: Connection,
    scratch_worker: SqlWorker,
    definition: str,
    chunk_tokens: int | None,
) -> None:
    if "blind" in definition:
        create_blind_collation(scratch)
    scratch.execute("CREATE EXTENSION citext")
    scratch.execute(
        f"CREATE TABLE docs (id int PRIMARY KEY, body {definition})".encode()
    )
    names = [
        declare(scratch, "docs", "body", chunk_tokens=chunk_tokens),
        declare(scratch, "docs", "{body}!", chunk_tokens=chunk_tokens),
    ]
    scratch.execute("INSERT INTO docs VALUES (1, 'body')")
    scratch_worker.drain()
    scratch.execute("UPDATE docs SET body = 'Body'")
    assert [pending(scratch, name) for name in names] == [1, 1]
    scratch_worker.drain()
    for name in names:
        assert_converged(scratch, name)


def test_collations_that_contradict_each_other(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    scratch.execute(
        "CREATE TABLE docs "
        '(id int PRIMARY KEY, a text COLLATE "C", b text COLLATE "POSIX")'
    )
    declare(scratch, "docs", "{a} {b}", chunk_tokens=8)
    scratch.execute("INSERT INTO docs VALUES (1, 'x', 'y'), (2, '', ' ')")
    scratch_worker.drain()
    assert_converged(scratch, "docs_content")
    assert value(scratch, "SELECT pgembed.reconcile('docs_content')") == 0


def test_a_template_of_many_columns(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    """A function takes 100 arguments at most."""
    names = [f"c{i}" for i in range(250)]
    columns = ", ".join(f"{name} text" for name in names)
    scratch.execute(f"CREATE TABLE docs (id int PRIMARY KEY, {columns})".encode())
    scratch.execute("INSERT INTO docs (id, c249) VALUES (1, 'the last'), (2, ' ')")
    declare(scratch, "docs", "".join(f"{{{name}}}" for name in names))
    scratch_worker.work()
    claim = scratch_worker.claim("docs_content")
    assert claim.texts == ["the last", None]
    assert scratch_worker.complete(claim) == claim.slots
    assert value(scratch, "SELECT pgembed.reconcile('docs_content')") == 0


def test_settings_of_the_session_do_not_change_the_text(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    scratch.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, at timestamptz, f float8, b bytea)"
    )
    declare(scratch, "docs", "{at} {f} {b}")
    scratch.execute(
        "INSERT INTO docs VALUES (1, '2020-05-06 07:08:09+00', 0.1::float4, '\\x01')"
    )
    for setting in (
        "timezone = 'Asia/Tokyo'",
        "datestyle = 'German'",
        "extra_float_digits = -3",
        "bytea_output = 'escape'",
        "standard_conforming_strings = off",
    ):
        scratch.execute(f"SET LOCAL {setting}".encode())
    assert content_of(scratch_worker, "docs_content") == [
        "2020-05-06 07:08:09+00 0.10000000149011612 \\x01"
    ]


def test_backslashes_are_read_alike_whatever_the_session_says(
    scratch: Connection, scratch_worker: SqlWorker
) -> None:
    scratch.execute("SET LOCAL standard_conforming_strings = off")
    documents(scratch, "no letter that stands for space: one")
    declare(scratch, "docs", "{title}{body}")
    scratch_worker.drain()
    scratch.execute("SET LOCAL standard_conforming_strings = on")
    assert_converged(scratch, "docs_content")
    scratch.execute("INSERT INTO docs (id, body) VALUES (2, 'xyz')")
    scratch.execute("SET LOCAL standard_conforming_strings = off")
    scratch_worker.drain()
    scratch.execute("SET LOCAL standard_conforming_strings = on")
    assert_converged(scratch, "docs_content")
