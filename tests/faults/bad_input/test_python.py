"""Bad input to the Python entries: the right error, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from psycopg.errors import OperationalError, UndefinedObject

from pgembed import knn_join, search_batch
from pgembed.batch import layout
from pgembed.embeddings import declare as declaring
from pgembed.errors import (
    ConnectError,
    EmbeddingError,
    FilterError,
    ModelError,
    ModelFileError,
    ModelSourceError,
    PgembedError,
    SettingError,
    VectorError,
)
from pgembed.models import registry
from pgembed.postgres.connection import connect, snapshot
from pgembed.settings import Settings
from tests.faults.bad_input.conftest import Stage

NAN, INFINITY = float("nan"), float("inf")
ONE = np.array([[1, 0, 0]], np.float32)
# What a type checker would refuse is a case, too.
batch: Any = search_batch
join: Any = knn_join
build_layout: Any = layout.build_layout
drop_layout: Any = layout.drop_layout
declare: Any = declaring


def enter(connection: Any) -> None:
    with snapshot(connection):
        pass


CASES: list[tuple[Callable[[Stage], Any], type[Exception], str]] = [
    (
        lambda s: batch(s.open, "absent", ONE),
        UndefinedObject,
        "there is no embedding 'absent'",
    ),
    (lambda s: batch(s.open, "", ONE), UndefinedObject, "there is no embedding ''"),
    (lambda s: batch(s.open, None, ONE), UndefinedObject, "there is no embedding NULL"),
    (
        lambda s: batch(s.open, "items_v", []),
        VectorError,
        "queries must be an array (q, d), not one of shape (0,)",
    ),
    (
        lambda s: batch(s.open, "items_v", 5),
        VectorError,
        "queries must be an array (q, d), not one of shape (1,)",
    ),
    (
        lambda s: batch(s.open, "items_v", None),
        VectorError,
        "queries must be an array (q, d), not one of shape (1,)",
    ),
    (
        lambda s: batch(s.open, "items_v", "cat"),
        VectorError,
        "the queries are no array of numbers (q, d): could not conver",
    ),
    (
        lambda s: batch(s.open, "items_v", ["cat", "dog"]),
        VectorError,
        "the queries are no array of numbers (q, d): could not conver",
    ),
    (
        lambda s: batch(s.open, "items_v", [[1, 0]]),
        VectorError,
        "the queries have 2 dimensions, the embedding 'items_v' has 3",
    ),
    (
        lambda s: batch(s.open, "items_v", [[1, 0, 0], [1, 0]]),
        VectorError,
        "the queries are no array of numbers (q, d): setting an array",
    ),
    (
        lambda s: batch(s.open, "items_v", [[[1, 0, 0]]]),
        VectorError,
        "queries must be an array (q, d), not one of shape (1, 1, 3)",
    ),
    (
        lambda s: batch(s.open, "items_v", [[NAN, 0, 0]]),
        VectorError,
        "query 0 holds NaN or infinity, which has no distance to anyt",
    ),
    (
        lambda s: batch(s.open, "items_v", [[INFINITY, 0, 0]]),
        VectorError,
        "query 0 holds NaN or infinity, which has no distance to anyt",
    ),
    (
        lambda s: batch(s.open, "items_v", [[1e300, 0, 0]]),
        VectorError,
        "query 0 holds NaN or infinity, which has no distance to anyt",
    ),
    (
        lambda s: batch(s.open, "items_v", [[0, 0, 0]]),
        VectorError,
        "query 0 has length zero, which has no cosine distance: pass",
    ),
    (
        lambda s: batch(s.open, "items_v", [[1 + 2j, 0, 0]]),
        VectorError,
        "the queries are no array of numbers (q, d): float() argument",
    ),
    (
        lambda s: batch(s.open, "items_v", np.zeros((1, 3), dtype=object)),
        VectorError,
        "query 0 has length zero, which has no cosine distance: pass",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=0),
        SettingError,
        "k is 0 to 0, but must be from 1 to 10000",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=-1),
        SettingError,
        "k is -1 to -1, but must be from 1 to 10000",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=10**12),
        SettingError,
        "k is 1000000000000 to 1000000000000, but must be from 1 to 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=1.5),
        SettingError,
        "k must be an integer or one per query (1), not float64 of sh",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k="ten"),
        SettingError,
        "k must be an integer or one per query (1), not <U3 of shape",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=None),
        SettingError,
        "k must be an integer or one per query (1), not object of sha",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=[1, 2]),
        SettingError,
        "k must be an integer or one per query (1), not int64 of shap",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=NAN),
        SettingError,
        "k must be an integer or one per query (1), not float64 of sh",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, k=True),
        SettingError,
        "k must be an integer or one per query (1), not bool of shape",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, recall=0),
        SettingError,
        "recall is 0, but must be a number above 0 and at most 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, recall=1.1),
        SettingError,
        "recall is 1.1, but must be a number above 0 and at most 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, recall=NAN),
        SettingError,
        "recall is nan, but must be a number above 0 and at most 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, recall=-1),
        SettingError,
        "recall is -1, but must be a number above 0 and at most 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, recall="high"),
        SettingError,
        "recall is 'high', but must be a number above 0 and at most 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, recall=None),
        SettingError,
        "recall is None, but must be a number above 0 and at most 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, recall=True),
        SettingError,
        "recall is True, but must be a number above 0 and at most 1",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE.astype(complex) * 1j),
        VectorError,
        "the queries are complex numbers or masked: pass real ones",
    ),
    (
        lambda s: batch(s.open, "items_v", np.ma.array(ONE, mask=ONE > 0)),
        VectorError,
        "the queries are complex numbers or masked: pass real ones",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates="body = '\ud800'"),
        FilterError,
        "the predicate \"body = '\\ud800'\" has '\\ud800' at character 8",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters={"n": 10**5000}),
        FilterError,
        "the filter (dict) is no JSON: Exceeds the limit",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, memory="1MB"),
        SettingError,
        "memory is '1MB', but a batch needs at least 64MB",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, memory=-5),
        SettingError,
        "memory is -5: give bytes, or a size such as '512MB' or '2GB'",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, memory="lots"),
        SettingError,
        "memory is 'lots': give bytes, or a size such as '512MB' or '",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, memory=None),
        SettingError,
        "memory is None: give bytes, or a size such as '512MB' or '2G",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, memory=1.5),
        SettingError,
        "memory is 1.5: give bytes, or a size such as '512MB' or '2GB",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, threads=-1),
        SettingError,
        "threads is -1, but must be at least 1: leave it out for one",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, threads=0),
        SettingError,
        "threads is 0, but must be at least 1: leave it out for one p",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, threads="two"),
        SettingError,
        "threads is 'two', but must be at least 1: leave it out for o",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters=5),
        SettingError,
        "filters are 5: give one for all queries, or a list of one ea",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters="nonsense"),
        FilterError,
        "the filter 'nonsense' is no JSON: Expecting value: line 1 co",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters={"absent": 1}),
        FilterError,
        '{"absent": 1}: filter: table public.items has no column abse',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters={"price": {"near": 1}}),
        FilterError,
        '{"price": {"near": 1}}: filter: column price (integer) has n',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters=[None, None]),
        SettingError,
        "2 filters for 1 queries: give one per query, or one for all",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters=[object()]),
        FilterError,
        "the filter <object",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters={"price": NAN}),
        FilterError,
        "the filter {'price': nan} is no JSON: Out of range float val",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters={1: 2}),
        FilterError,
        '{"1": 2}: filter: table public.items has no column "1"',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters={"name": "\0"}),
        FilterError,
        '{"name": "\\u0000"}: unsupported Unicode escape sequence',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, filters={"name": "\ud800"}),
        FilterError,
        '{"name": "\\ud800"}: invalid input syntax for type json',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates=""),
        FilterError,
        "the predicate '' is not what follows WHERE: leave it out, or",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates="price <"),
        FilterError,
        "price <: syntax error at end of input",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates="absent"),
        FilterError,
        'absent: column "absent" does not exist',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates="true; DROP TABLE docs"),
        FilterError,
        "true; DROP TABLE docs: cannot insert multiple commands into",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates="true) OR (true"),
        FilterError,
        'true) OR (true: syntax error at or near ")"',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates="true LIMIT 1"),
        FilterError,
        'true LIMIT 1: syntax error at or near "LIMIT"',
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates=5),
        SettingError,
        "predicates are 5: give one for all queries, or a list of one",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates=["true", "true"]),
        SettingError,
        "2 predicates for 1 queries: give one per query, or one for a",
    ),
    (
        lambda s: batch(s.open, "items_v", ONE, predicates="price = '\0'"),
        FilterError,
        "the predicate \"price = '\\x00'\" has '\\x00' at character 9, which",
    ),
    (
        lambda s: batch(s.open, "bits_v", ONE),
        EmbeddingError,
        "embedding 'bits_v' stores bits, which batches do not search",
    ),
    (
        lambda s: batch(s.closed, "items_v", ONE),
        PgembedError,
        "the connection is closed; open another",
    ),
    (
        lambda s: batch(s.busy, "items_v", ONE),
        PgembedError,
        "a batch needs one snapshot, and the open transaction is read",
    ),
    (
        lambda s: build_layout(s.open, "absent"),
        UndefinedObject,
        "there is no embedding 'absent'",
    ),
    (
        lambda s: build_layout(s.open, "items_v", list_rows=0),
        SettingError,
        "list_rows is 0, but must be at least 1",
    ),
    (
        lambda s: build_layout(s.open, "items_v", list_rows=-1),
        SettingError,
        "list_rows is -1, but must be at least 1",
    ),
    (
        lambda s: build_layout(s.open, "items_v", list_rows=1.5),
        SettingError,
        "list_rows is 1.5, but must be a whole number",
    ),
    (
        lambda s: build_layout(s.open, "items_v", list_rows=None),
        SettingError,
        "list_rows is None, but must be a whole number",
    ),
    (
        lambda s: build_layout(s.open, "items_v", least_rows="x"),
        SettingError,
        "least_rows is 'x', but must be a whole number",
    ),
    (
        lambda s: build_layout(s.open, "items_v", workload="questions"),
        SettingError,
        "workload is 'questions', but must be a pgembed.batch.workloa",
    ),
    (
        lambda s: join(s.open, "items_v", threads=1001),
        SettingError,
        "threads is 1001, but must be at most 1000: leave it out for",
    ),
    (
        lambda s: join(s.open, "items_v", k=0),
        SettingError,
        "k is 0 to 0, but must be from 1 to 10000",
    ),
    (
        lambda s: join(s.open, "items_v", k=2.5),
        SettingError,
        "k must be an integer or one per query (1), not float64 of sh",
    ),
    (
        lambda s: join(s.open, "items_v", k="2"),
        SettingError,
        "k must be an integer or one per query (1), not <U1 of shape",
    ),
    (
        lambda s: join(s.open, "items_v", k=True),
        SettingError,
        "k must be an integer or one per query (1), not bool of shape",
    ),
    (
        lambda s: join(s.open, "items_v", recall=True),
        SettingError,
        "recall is True, but must be a number above 0 and at most 1",
    ),
    (
        lambda s: join(s.open, "items_v", predicate="body = 'a\0'"),
        FilterError,
        "the predicate \"body = 'a\\x00'\" has '\\x00' at character 9, which",
    ),
    (
        lambda s: join(s.open, "items_v", threads=-1),
        SettingError,
        "threads is -1, but must be at least 1: leave it out for o",
    ),
    (
        lambda s: join(s.open, "items_v", threads=0),
        SettingError,
        "threads is 0, but must be at least 1: leave it out for o",
    ),
    (
        lambda s: join(s.open, "items_v", threads="x"),
        SettingError,
        "threads is 'x', but must be at least 1: leave it out for o",
    ),
    (
        lambda s: join(s.open, "items_v", threads=1.0),
        SettingError,
        "threads is 1.0, but must be at least 1: leave it out for o",
    ),
    (
        lambda s: build_layout(s.open, "items_v", threads=-1),
        SettingError,
        "threads is -1, but must be at least 1: leave it out for o",
    ),
    (
        lambda s: build_layout(s.open, "items_v", threads=0),
        SettingError,
        "threads is 0, but must be at least 1: leave it out for o",
    ),
    (
        lambda s: build_layout(s.open, "items_v", threads="x"),
        SettingError,
        "threads is 'x', but must be at least 1: leave it out for o",
    ),
    (
        lambda s: build_layout(s.open, "items_v", threads=1.0),
        SettingError,
        "threads is 1.0, but must be at least 1: leave it out for o",
    ),
    (
        lambda s: build_layout(s.open, "items_v", memory="1MB"),
        SettingError,
        "memory is '1MB', but a batch needs at least 64MB",
    ),
    (
        lambda s: build_layout(s.open, "items_v", memory=None),
        SettingError,
        "memory is None: give bytes, or a size such as",
    ),
    (
        lambda s: build_layout(s.open, "items_v", precision="float8"),
        SettingError,
        "precision is 'float8', but must be 'float32' or 'float16'",
    ),
    (
        lambda s: build_layout(s.open, "items_v", precision=None),
        SettingError,
        "precision is None, but must be 'float32' or 'float16'",
    ),
    (
        lambda s: build_layout(s.busy, "items_v"),
        PgembedError,
        "cannot build a layout: the connection is not idle (INTRANS);",
    ),
    (
        lambda s: build_layout(s.closed, "items_v"),
        PgembedError,
        "cannot build a layout: the connection is closed; open anothe",
    ),
    (
        lambda s: drop_layout(s.open, "absent"),
        UndefinedObject,
        "there is no embedding 'absent'",
    ),
    (
        lambda s: declare.create_embedding(s.open, "absent", "body", "tiny"),
        EmbeddingError,
        'relation "absent" does not exist',
    ),
    (
        lambda s: declare.create_embedding(s.open, "", "body", "tiny"),
        EmbeddingError,
        "invalid name syntax",
    ),
    (
        lambda s: declare.create_embedding(s.open, "plain", "absent", "tiny"),
        EmbeddingError,
        "table public.plain has no column absent",
    ),
    (
        lambda s: declare.create_embedding(s.open, "plain", "body", "absent"),
        EmbeddingError,
        "model 'absent' is not registered",
    ),
    (
        lambda s: declare.create_embedding(s.open, "plain", "bo\0dy", "tiny"),
        EmbeddingError,
        "a name or a content holds what PostgreSQL cannot store: Post",
    ),
    (
        lambda s: declare.create_embedding(
            s.open, "plain", "body", "tiny", chunk_tokens=-1
        ),
        EmbeddingError,
        "chunk_tokens -1 with chunk_overlap 0 does not fit the model",
    ),
    (
        lambda s: declare.create_embedding(
            s.open, "plain", "body", "tiny", chunk_tokens=10**12
        ),
        EmbeddingError,
        "integer out of range",
    ),
    (
        lambda s: declare.create_embedding(
            s.open, "plain", "body", "tiny", storage="float"
        ),
        EmbeddingError,
        "storage is 'float', which is not a choice",
    ),
    (
        lambda s: declare.create_embedding(s.open, None, "body", "tiny"),
        EmbeddingError,
        "the source table is NULL",
    ),
    (
        lambda s: declare.create_embedding(s.closed, "plain", "body", "tiny"),
        OperationalError,
        "the connection is closed",
    ),
    (
        lambda s: declare.create_embedding(s.open, "pla\ud800in", "body", "tiny"),
        EmbeddingError,
        "a name or a content holds what PostgreSQL cannot store: 'utf",
    ),
    (
        lambda s: declare.adopt_vectors(s.open, "items", "absent"),
        EmbeddingError,
        "table public.items has no vector column absent",
    ),
    (
        lambda s: declare.adopt_vectors(s.open, "loose", "v"),
        EmbeddingError,
        "the dimensions of column v of table public.loose are not kno",
    ),
    (
        lambda s: declare.adopt_vectors(s.open, "items", "v", name="x\0"),
        EmbeddingError,
        "a name or a content holds what PostgreSQL cannot store: Post",
    ),
    (
        lambda s: declare.drop_embedding(s.open, "absent"),
        EmbeddingError,
        "there is no embedding 'absent'",
    ),
    (
        lambda s: declare.pause_embedding(s.open, "absent"),
        EmbeddingError,
        "there is no embedding 'absent'",
    ),
    (
        lambda s: declare.resume_embedding(s.open, "absent"),
        EmbeddingError,
        "there is no embedding 'absent'",
    ),
    (
        lambda s: declare.retry_failed(s.open, "absent"),
        EmbeddingError,
        "there is no embedding 'absent'",
    ),
    (
        lambda s: declare.reconcile(s.open, "absent"),
        EmbeddingError,
        "there is no embedding 'absent'",
    ),
    (
        lambda s: declare.reconcile(s.open, "items_v"),
        EmbeddingError,
        "the vectors of 'items_v' are written by the application",
    ),
    (
        lambda s: registry.get_model(s.open, "absent"),
        ModelError,
        "there is no model 'absent' (there are: idle, tiny, wide): ad",
    ),
    (
        lambda s: registry.remove_model(s.open, "tiny"),
        ModelError,
        "model 'tiny' is in use. Embeddings: docs_body. Drop them fir",
    ),
    (
        lambda s: registry.remove_model(s.open, "absent"),
        ModelError,
        "there is no model 'absent' (there are: idle, tiny, wide): ad",
    ),
    (
        lambda s: registry.add_model(s.open, "", "/absent"),
        ModelError,
        "the name of a model is empty: give it one, minilm say",
    ),
    (
        lambda s: registry.add_model(s.open, "x\ud800", "/absent"),
        ModelError,
        "the name of the model, 'x\\ud800', is no text for PostgreSQL",
    ),
    (
        lambda s: registry.add_model(s.open, "x", "/absent"),
        ModelSourceError,
        "the model source '/absent' is neither a folder that may be r",
    ),
    (
        lambda s: registry.add_model(s.open, "x", ""),
        ModelSourceError,
        "the model source '' is neither a folder that may be read her",
    ),
    (
        lambda s: registry.add_model(s.open, "x", "/absent", {"pooling": "odd"}),
        ModelError,
        "model option pooling is 'odd', but must be one of mean, cls,",
    ),
    (
        lambda s: registry.add_model(s.open, "x", "/absent", {"absent": 1}),
        ModelError,
        "'absent' is not an option of a model: use one of dimensions,",
    ),
    (
        lambda s: registry.add_model(s.open, "x", "pypi:"),
        ModelSourceError,
        "'' is not NAME or NAME==VERSION of a package: correct it",
    ),
    (
        lambda s: registry.add_model(s.open, "x", "\0"),
        ModelSourceError,
        "the model source '\\x00' is neither a folder that may be read",
    ),
    (
        lambda s: registry.load(s.open, "absent"),
        ModelError,
        "there is no model 'absent' (there are: idle, tiny, wide): ad",
    ),
    (
        lambda s: registry.load(s.open, "tiny"),
        ModelFileError,
        "the files and options of model 'tiny' are not those of its h",
    ),
    (
        lambda s: connect("nonsense"),
        ConnectError,
        "the DSN is neither a libpq connection string nor a URI: writ",
    ),
    (
        lambda s: connect("host=/nonexistent dbname=x"),
        ConnectError,
        "cannot connect to database 'x' on /nonexistent: connection i",
    ),
    (
        lambda s: connect("postgresql://u:secret@127.0.0.1:1/x"),
        ConnectError,
        "cannot connect to database 'x' on 127.0.0.1: connection fail",
    ),
    (
        lambda s: connect("host=/nonexistent port=99999999"),
        ConnectError,
        "cannot connect to database 'the default one' on /nonexistent",
    ),
    (
        lambda s: enter(s.busy),
        PgembedError,
        "cannot take a snapshot: the connection is not idle (INTRANS)",
    ),
    (
        lambda s: enter(s.closed),
        PgembedError,
        "cannot take a snapshot: the connection is closed; open anoth",
    ),
    (
        lambda s: Settings.load({"PGEMBED_PROCESSES": "many"}),
        SettingError,
        "PGEMBED_PROCESSES='many' is not a valid int: correct it or u",
    ),
    (
        lambda s: Settings.load({"PGEMBED_PROCESSES": "0"}),
        SettingError,
        "processes is 0, but must be from 1 to 1,000: pass another va",
    ),
    (
        lambda s: Settings.load({"PGEMBED_LEASE_SECONDS": "nan"}),
        SettingError,
        "lease_seconds is nan, but must be from 1 to 86,400: pass ano",
    ),
    (
        lambda s: Settings.load({"PGEMBED_LEASE_SECONDS": "inf"}),
        SettingError,
        "lease_seconds is inf, but must be from 1 to 86,400: pass ano",
    ),
    (
        lambda s: Settings.load({"PGEMBED_LEASE_SECONDS": "1e300"}),
        SettingError,
        "lease_seconds is 1e+300, but must be from 1 to 86,400: pass",
    ),
    (
        lambda s: Settings.load({"PGEMBED_LEASE_SECONDS": "0"}),
        SettingError,
        "lease_seconds is 0.0, but must be from 1 to 86,400: pass ano",
    ),
    (
        lambda s: Settings.load({"PGEMBED_CACHE_DIR": "~no-such-user/x"}),
        SettingError,
        "cache_dir is '~no-such-user/x', but there is no such user's",
    ),
    (
        lambda s: Settings.load({"PGEMBED_POLL_SECONDS": "-1"}),
        SettingError,
        "poll_seconds is -1.0, but must be from 0.01 to 86,400: pass",
    ),
    (
        lambda s: Settings.load({"PGEMBED_POLL_SECONDS": "soon"}),
        SettingError,
        "PGEMBED_POLL_SECONDS='soon' is not a valid float: correct it",
    ),
    (
        lambda s: Settings.load({"PGEMBED_MAX_ATTEMPTS": "0"}),
        SettingError,
        "max_attempts is 0, but must be from 1 to 10,000: pass anothe",
    ),
    (
        lambda s: Settings.load({"PGEMBED_MAX_ATTEMPTS": "1e5"}),
        SettingError,
        "PGEMBED_MAX_ATTEMPTS='1e5' is not a valid int: correct it or",
    ),
    (
        lambda s: Settings.load({"PGEMBED_CLAIM_ROWS": "99999999999"}),
        SettingError,
        "claim_rows is 99999999999, but must be from 1 to 100,000: pa",
    ),
    (
        lambda s: Settings.load({"PGEMBED_MAX_ATTEMPTS": "99999999999"}),
        SettingError,
        "max_attempts is 99999999999, but must be from 1 to 10,000: p",
    ),
    (
        lambda s: Settings.load({"PGEMBED_BATCH_TOKENS": "-1"}),
        SettingError,
        "batch_tokens is -1, but must be from 1 to 1,000,000: pass an",
    ),
    (
        lambda s: Settings.load({"PGEMBED_DRAIN_SECONDS": "-1"}),
        SettingError,
        "drain_seconds is -1.0, but must be from 0 to 86,400: pass an",
    ),
    (
        lambda s: Settings.load({"PGEMBED_THREADS": "-1"}),
        SettingError,
        "threads is -1, but must be from 0 to 1,000: pass another val",
    ),
    (
        lambda s: Settings.load({}, processes="3"),
        SettingError,
        "processes is '3', but must be a whole number: pass one or un",
    ),
    (
        lambda s: Settings.load({}, processes=True),
        SettingError,
        "processes is True, but must be a whole number: pass one or u",
    ),
    (
        lambda s: Settings.load({}, metrics_port=1.5),
        SettingError,
        "metrics_port is 1.5, but must be a whole number: pass one or",
    ),
    (
        lambda s: Settings.load({}, lease_seconds="60"),
        SettingError,
        "lease_seconds is '60', but must be a number: pass one or uns",
    ),
    (
        lambda s: Settings.load({}, cache_dir="models"),
        SettingError,
        "cache_dir is 'models', but must be a path: pass one or unset",
    ),
    (
        lambda s: Settings.load({}, dsn=5),
        SettingError,
        "dsn is 5, but must be a string: pass one or unset PGEMBED_DS",
    ),
    (
        lambda s: Settings(processes=0),
        SettingError,
        "processes is 0, but must be from 1 to 1,000: pass another va",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_python(
    stage: Stage, call: Callable[[Stage], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        call(stage)
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


def test_no_queries_are_no_mistake(stage: Stage) -> None:
    assert len(batch(stage.open, "items_v", np.zeros((0, 3))).keys) == 0
