"""What words add to vectors: nDCG@10 of hybrid_search on the Cranfield collection.

    python -m tests.benchmarks.words_and_vectors [--depth N]

The vectors are those of all-MiniLM-L6-v2. Words are ranked by full text and, on PGlite
where that is installed ('make pglite'), by BM25; then fused with the vectors, both
counting alike, by reciprocal rank and by scores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import LiteralString

import numpy as np
import numpy.typing as npt
from psycopg import sql

from pgembed.postgres.connection import Connection, connect
from pgembed.postgres.schema import install
from tests.benchmarks.model_precision import load as minilm
from tests.harness import pglite
from tests.harness.retrieval import Collection, cranfield, ranking_ndcg
from tests.harness.server import running_server

Vectors = npt.NDArray[np.float32]

_FUSED = sql.SQL(
    "SELECT (item).id FROM pgembed.hybrid_search(NULL::documents, %(text)s, "
    "query_vector => %(vector)s::text::vector, language => 'english', "
    "mode => 'exact', lexical => %(lexical)s, depth => %(depth)s, "
    "fusion => %(fusion)s, vector_weight => %(weight)s) WHERE score > 0"
)
_FULLTEXT: LiteralString = (
    "ALTER TABLE documents "
    "ADD tsv tsvector GENERATED ALWAYS AS (to_tsvector('english', body)) STORED"
)
_BM25: LiteralString = (
    "CREATE INDEX ON documents USING bm25 (body) WITH (text_config = 'english')"
)
_NEAREST = sql.SQL(
    "SELECT (item).id FROM pgembed.search("
    "NULL::documents, %(vector)s::text::vector, mode => 'exact')"
)


def main() -> None:
    """Print a line for each way to rank words."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--depth", type=int, default=50, help="rows of each ranking that are fused"
    )
    depth = parser.parse_args().depth
    collection = cranfield()
    model = minilm(quantize=False, threads=0)
    documents = model.embed(list(collection.documents.values()))
    vectors = model.embed(list(collection.queries.values()), "query")
    queries = dict(zip(collection.queries, map(_text, vectors), strict=True))
    print(f"{'nDCG@10':10}{'words':>8}{'vectors':>9}{'rrf':>7}{'scores':>8}")
    for connection, lexical, words in databases():
        load(connection, collection, documents)
        connection.execute(words)
        figures = measure(connection, collection, queries, lexical, depth)
        print(f"{lexical:10}{'{:8.3f}{:9.3f}{:7.3f}{:8.3f}'.format(*figures)}")


def databases() -> Iterator[tuple[Connection, str, LiteralString]]:
    """Yield databases with pgembed, a ranking that each has, and how words get it."""
    with (
        running_server() as server,
        server.database(server.installed_template()) as name,
        connect(server.dsn(name), purpose="benchmark") as connection,
    ):
        yield connection, "fulltext", _FULLTEXT
    if not pglite.is_installed():
        print(f"bm25: not measured, {pglite.HOW_TO_INSTALL}")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        pglite.running_pglite(Path(folder)) as dsn,
        connect(dsn, purpose="benchmark") as connection,
    ):
        install(connection)
        connection.execute("CREATE EXTENSION pg_textsearch")
        yield connection, "bm25", _BM25


def load(connection: Connection, collection: Collection, documents: Vectors) -> None:
    """Fill table documents and adopt its vectors."""
    connection.execute(
        "CREATE TABLE documents (id text PRIMARY KEY, body text, v vector(384))"
    )
    rows = zip(collection.documents.items(), documents, strict=True)
    connection.cursor().executemany(
        "INSERT INTO documents VALUES (%s, %s, %s::text::vector)",
        [(i, body, _text(vector)) for (i, body), vector in rows],
    )
    connection.execute("ANALYZE documents")
    connection.execute("SELECT pgembed.adopt_vectors('documents', 'v')")


def measure(
    connection: Connection,
    collection: Collection,
    queries: Mapping[str, str],
    lexical: str,
    depth: int,
) -> list[float]:
    """Return nDCG@10 of words alone, of vectors alone, and of both in two ways."""
    fused = {"lexical": lexical, "depth": depth}
    ways: list[tuple[sql.SQL, dict[str, object]]] = [
        (_FUSED, fused | {"fusion": "rrf", "weight": 0}),
        (_NEAREST, {}),
        (_FUSED, fused | {"fusion": "rrf", "weight": 1}),
        (_FUSED, fused | {"fusion": "scores", "weight": 1}),
    ]
    figures = []
    for statement, arguments in ways:
        found = {}
        for i, vector in queries.items():
            given = arguments | {"text": collection.queries[i], "vector": vector}
            found[i] = [row[0] for row in connection.execute(statement, given)]
        figures.append(ranking_ndcg(collection, found))
    return figures


def _text(vector: Vectors) -> str:
    return str(vector.tolist())


if __name__ == "__main__":
    main()
