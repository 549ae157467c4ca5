"""hybrid_search with words ranked by BM25, as pg_textsearch's index has them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from pgembed.postgres.connection import connect, fetch_one
from pgembed.postgres.schema import install
from tests.harness import pglite
from tests.integration.search.support import (
    Connection,
    adopt,
    unsafe,
    vector_text,
)

BODIES = ["red running shoes", "blue suede shoes, blue", "green tea", "odd 'tea' house"]
ROWS = 400
QUERY = np.array([1.0, 2, 3, 4])


@pytest.fixture(scope="module")
def textsearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A database with pgembed and pg_textsearch."""
    if not pglite.is_installed():
        if os.environ.get("CI"):  # which installs it, and leaves nothing out
            pytest.fail(f"no PGlite here: {pglite.HOW_TO_INSTALL}")
        pytest.skip(f"no PGlite here: {pglite.HOW_TO_INSTALL}")
    with (
        pglite.running_pglite(tmp_path_factory.mktemp("pglite")) as dsn,
        connect(dsn, purpose="test") as connection,
    ):
        install(connection)
        connection.execute("CREATE SCHEMA ranking")
        connection.execute("CREATE EXTENSION pg_textsearch SCHEMA ranking")
        yield connection


@pytest.fixture(scope="module")
def articles(textsearch: Connection) -> Connection:
    """Rows with a BM25 index on their text."""
    create_articles(textsearch, "articles")
    textsearch.execute(
        "CREATE INDEX articles_words ON articles USING bm25 (body) "
        "WITH (text_config = 'english')"
    )
    textsearch.execute("ANALYZE articles")
    return textsearch


def create_articles(connection: Connection, name: str) -> None:
    """Create a table of texts, one of them of rare words, and adopt its vectors."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, 4))
    connection.execute(
        unsafe(
            f"CREATE TABLE {name} "
            "(id int PRIMARY KEY, body text, year int, v vector(4))"
        )
    )
    # PGlite's socket does not copy.
    connection.cursor().executemany(
        unsafe(f"INSERT INTO {name} VALUES (%s, %s, %s, %s::text::vector)"),
        [(i, BODIES[i % 4], i % 10, vector_text(v)) for i, v in enumerate(vectors)],
    )
    connection.execute(
        unsafe(f"UPDATE {name} SET body = 'a rare word: shoes' WHERE id = 123")
    )
    adopt(connection, name)


def ranked(
    connection: Connection, text: str, table: str = "articles", **arguments: Any
) -> list[tuple[int, float]]:
    """Return (id, score) of the rows that have to do with the words, best first."""
    named = {"k": 400, "fusion": "scores", "vector_weight": 0, **arguments}
    rows = connection.execute(
        unsafe(
            f"SELECT (item).id, score FROM pgembed.hybrid_search(NULL::{table}, "
            "%(text)s, query_vector => %(vector)s::text::vector, lexical => 'bm25'"
            + "".join(f", {name} => %({name})s" for name in named)
            + ") WHERE score > 0"
        ),
        named | {"text": text, "vector": vector_text(QUERY)},
    )
    return [(i, score) for i, score in rows]


def bm25(documents: dict[int, list[str]], query: list[str]) -> dict[int, float]:
    """Score documents as Robertson and Zaragoza (2009), section 3.3; k1 1.2, b 0.75."""
    mean = sum(map(len, documents.values())) / len(documents)
    holding = Counter(word for words in documents.values() for word in set(words))
    scores = {}
    for i, words in documents.items():
        counts = Counter(words)
        scores[i] = sum(
            math.log(1 + (len(documents) - holding[word] + 0.5) / (holding[word] + 0.5))
            * counts[word]
            * 2.2
            / (counts[word] + 1.2 * (0.25 + 0.75 * len(words) / mean))
            for word in query
        )
    return scores


@pytest.mark.parametrize(
    ("passing", "years"),
    [(None, range(10)), ('{"year": {"lt": 2}}', range(2)), ('{"year": 3}', [3])],
)
def test_scores_are_bm25_s(
    articles: Connection, passing: str | None, years: Collection[int]
) -> None:
    """Over all rows of the table, whichever of them pass."""
    stems = {
        "red running shoes": ["red", "run", "shoe"],
        "blue suede shoes, blue": ["blue", "sued", "shoe", "blue"],
        "green tea": ["green", "tea"],
        "odd 'tea' house": ["odd", "tea", "hous"],
    }
    documents = {i: stems[BODIES[i % 4]] for i in range(ROWS)}
    documents[123] = ["rare", "word", "shoe"]
    scores = bm25(documents, ["rare", "blue", "shoe"])
    expected = {i: score for i, score in scores.items() if score and i % 10 in years}
    found = ranked(articles, "rare blue shoes", filter=passing)
    assert found[0][0] == max(expected, key=lambda i: (expected[i], -i))
    assert dict(found) == pytest.approx(
        {i: score / max(expected.values()) for i, score in expected.items()}, rel=1e-3
    )
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


@pytest.mark.parametrize(
    "text",
    ["", "the", "'; DROP TABLE articles; --", "& | ! :* \\", "zebra" * 2000, 'a:b"c'],
)
def test_words_that_no_row_says_find_nothing(articles: Connection, text: str) -> None:
    assert ranked(articles, text) == []


def test_vectors_are_fused_with_it(articles: Connection) -> None:
    words = [i for i, _ in ranked(articles, "tea", fusion="rrf", depth=400, k=50)]
    fused = ranked(articles, "tea", fusion="rrf", vector_weight=1, depth=50, k=50)
    assert words == [i for i in range(ROWS) if i % 4 == 2][:50]
    assert {i for i, _ in fused} - set(words)
    assert {i for i, _ in fused} & set(words)


def test_the_index_is_read(articles: Connection) -> None:
    (statement,) = fetch_one(
        articles,
        "SELECT pgembed._words_statement(e, 'year < 5', 'body', 'bm25', NULL) "
        "FROM pgembed.embedding AS e WHERE name = 'articles_v'",
    )
    explained = f"EXPLAIN {statement}".replace("$5", "'suede'").replace("$2", "10")
    with articles.transaction():
        articles.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(row[0] for row in articles.execute(unsafe(explained)))
    assert "Index Scan using articles_words" in plan


@pytest.fixture
def awkward(textsearch: Connection) -> Iterator[Connection]:
    """A table and indexes whose names need quotes; one on an expression, too."""
    textsearch.execute('CREATE SCHEMA "My.S"')
    textsearch.execute(
        'CREATE TABLE "My.S"."T 1" (id int PRIMARY KEY, "B y" varchar(80), v vector(4))'
    )
    textsearch.execute(
        "INSERT INTO \"My.S\".\"T 1\" SELECT i, (ARRAY['teas', 'tea', 'milk'])[i], "
        "'[1,2,3,4]' FROM generate_series(1, 3) AS i"
    )
    textsearch.execute(
        'CREATE INDEX "I.x \'y" ON "My.S"."T 1" USING bm25 ("B y") '
        "WITH (text_config = 'simple')"
    )
    textsearch.execute(
        'ALTER TABLE "My.S"."T 1" '
        "ADD lowered text GENERATED ALWAYS AS (lower(\"B y\") || ' x') STORED"
    )
    textsearch.execute(
        'CREATE INDEX "e" ON "My.S"."T 1" USING bm25 (lowered) '
        "WITH (text_config = 'pg_catalog.english')"
    )
    # Its functions would be looked up in the caller's search_path: never taken.
    textsearch.execute(
        'CREATE INDEX "f" ON "My.S"."T 1" USING bm25 (lower("B y")) '
        "WITH (text_config = ' German ')"
    )
    adopt(textsearch, '"My.S"."T 1"', name="awkward")
    yield textsearch
    textsearch.execute('DROP SCHEMA "My.S" CASCADE')


def test_an_index_is_found_by_column_and_language(awkward: Connection) -> None:
    table = '"My.S"."T 1"'
    assert [i for i, _ in ranked(awkward, "tea", table, words="B y")] == [2]
    assert [i for i, _ in ranked(awkward, "tea", table, language="simple")] == [2]
    assert [i for i, _ in ranked(awkward, "tea", table, language="english")] == [1, 2]
    with pytest.raises(psycopg.errors.AmbiguousParameter, match="several BM25 indexes"):
        ranked(awkward, "tea", table)
    with pytest.raises(psycopg.errors.UndefinedObject, match="in the language german"):
        ranked(awkward, "tea", table, language="german")


def test_configurations_are_told_by_their_schema(textsearch: Connection) -> None:
    create_articles(textsearch, "spelt")
    textsearch.execute("CREATE SCHEMA own")
    textsearch.execute("CREATE TEXT SEARCH CONFIGURATION own.english (COPY = simple)")
    textsearch.execute(
        "CREATE INDEX ON spelt USING bm25 (body) WITH (text_config = ' English ')"
    )
    assert ranked(textsearch, "shoe", "spelt", language="pg_catalog.english")
    with pytest.raises(psycopg.errors.UndefinedObject, match=r"language own\.english"):
        ranked(textsearch, "shoe", "spelt", language="own.english")
    textsearch.execute(
        "CREATE INDEX ON spelt USING bm25 (body) WITH (text_config = 'own.english')"
    )
    assert not ranked(textsearch, "shoe", "spelt", language="own.english")
    assert ranked(textsearch, "shoes", "spelt", language="own.english")


def test_an_index_may_be_replaced(articles: Connection) -> None:
    found = ranked(articles, "tea")
    articles.execute(
        "CREATE INDEX replacing ON articles USING bm25 (body) "
        "WITH (text_config = 'english')"
    )
    assert ranked(articles, "tea") == found
    articles.execute("DROP INDEX replacing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": "nope"}, "table public.articles has no column nope"),
        (
            {"words": "year"},
            "column year has no BM25 index .*\n.*Name a column of text",
        ),
        ({"language": "german"}, "in the language german has no BM25 index"),
    ],
)
def test_without_an_index_there_is_an_error(
    articles: Connection, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(psycopg.Error, match=message):
        ranked(articles, "tea", **arguments)


def test_an_index_of_some_rows_is_not_taken(textsearch: Connection) -> None:
    create_articles(textsearch, "recent")
    textsearch.execute(
        "CREATE INDEX recent_words ON recent USING bm25 (body) "
        "WITH (text_config = 'english') WHERE year < 5"
    )
    with pytest.raises(psycopg.errors.UndefinedObject, match="holds all rows") as error:
        ranked(textsearch, "tea", "recent")
    assert error.value.diag.message_hint is not None
    assert "USING bm25" in error.value.diag.message_hint


def test_partitions_are_refused(textsearch: Connection) -> None:
    """Scores of one are no scores of another."""
    textsearch.execute(
        "CREATE TABLE parted (id int PRIMARY KEY, body text, v vector(4)) "
        "PARTITION BY RANGE (id)"
    )
    textsearch.execute("CREATE TABLE parted_all PARTITION OF parted DEFAULT")
    textsearch.execute(
        "CREATE INDEX ON parted USING bm25 (body) WITH (text_config = 'english')"
    )
    adopt(textsearch, "parted")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="has partitions"):
        ranked(textsearch, "tea", "parted")


def test_a_long_query_is_read_from_its_beginning(articles: Connection) -> None:
    assert ranked(articles, "tea " + "zebra " * 2000) == ranked(articles, "tea")


def test_row_level_security_holds(articles: Connection) -> None:
    articles.execute("CREATE ROLE tenant")
    articles.execute("SELECT pgembed.grant_search('tenant')")
    articles.execute("GRANT SELECT ON articles TO tenant")
    articles.execute("GRANT USAGE ON SCHEMA ranking TO tenant")
    articles.execute("ALTER TABLE articles ENABLE ROW LEVEL SECURITY")
    articles.execute(
        "CREATE POLICY own ON articles FOR SELECT TO tenant USING (year = 7)"
    )
    try:
        with articles.transaction():
            articles.execute("SET LOCAL ROLE tenant")
            found = ranked(articles, "rare tea shoes")
    finally:
        articles.execute("ALTER TABLE articles DISABLE ROW LEVEL SECURITY")
    assert {i for i, _ in found} == {i for i in range(ROWS) if i % 10 == 7}


def test_the_extension_is_asked_for(shared: Connection) -> None:
    """On a server that does not have it."""
    create_articles(shared, "plain")
    with pytest.raises(psycopg.errors.UndefinedObject, match="pg_textsearch") as error:
        ranked(shared, "tea", "plain")
    assert "shared_preload_libraries" in str(error.value.diag.message_hint)
