"""all-MiniLM-L6-v2, converted here, against published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from pgembed.models import registry
from pgembed.models.session import Model
from tests.harness.minilm import minilm_candidate, minilm_folder
from tests.harness.retrieval import cranfield, ndcg

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal",
    "The girl is carrying a baby",
    "stock markets fell sharply today",
]


@pytest.fixture(scope="module")
def minilm() -> Model:
    candidate = minilm_candidate()
    return Model.load(
        candidate.files["model.onnx"],
        candidate.files["tokenizer.json"],
        candidate.options,
    )


def test_options_are_those_of_the_folder(minilm: Model) -> None:
    assert minilm.options.to_json() == {
        "pooling": "mean",
        "normalize": True,
        "max_tokens": 256,
        "output": "last_hidden_state",
        "dimensions": 384,
        "distance": "cosine",
        "document_prompt": "",
        "query_prompt": "",
        "pad_id": 0,
    }


def test_cosines(minilm: Model) -> None:
    vectors = minilm.embed(SENTENCES)
    cosines = vectors[1:] @ vectors[0]
    np.testing.assert_allclose(cosines, [0.683, -0.114, -0.020], atol=5e-4)


def test_a_batch_does_not_change_its_texts(minilm: Model) -> None:
    texts = [*SENTENCES, "word " * 300, ""]
    together = minilm.embed(texts)
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_texts_are_read_up_to_256_tokens(minilm: Model) -> None:
    """The tokenizer file says 128."""
    words = "wing " * 254
    assert minilm.lengths([words, words + "propeller"]).tolist() == [256, 256]
    same, cut, shorter = minilm.embed([words, words + "propeller", "wing " * 200])
    np.testing.assert_array_equal(same, cut)
    assert np.abs(same - shorter).max() > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cranfield(minilm: Model) -> None:
    collection = cranfield()
    documents = minilm.embed(list(collection.documents.values()))
    queries = minilm.embed(list(collection.queries.values()), "query")
    assert ndcg(collection, documents, queries) == pytest.approx(0.400, abs=0.003)


def test_int8_weights_are_close(minilm: Model) -> None:
    candidate = minilm_candidate(quantize=True)
    model = Model.load(
        candidate.files["model.onnx"],
        candidate.files["tokenizer.json"],
        candidate.options,
    )
    cosines = (model.embed(SENTENCES) * minilm.embed(SENTENCES)).sum(axis=1)
    assert cosines.min() > 0.97
    assert len(candidate.files["model.onnx"]) < 25e6


def test_through_the_database(
    connection: psycopg.Connection[Any], minilm: Model, tmp_path: Path
) -> None:
    registry.store_model(connection, "minilm", minilm_candidate())
    model = registry.load(connection, "minilm", cache_dir=tmp_path)
    np.testing.assert_array_equal(model.embed(SENTENCES), minilm.embed(SENTENCES))


def test_the_folder_is_kept() -> None:
    assert (minilm_folder() / "tokenizer.json").is_file()
