"""adopt_vectors: columns that the application fills itself."""

from __future__ import annotations

import pytest

from tests.harness.models import register_model
from tests.harness.sql_worker import Connection, SqlWorker, rows, value
from tests.integration.embeddings.support import catalog, refused, status


def adopt(connection: Connection, column: str = "v", **options: object) -> str:
    named = "".join(f", {option} => %s" for option in options)
    query = f"SELECT pgembed.adopt_vectors('docs', %s{named})"
    return str(value(connection, query, column, *options.values()))


@pytest.fixture
def docs(scratch: Connection) -> Connection:
    """Return a database with vectors of all kinds."""
    scratch.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text, v vector(3), "
        "h halfvec(3), b bit(3), u vector, n vector(3) NOT NULL)"
    )
    scratch.execute(
        "INSERT INTO docs VALUES (1, 'x', '[1,2,3]', '[1,2,3]', B'101', '[1,2]', "
        "'[1,2,3]'), (2, 'y', NULL, NULL, NULL, NULL, '[1,2,3]')"
    )
    return scratch


def adopted(connection: Connection, name: str) -> tuple[object, ...]:
    (row,) = rows(
        connection,
        "SELECT storage, dimensions, distance, model, index_method, index_state "
        "FROM pgembed.embedding WHERE name = %s",
        name,
    )
    return row


def test_an_index_that_comes_later(docs: Connection) -> None:
    """Also one that leaves out what has no vector, which searches take, too."""
    name = adopt(docs)
    assert status(docs, name)["index_state"] == "none"
    docs.execute(
        "CREATE INDEX later ON docs USING hnsw (v vector_cosine_ops) "
        "WHERE v IS NOT NULL"
    )
    assert status(docs, name)["index_state"] == "ready"
    docs.execute("SELECT pgembed.drop_embedding(%s)", [name])
    assert adopted(docs, adopt(docs))[4:] == ("hnsw", "ready")


def test_every_storage(docs: Connection) -> None:
    assert adopt(docs) == "docs_v"
    assert adopt(docs, "h", distance="l2", name="half") == "half"
    assert adopt(docs, "b", model="tiny") == "docs_b"
    assert adopt(docs, "u", distance="inner_product") == "docs_u"
    assert adopt(docs, "n") == "docs_n"
    assert adopted(docs, "docs_v") == ("vector", 3, "cosine", None, "none", "none")
    assert adopted(docs, "half") == ("halfvec", 3, "l2", None, "none", "none")
    assert adopted(docs, "docs_b") == ("bit", 3, "cosine", "tiny", "none", "none")
    assert adopted(docs, "docs_u")[:3] == ("vector", 2, "inner_product")


def test_a_column_of_another_type(docs: Connection) -> None:
    for column in "vhbun":
        adopt(docs, column)
        assert status(docs, f"docs_{column}")["state"] == "adopted"
    docs.execute("ALTER TABLE docs ALTER v TYPE vector, ALTER b TYPE varbit")
    docs.execute("ALTER TABLE docs ALTER h TYPE halfvec(4) USING '[1,2,3,4]'")
    for column, state in {
        "v": "adopted",
        "b": "blocked: column b of table public.docs is of type bit varying, "
        "not bit(3)",
        "h": "blocked: column h of table public.docs is of type public.halfvec(4), "
        "not public.halfvec(3)",
    }.items():
        assert status(docs, f"docs_{column}")["state"] == state


@pytest.mark.parametrize(
    ("index", "column", "distance", "method"),
    [
        ("hnsw (v vector_cosine_ops)", "v", "cosine", "hnsw"),
        ("hnsw (v vector_cosine_ops)", "v", "l2", "none"),
        ("ivfflat (v vector_ip_ops)", "v", "inner_product", "ivfflat"),
        ("hnsw (h halfvec_l2_ops)", "h", "l2", "hnsw"),
        ("hnsw (b bit_hamming_ops)", "b", "cosine", "hnsw"),
        ("hnsw (b bit_jaccard_ops)", "b", "cosine", "none"),
        ("hnsw (v vector_cosine_ops) WHERE id > 0", "v", "cosine", "none"),
    ],
)
def test_index_that_is_there(
    docs: Connection, index: str, column: str, distance: str, method: str
) -> None:
    docs.execute(f"CREATE INDEX mine ON docs USING {index}".encode())
    name = adopt(docs, column, distance=distance)
    state = "none" if method == "none" else "ready"
    assert adopted(docs, name)[-2:] == (method, state)


def test_the_table_is_left_alone(docs: Connection) -> None:
    def of_the_table() -> list[tuple[object, ...]]:
        return [row for row in catalog(docs) if row[0] != "embedding"]

    before = of_the_table()
    adopt(docs)
    assert of_the_table() == before
    found = status(docs, "docs_v")
    assert (found["rows"], found["embedded"], found["pending"]) == (2, 1, 0)
    assert found["state"] == "adopted"
    assert SqlWorker(docs).work() == {}
    assert rows(docs, "SELECT * FROM pgembed._index_work()") == []
    # Vectors that the application wrote stay, whatever is asked for.
    rows(docs, "SELECT pgembed.drop_embedding('docs_v', true)")
    assert value(docs, "SELECT count(v) FROM docs") == 1
    assert of_the_table() == before


def test_indexes_on_advice_go_with_the_embedding(docs: Connection) -> None:
    """They bear its number; what else has such a name, and those of others, stay."""
    adopt(docs)
    adopt(docs, "h")
    advised = {
        name: str(
            value(
                docs,
                "SELECT pgembed._advised_name(e, '[\"id\"]') "
                "FROM pgembed.embedding AS e WHERE e.name = %s",
                name,
            )
        )
        for name in ("docs_v", "docs_h")
    }
    mine = advised["docs_v"].replace("pgembed", "mine")
    for name in (*advised.values(), mine):
        docs.execute(f"CREATE INDEX {name} ON docs (id)".encode())
    docs.execute(f"COMMENT ON INDEX {advised['docs_v']} IS 'pgembed: ?'".encode())
    rows(docs, "SELECT pgembed.drop_embedding('docs_v')")
    left = "SELECT indexname FROM pg_indexes WHERE tablename = 'docs' ORDER BY 1"
    assert rows(docs, left) == [("docs_pkey",), (mine,), (advised["docs_h"],)]
    docs.execute("DROP TABLE docs")
    rows(docs, "SELECT pgembed.drop_embedding('docs_h')")


def test_its_column_dropped(docs: Connection) -> None:
    adopt(docs)
    adopt(docs, "h")
    docs.execute("ALTER TABLE docs DROP COLUMN v")
    assert (
        "column v of table public.docs was dropped" in (status(docs, "docs_v")["state"])
    )
    assert status(docs, "docs_h")["state"] == "adopted"
    docs.execute("DROP TABLE docs")
    assert status(docs, "docs_h")["state"] == "source dropped"


def test_not_a_vector(docs: Connection) -> None:
    for column in ("body", "nope", None):
        with refused(docs, "42703", message="no vector column", hint="halfvec or bit"):
            rows(docs, "SELECT pgembed.adopt_vectors('docs', %s)", column)


def test_unknown_dimensions(docs: Connection) -> None:
    docs.execute("UPDATE docs SET u = NULL")
    with refused(docs, "42P16", message="not known", hint="TYPE vector(N)"):
        adopt(docs, "u")


def test_wrong_options(docs: Connection) -> None:
    with refused(docs, "22023", message="distance is 'hamming'", hint="inner_product"):
        adopt(docs, distance="hamming")
    with refused(docs, "42704", message="'nope' is not registered", hint="tiny"):
        adopt(docs, model="nope")
    register_model(docs, "wide", dimensions=9)
    with refused(docs, "42804", message="has 9 dimensions", hint="or none"):
        adopt(docs, model="wide")
    with refused(docs, "42602", message="empty or longer", hint="name =>"):
        adopt(docs, name="")


def test_twice(docs: Connection) -> None:
    adopt(docs)
    with refused(docs, "42710", message="already an embedding", hint="another name"):
        adopt(docs)
    with refused(docs, "42710", message="already belongs to", hint="or vector_column"):
        adopt(docs, name="again")
    with refused(docs, "42710", message="already belongs to", hint="drop that"):
        rows(
            docs,
            "SELECT pgembed.create_embedding('docs', 'body', 'tiny', "
            "target_column => 'v')",
        )


def test_no_primary_key(docs: Connection) -> None:
    docs.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey")
    with refused(docs, "42P16", message="no primary key", hint="ADD PRIMARY KEY"):
        adopt(docs)
