"""An embedding that no longer fits its table: the error says why."""

from __future__ import annotations

import psycopg
import pytest

from tests.harness.models import register_model
from tests.integration.search.support import Connection, adopt, unsafe

SEARCHES = {
    "search": "SELECT count(*) FROM pgembed.search(NULL::docs, '[1,2,3]'::vector)",
    "index": "SELECT count(*) FROM pgembed.search(NULL::docs, '[1,2,3]'::vector, "
    "mode => 'index')",
    "explain": "SELECT pgembed.explain_search(NULL::docs, '[1,2,3]'::vector)",
    "hybrid": "SELECT count(*) FROM pgembed.hybrid_search(NULL::docs, 'x', "
    "query_vector => '[1,2,3]'::vector, words => 'body')",
    "recall": "SELECT * FROM pgembed.recall('docs_v', sample => 1)",
}
MEASURES = {
    "recall": SEARCHES["recall"],
    "recall of a workload": "SELECT * FROM pgembed.recall('docs_v', "
    "workload => 'queries')",
    "calibrate": "SELECT * FROM pgembed.calibrate('docs_v', false)",
    "advise": "SELECT * FROM pgembed.advise('docs_v')",
    "advised_indexes": "SELECT * FROM pgembed.advised_indexes('docs_v')",
}


@pytest.fixture
def docs(connection: Connection) -> Connection:
    """A table with vectors, and a role that may search it and no more."""
    connection.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text, v vector(3));"
        "INSERT INTO docs VALUES (1, 'x', '[1,2,3]'), (2, 'x', '[2,2,3]');"
        "CREATE TABLE queries AS SELECT '[1,2,3]'::vector AS embedding"
    )
    adopt(connection, "docs")
    return connection


@pytest.mark.parametrize("query", SEARCHES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("ALTER TABLE docs RENAME v TO vectors", "column v of table public.docs"),
        ("ALTER TABLE docs RENAME id TO number", "column id of table public.docs"),
        ("ALTER TABLE docs DROP id", "column id of table public.docs"),
    ],
)
def test_columns_that_are_gone(
    docs: Connection, change: str, reason: str, query: str
) -> None:
    docs.execute(unsafe(change))
    with pytest.raises(
        psycopg.errors.ObjectNotInPrerequisiteState, match=reason
    ) as caught:
        docs.execute(unsafe(SEARCHES[query]))
    assert "no longer fits its table" in str(caught.value)


def test_children_with_the_same_keys(docs: Connection) -> None:
    docs.execute("CREATE TABLE more () INHERITS (docs)")
    docs.execute("INSERT INTO more VALUES (1, 'x', '[1,2,3]')")
    for query in SEARCHES.values():
        with pytest.raises(
            psycopg.errors.ObjectNotInPrerequisiteState, match="inheritance children"
        ):
            docs.execute(unsafe(query))


def test_keys_that_are_none_any_more(connection: Connection) -> None:
    """Keys of a type whose operator the index says: there is no index to ask."""
    connection.execute(
        "CREATE TABLE docs (id numeric PRIMARY KEY, body text, v vector(3));"
        "INSERT INTO docs VALUES (1, 'x', '[1,2,3]')"
    )
    adopt(connection, "docs")
    connection.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey")
    for query in SEARCHES.values():
        with pytest.raises(
            psycopg.errors.ObjectNotInPrerequisiteState, match="primary key"
        ):
            connection.execute(unsafe(query))


def test_a_chunk_table_that_is_gone(connection: Connection) -> None:
    register_model(connection)
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute(
        "SELECT pgembed.create_embedding('docs', 'body', 'tiny', chunk_tokens => 8)"
    )
    connection.execute("DROP TABLE docs_body_chunk")
    for query in (SEARCHES["search"], SEARCHES["hybrid"]):
        with pytest.raises(
            psycopg.errors.ObjectNotInPrerequisiteState, match="chunk table"
        ):
            connection.execute(unsafe(query))


@pytest.mark.parametrize("query", MEASURES)
def test_a_table_that_is_gone(docs: Connection, query: str) -> None:
    docs.execute("DROP TABLE docs")
    with pytest.raises(
        psycopg.errors.UndefinedTable, match="the source of 'docs_v' was dropped"
    ):
        docs.execute(unsafe(MEASURES[query]))


def test_advice_names_a_column_that_is_gone(docs: Connection) -> None:
    docs.execute("ALTER TABLE docs RENAME v TO vectors")
    for query in ("calibrate", "advise"):
        with pytest.raises(psycopg.Error, match="column v of table"):
            docs.execute(unsafe(MEASURES[query]))


def test_the_reason_is_told_to_whoever_may_search(docs: Connection) -> None:
    docs.execute("CREATE ROLE reader; SELECT pgembed.grant_search('reader')")
    docs.execute("GRANT SELECT ON docs TO reader")
    docs.execute("ALTER TABLE docs RENAME v TO vectors; SET ROLE reader")
    try:
        for query in SEARCHES.values():
            with pytest.raises(psycopg.Error, match="column v of table"):
                docs.execute(unsafe(query))
    finally:
        docs.execute("RESET ROLE; DROP OWNED BY reader; DROP ROLE reader")


def test_other_errors_stay_as_they_are(docs: Connection) -> None:
    query = "SELECT pgembed.search(NULL::docs, '[1,2,3]'::vector, predicate => %s)"
    for predicate, error in [
        ("gone = 1", psycopg.errors.UndefinedColumn),
        ("id =", psycopg.errors.SyntaxError),
        ("id = (SELECT id FROM docs)", psycopg.errors.CardinalityViolation),
    ]:
        with pytest.raises(error):
            docs.execute(query, (predicate,))
