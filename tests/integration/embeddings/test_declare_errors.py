"""create_embedding: what it refuses, what it says then, and that nothing changes."""

from __future__ import annotations

import pytest

from tests.harness.models import register_model
from tests.harness.sql_worker import Connection, rows
from tests.integration.embeddings.support import declare, documents, refused


@pytest.mark.parametrize(
    "create",
    [
        "CREATE VIEW bad AS SELECT 1 AS id, 'x' AS body",
        "CREATE MATERIALIZED VIEW bad AS SELECT 1 AS id, 'x' AS body",
        "CREATE TEMP TABLE bad (id int PRIMARY KEY, body text)",
        "CREATE SEQUENCE bad",
        "CREATE EXTENSION file_fdw; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw; "
        "CREATE FOREIGN TABLE bad (id int, body text) SERVER s "
        "OPTIONS (filename '/dev/null')",
    ],
    ids=["view", "materialized view", "temporary", "sequence", "foreign"],
)
def test_what_is_not_a_table(scratch: Connection, create: str) -> None:
    rows(scratch, create)
    with refused(
        scratch,
        "42809",
        message="bad is not a table that rows can be kept for",
        hint="an ordinary or partitioned table",
    ):
        declare(scratch, "bad", "body")


@pytest.mark.parametrize(
    "table", ["pg_class", "pgembed.model", "information_schema.sql_features"]
)
def test_system_tables(scratch: Connection, table: str) -> None:
    with refused(scratch, "42809", message="is not a table", hint="a system table"):
        declare(scratch, table, "name")


def test_null_source(scratch: Connection) -> None:
    with refused(
        scratch, "22004", message="source table is NULL", hint="Name the table"
    ):
        rows(scratch, "SELECT pgembed.create_embedding(NULL, 'body', 'tiny')")


def test_no_primary_key(scratch: Connection) -> None:
    scratch.execute("CREATE TABLE bad (id int UNIQUE, body text)")
    with refused(
        scratch,
        "42P16",
        message="table public.bad has no primary key",
        hint="ALTER TABLE public.bad ADD PRIMARY KEY",
    ):
        declare(scratch, "bad", "body")


def test_temporal_primary_key(scratch: Connection) -> None:
    if scratch.info.server_version < 180000:
        pytest.skip("temporal keys came with PostgreSQL 18")
    scratch.execute("CREATE EXTENSION btree_gist")
    scratch.execute(
        "CREATE TABLE bad (id int, valid daterange, body text, "
        "PRIMARY KEY (id, valid WITHOUT OVERLAPS))"
    )
    with refused(scratch, "0A000", message="by equality", hint="WITHOUT OVERLAPS"):
        declare(scratch, "bad", "body")


def test_reserved_key_name(scratch: Connection) -> None:
    scratch.execute("CREATE TABLE bad (pgembed_slot int PRIMARY KEY, body text)")
    with refused(scratch, "42939", message="pgembed_slot", hint="pgembed_"):
        declare(scratch, "bad", "body")


def test_inheritance_children(scratch: Connection) -> None:
    documents(scratch)
    scratch.execute("CREATE TABLE more () INHERITS (docs)")
    with refused(scratch, "42809", message="inheritance children", hint="partitioning"):
        declare(scratch, "docs", "body")


def test_unknown_model(scratch: Connection) -> None:
    documents(scratch)
    with refused(scratch, "42704", message="'nope' is not registered", hint="tiny"):
        rows(scratch, "SELECT pgembed.create_embedding('docs', 'body', 'nope')")
    with refused(scratch, "42704", message="NULL is not registered", hint="model add"):
        rows(scratch, "SELECT pgembed.create_embedding('docs', 'body', NULL)")


@pytest.mark.parametrize("content", ["", None])
def test_no_content(scratch: Connection, content: str | None) -> None:
    documents(scratch)
    with refused(scratch, "22023", message="NULL or empty", hint="{title}: {body}"):
        rows(scratch, "SELECT pgembed.create_embedding('docs', %s, 'tiny')", content)


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("nope", "nope"),
        ("{title} {nope} {Nope}", '"Nope", nope'),
        ("{}", '""'),
        ("ctid", "ctid"),
        ("{{title}}", '"{{title}}"'),
    ],
)
def test_unknown_column(scratch: Connection, content: str, missing: str) -> None:
    documents(scratch)
    with refused(
        scratch, "42703", message=f"has no column {missing}", hint="id, title, body"
    ):
        declare(scratch, "docs", content)


@pytest.mark.parametrize("content", ["{title", "title}", "{title}}", "{a{{b}", "}{"])
def test_unmatched_brace(scratch: Connection, content: str) -> None:
    documents(scratch)
    with refused(scratch, "22023", message="unmatched brace", hint="{{ and }}"):
        declare(scratch, "docs", content)


@pytest.mark.parametrize("option", ["storage", "index", "on_change"])
@pytest.mark.parametrize("wrong", ["btree", "", None])
def test_unknown_option(scratch: Connection, option: str, wrong: str | None) -> None:
    documents(scratch)
    with refused(scratch, "22023", message=f"{option} is", hint="Choose one of"):
        declare(scratch, "docs", "body", **{option: wrong})


@pytest.mark.parametrize(
    ("dimensions", "storage"), [(2001, "vector"), (4001, "halfvec")]
)
def test_too_many_dimensions_for_an_index(
    scratch: Connection, dimensions: int, storage: str
) -> None:
    documents(scratch)
    register_model(scratch, "wide", dimensions=dimensions)
    with refused(scratch, "54000", message=f"has {dimensions}", hint="index => 'none'"):
        rows(
            scratch,
            "SELECT pgembed.create_embedding('docs', 'body', 'wide', storage => %s)",
            storage,
        )


def test_duplicate_name(scratch: Connection) -> None:
    documents(scratch)
    declare(scratch, "docs", "body")
    with refused(
        scratch, "42710", message="already an embedding", hint="drop_embedding"
    ):
        declare(scratch, "docs", "body", target_column="other")


def test_two_embeddings_of_one_column(scratch: Connection) -> None:
    documents(scratch)
    declare(scratch, "docs", "body", target_column="v")
    with refused(
        scratch,
        "42710",
        message="column v of table public.docs already belongs to the embedding",
        hint="target_column",
    ):
        declare(scratch, "docs", "title", target_column="v")


@pytest.mark.parametrize(
    ("name", "chunk_tokens"), [("", None), ("n" * 64, None), ("n" * 58, 8)]
)
def test_bad_name(scratch: Connection, name: str, chunk_tokens: int | None) -> None:
    documents(scratch)
    with refused(scratch, "42602", message="empty or longer", hint="name =>"):
        declare(scratch, "docs", "body", name=name, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("column", ["", "c" * 64])
def test_bad_target_name(scratch: Connection, column: str) -> None:
    documents(scratch)
    with refused(
        scratch, "42602", message="empty or longer than 63", hint="target_column"
    ):
        declare(scratch, "docs", "body", target_column=column)


@pytest.mark.parametrize("definition", ["text", "vector(4)", "vector", "halfvec(3)"])
def test_target_column_of_another_type(scratch: Connection, definition: str) -> None:
    documents(scratch)
    scratch.execute(f"ALTER TABLE docs ADD COLUMN v {definition}".encode())
    with refused(scratch, "42804", message="column v of table", hint="target_column"):
        declare(scratch, "docs", "body", target_column="v")


@pytest.mark.parametrize(
    "definition",
    [
        "vector(3) NOT NULL",
        "vector(3) GENERATED ALWAYS AS (array_fill(price, ARRAY[3])::vector) STORED",
    ],
)
def test_target_column_that_cannot_be_written(
    scratch: Connection, definition: str
) -> None:
    documents(scratch)
    scratch.execute(f"ALTER TABLE docs ADD COLUMN v {definition}".encode())
    with refused(
        scratch, "42P16", message="generated, or cannot be NULL", hint="NOT NULL"
    ):
        declare(scratch, "docs", "body", target_column="v")


def test_column_as_its_own_content(scratch: Connection) -> None:
    documents(scratch)
    scratch.execute("ALTER TABLE docs ADD COLUMN v vector(3)")
    with refused(scratch, "22023", message="its own content", hint="target_column"):
        declare(scratch, "docs", "{body} {v}", target_column="v")


def test_content_that_is_computed_from_the_column(scratch: Connection) -> None:
    """Each vector would change the content that it is of, for ever."""
    documents(scratch)
    rows(
        scratch,
        "ALTER TABLE docs ADD v vector(3), ADD w vector(3);"
        "ALTER TABLE docs ADD t text GENERATED ALWAYS AS "
        "(body || coalesce(left(v::text, 4), '')) STORED",
    )
    for content in ("t", "{title} {t}"):
        with refused(scratch, "22023", message="its own content", hint="target_column"):
            declare(scratch, "docs", content, target_column="v")
    declare(scratch, "docs", "t", target_column="w")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_overlap": 1}, "chunk_overlap is 1 without chunk_tokens"),
        ({"chunk_tokens": 7}, "chunk_tokens 7"),
        ({"chunk_tokens": 257}, "chunk_tokens 257"),
        ({"chunk_tokens": 8, "chunk_overlap": 8}, "chunk_overlap 8"),
        ({"chunk_tokens": 8, "chunk_overlap": -1}, "chunk_overlap -1"),
        ({"chunk_tokens": 8, "target_column": "v"}, "target_column 'v'"),
    ],
)
def test_chunk_options(
    scratch: Connection, options: dict[str, object], message: str
) -> None:
    documents(scratch)
    with refused(scratch, "22023", message=message, hint="hunk"):
        declare(scratch, "docs", "body", **options)


def test_chunk_table_in_the_way(scratch: Connection) -> None:
    documents(scratch)
    scratch.execute("CREATE TABLE docs_body_chunk ()")
    with refused(scratch, "42P07", message="docs_body_chunk", hint="another name"):
        declare(scratch, "docs", "body", chunk_tokens=8)


def test_key_column_named_like_a_chunk_column(scratch: Connection) -> None:
    scratch.execute("CREATE TABLE bad (content int PRIMARY KEY, body text)")
    with refused(scratch, "42P07", message="bad_body_chunk", hint="another name"):
        declare(scratch, "bad", "body", chunk_tokens=8)


def test_forced_row_level_security(scratch: Connection) -> None:
    documents(scratch)
    scratch.execute("CREATE ROLE plain_owner")
    scratch.execute("ALTER TABLE docs FORCE ROW LEVEL SECURITY")
    scratch.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    scratch.execute("ALTER TABLE docs OWNER TO plain_owner")
    scratch.execute("GRANT USAGE, CREATE ON SCHEMA pgembed TO plain_owner")
    scratch.execute("GRANT ALL ON ALL TABLES IN SCHEMA pgembed TO plain_owner")
    scratch.execute("GRANT ALL ON ALL FUNCTIONS IN SCHEMA pgembed TO plain_owner")
    scratch.execute("SET LOCAL ROLE plain_owner")
    with refused(scratch, "42501", message="hides rows", hint="BYPASSRLS"):
        declare(scratch, "docs", "body")
