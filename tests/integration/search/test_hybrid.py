"""Words and vectors together: hybrid_search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from pgembed.postgres.connection import fetch_one
from tests.harness.models import register_model
from tests.integration.search.support import (
    Connection,
    adopt,
    create_items,
    search,
    unsafe,
    vector_text,
)

ROWS = 400
BODIES = ["red running shoes", "blue suede shoes", "green tea", "Tea & shoes: 'odd'"]
QUERY = np.array([1.0, 2, 3, 4])


@pytest.fixture(scope="module")
def articles(shared: Connection) -> Connection:
    """Rows with text, a tsvector column with an index, and vectors."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    columns: dict[str, tuple[str, list[Any]]] = {
        "body": ("text", [BODIES[i % 4] for i in range(ROWS)]),
        "year": ("int", [i % 10 for i in range(ROWS)]),
    }
    create_items(shared, "articles", vectors, columns=columns)
    shared.execute("UPDATE articles SET body = 'a rare word: shoes' WHERE id = 123")
    shared.execute(
        "ALTER TABLE articles ADD tsv tsvector "
        "GENERATED ALWAYS AS (to_tsvector('english', body)) STORED"
    )
    shared.execute("CREATE INDEX ON articles USING gin (tsv)")
    adopt(shared, "articles")
    return shared


def hybrid(
    connection: Connection, text: str, **arguments: Any
) -> list[tuple[int, float]]:
    """Call hybrid_search on articles; return (id, score)."""
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return [
        (row[0], row[1])
        for row in connection.execute(
            unsafe(
                "SELECT (item).id, score FROM pgembed.hybrid_search(NULL::articles, "
                "%(text)s, query_vector => %(vector)s::text::vector, "
                f"language => 'english'{named})"
            ),
            arguments | {"text": text, "vector": vector_text(QUERY)},
        )
    ]


def test_ranks_are_fused(articles: Connection) -> None:
    words = [i for i, _ in hybrid(articles, "tea", k=50, vector_weight=0, depth=50)][
        :50
    ]
    vectors = [i for i, _ in search(articles, "articles", QUERY, k=50)]
    fused = hybrid(articles, "tea", k=10, depth=50, word_weight=2)
    scores: dict[int, float] = {}
    for weight, ranking in ((2, words), (1, vectors)):
        for rank, i in enumerate(ranking, 1):
            scores[i] = scores.get(i, 0) + weight / (60 + rank)
    expected = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
    assert [i for i, _ in fused] == [i for i, _ in expected]
    np.testing.assert_allclose([s for _, s in fused], [s for _, s in expected])


def test_rare_words_count_more_and_any_word_counts(articles: Connection) -> None:
    found = hybrid(articles, "rare shoes", k=60, vector_weight=0)
    assert found[0][0] == 123
    bodies = {BODIES[i % 4] for i, s in found[1:] if s > 0}
    assert bodies <= set(BODIES) - {"green tea"}


def test_scaled_scores(articles: Connection) -> None:
    found = hybrid(articles, "tea", k=20, fusion="scores")
    assert all(0 <= score <= 2 for _, score in found)
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


@pytest.mark.parametrize(
    ("distance", "first", "last", "expected"),
    [
        ("l2", [5, 0], [3e38, 3e38], {1: 1, 2: 0.75, 0: 0, 3: 0}),
        ("inner_product", [3e38, 3e38], [-3e38, -3e38], {0: 1, 2: 1, 1: 0, 3: 0}),
    ],
)
def test_scaled_scores_beside_infinite_distances(
    shared: Connection,
    distance: str,
    first: list[float],
    last: list[float],
    expected: dict[int, float],
) -> None:
    """They stand at the ends of the scale that the others make."""
    vectors = np.array([first, [1, 0], [2, 0], last], np.float32)
    columns = {"body": ("text", ["tea"] * 4)}
    create_items(shared, f"far_{distance}", vectors, columns=columns)
    adopt(shared, f"far_{distance}", distance=distance)
    rows = shared.execute(
        unsafe(
            "SELECT (item).id, score FROM pgembed.hybrid_search("
            f"NULL::far_{distance}, 'zebra', query_vector => %s, words => 'body', "
            "fusion => 'scores')"
        ),
        ["[1,0]" if distance == "l2" else "[2,2]"],
    ).fetchall()
    assert rows == list(expected.items())


@pytest.mark.parametrize("words", [None, "tsv", "body"])
def test_filter_and_predicate_hold_for_both(
    articles: Connection, words: str | None
) -> None:
    found = hybrid(
        articles,
        "shoes",
        k=40,
        words=words,
        filter='{"year": {"lt": 5}}',
        predicate="id > 100 -- !",
    )
    assert len(found) == 40
    assert all(i > 100 and i % 10 < 5 for i, _ in found)


@pytest.mark.parametrize(
    "text", ["", "the", "'; DROP TABLE articles; --", "& | ! :* \\"]
)
def test_any_text_is_a_query(articles: Connection, text: str) -> None:
    found = hybrid(articles, text)
    assert [i for i, _ in found] == [i for i, _ in search(articles, "articles", QUERY)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"depth": 3}, "depth is 3"),
        ({"fusion": "sum"}, "fusion is 'sum'"),
        ({"word_weight": -1}, "weights are -1"),
        ({"words": "nope"}, "no column nope"),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"predicate": "true) OR (true"}, "syntax error"),
        ({"filter": '{"nope": 1}'}, "no column nope"),
    ],
)
def test_what_is_refused(
    articles: Connection, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(psycopg.Error, match=message):
        hybrid(articles, "tea", **arguments)


def test_the_content_of_a_kept_embedding_is_read(connection: Connection) -> None:
    """Composite keys, chunks, and a template instead of a tsvector column."""
    register_model(connection)
    connection.execute(
        'CREATE TABLE notes ("a b" int, c text, title text, body text, '
        'PRIMARY KEY ("a b", c))'
    )
    connection.execute(
        "INSERT INTO notes VALUES (1, 'x', 'Tea', 'from Assam'), "
        "(1, 'y', 'Coffee', 'from Java'), (2, 'x', 'Java', NULL)"
    )
    connection.execute(
        "SELECT pgembed.create_embedding('notes', '{title}: {body}', 'tiny', "
        "chunk_tokens => 8)"
    )
    connection.execute(
        "INSERT INTO notes_content_chunk "
        "SELECT \"a b\", c, 0, title, '[1,1,1]' FROM notes"
    )
    rows = connection.execute(
        "SELECT (item).title FROM pgembed.hybrid_search(NULL::notes, 'java', "
        "query_vector => '[1,1,1]'::vector, vector_weight => 0.001)"
    ).fetchall()
    assert {row[0] for row in rows[:2]} == {"Java", "Coffee"}
    assert len(rows) == 3
    connection.execute("CREATE EXTENSION pg_trgm")
    (best, *_) = connection.execute(
        "SELECT (item).title FROM pgembed.hybrid_search(NULL::notes, 'Asam', "
        "query_vector => '[1,1,1]'::vector, lexical => 'trigram')"
    ).fetchall()
    assert best == ("Tea",)


@pytest.fixture
def trigrams(articles: Connection) -> Iterator[Connection]:
    """pg_trgm, in a schema off the search_path, and an index."""
    articles.execute("CREATE SCHEMA trigrams")
    articles.execute("CREATE EXTENSION pg_trgm SCHEMA trigrams")
    articles.execute(
        "CREATE INDEX articles_trigrams ON articles "
        "USING gin (body trigrams.gin_trgm_ops)"
    )
    yield articles
    articles.execute("DROP SCHEMA trigrams CASCADE")


def test_trigrams_find_misspelt_words(trigrams: Connection) -> None:
    found = hybrid(
        trigrams,
        "suede shose",
        k=40,
        vector_weight=0,
        lexical="trigram",
        words="body",
        filter='{"year": {"lt": 5}}',
    )
    scored = [i for i, score in found if score > 0]
    assert scored
    assert {i % 4 for i in scored} == {1}
    assert all(i % 10 < 5 for i in scored)
    assert [
        i for i, s in hybrid(trigrams, "suede shose", vector_weight=0) if s
    ] != scored


def test_trigrams_are_ranked_by_word_similarity(trigrams: Connection) -> None:
    found = hybrid(
        trigrams, "green shoes", k=10, vector_weight=0, lexical="trigram", words="body"
    )
    best = trigrams.execute(
        "SELECT id FROM articles WHERE 'green shoes' OPERATOR(trigrams.<%) body "
        "ORDER BY trigrams.word_similarity('green shoes', body) DESC, id LIMIT 10"
    ).fetchall()
    assert [i for i, score in found if score > 0] == [row[0] for row in best]


def test_an_index_on_trigrams_is_read(trigrams: Connection) -> None:
    (statement,) = fetch_one(
        trigrams,
        "SELECT pgembed._hybrid_statement(e, 'true', 'body', 'trigram', NULL, 'rrf') "
        "FROM pgembed.embedding AS e WHERE name = 'articles_v'",
    )
    words = statement.split("w AS MATERIALIZED (")[1].split("), u AS (")[0]
    explained = f"EXPLAIN {words}".replace("$5", "'suede'").replace("$2", "10")
    with trigrams.transaction():
        trigrams.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(row[0] for row in trigrams.execute(unsafe(explained)))
    assert "articles_trigrams" in plan


def test_trigrams_need_the_extension_and_a_text(articles: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedObject, match="CREATE EXTENSION"):
        hybrid(articles, "tea", lexical="trigram", words="body")
    with pytest.raises(psycopg.errors.DatatypeMismatch, match="tsvector"):
        hybrid(articles, "tea", lexical="trigram", words="tsv")
    with pytest.raises(psycopg.Error, match="lexical is 'soundex'"):
        hybrid(articles, "tea", lexical="soundex")


def test_without_words_there_is_an_error(connection: Connection) -> None:
    create_items(connection, "items", np.eye(3, dtype=np.float32))
    adopt(connection, "items")
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match="where its words are"
    ):
        connection.execute(
            "SELECT pgembed.hybrid_search(NULL::items, 'x', "
            "query_vector => '[1,1,1]'::vector)"
        )


def long_text(connection: Connection, words: int) -> str:
    """Return so many different words, of which a tsvector holds some 30,000."""
    (text,) = fetch_one(
        connection,
        "SELECT 'first ' || string_agg(md5(i::text), ' ' ORDER BY i) || ' last' "
        "FROM generate_series(1, %s) AS i",
        (words,),
    )
    return str(text)


@pytest.mark.parametrize("words", ["body", None])
def test_a_document_too_long_for_a_tsvector(
    connection: Connection, words: str | None
) -> None:
    """It is found by the words that fit, and hides no other row."""
    register_model(connection)
    connection.execute("CREATE TABLE books (id int PRIMARY KEY, body text)")
    connection.execute(
        "INSERT INTO books VALUES (1, 'one word'), (2, %s), (3, %s), (4, NULL)",
        (long_text(connection, 60_000), long_text(connection, 4000)),
    )
    connection.execute("SELECT pgembed.create_embedding('books', 'body', 'tiny')")
    query = (
        "SELECT (item).id FROM pgembed.hybrid_search(NULL::books, %s, words => %s, "
        "query_vector => '[1,1,1]'::vector) ORDER BY 1"
    )
    for text, found in [("word", [1]), ("first", [2, 3]), ("last", [3])]:
        rows = connection.execute(query, (text, words)).fetchall()
        assert [row[0] for row in rows] == found
    (held,) = fetch_one(
        connection,
        "SELECT length(pgembed._document_words('simple', body)) FROM books "
        "WHERE id = 2",
    )
    assert held > 20_000


def test_keys_may_be_called_like_parts_of_the_statement(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE terms (tf int, df int, term text, body text, v vector(3), "
        "PRIMARY KEY (tf, df, term))"
    )
    connection.execute("INSERT INTO terms VALUES (1, 2, 'x', 'tea', '[1,1,1]')")
    adopt(connection, "terms")
    rows = connection.execute(
        "SELECT (item).tf, (item).df, (item).term FROM pgembed.hybrid_search("
        "NULL::terms, 'tea', query_vector => '[1,1,1]'::vector, words => 'body')"
    ).fetchall()
    assert rows == [(1, 2, "x")]
