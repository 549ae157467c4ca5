from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pgembed.errors import InferenceError, ModelError, ModelFileError
from pgembed.models.options import ModelOptions
from pgembed.models.session import Model, choose_output
from tests.harness import tiny_models

TEXTS = ["a cat", "the dog eats food", "", "row 17", "a man sleeps, a man eats"]


def load(folder: Path, **options: Any) -> Model:
    return Model.load(
        (folder / "model.onnx").read_bytes(),
        (folder / "tokenizer.json").read_bytes(),
        ModelOptions.from_json(options),
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return tiny_models.good_model(tmp_path)


def hidden(folder: Path, text: str) -> Any:
    """Return what the network gives for each token of one text."""
    ids = np.array([tiny_models.tokenizer().encode(text).ids])
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return session.run(None, feeds)[0][0]


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ("mean", lambda rows: rows.mean(axis=0)),
        ("cls", lambda rows: rows[0]),
        ("last", lambda rows: rows[-1]),
    ],
)
def test_pooling_leaves_padding_out(good: Path, pooling: str, pool: Any) -> None:
    vectors = load(good, pooling=pooling, normalize=False).embed(TEXTS)
    expected = [pool(hidden(good, text)) for text in TEXTS]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)


def test_vectors_are_normalized(good: Path) -> None:
    vectors = load(good).embed(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_fewer_dimensions_are_the_first_ones_normalized_again(good: Path) -> None:
    whole = load(good).embed(TEXTS)
    model = load(good, dimensions=3)
    first = whole[:, :3] / np.linalg.norm(whole[:, :3], axis=1, keepdims=True)
    assert model.dimensions == 3
    np.testing.assert_allclose(model.embed(TEXTS), first, rtol=1e-5)


def test_dimensions_are_found(good: Path) -> None:
    assert load(good).dimensions == tiny_models.DIMENSIONS


def test_a_model_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.wrong_size_model(tmp_path)
    with pytest.raises(ModelError, match="gives 7 dimensions, but 8 were stated"):
        load(folder, dimensions=8)


def test_sides_have_their_prompts(good: Path) -> None:
    model = load(good, query_prompt="red ", document_prompt="blue ")
    plain = load(good)
    np.testing.assert_array_equal(
        model.embed(["cat"], "query"), plain.embed(["red cat"])
    )
    np.testing.assert_array_equal(model.embed(["cat"]), plain.embed(["blue cat"]))


def test_batches_change_neither_order_nor_vectors(good: Path) -> None:
    model = load(good)
    alone = np.concatenate([model.embed([text]) for text in TEXTS])
    for batch_tokens in (1, 10, 1000):
        vectors = model.embed(TEXTS, batch_tokens=batch_tokens)
        np.testing.assert_allclose(vectors, alone, rtol=1e-5, atol=1e-6)


def test_tokenize_and_run_are_embed(good: Path) -> None:
    model = load(good)
    encoded = model.tokenize(TEXTS)
    assert encoded.lengths.tolist() == model.lengths(TEXTS).tolist()
    np.testing.assert_array_equal(
        model.run(encoded.take([3, 0])), model.embed(["row 17", "a cat"])
    )


def test_no_texts(good: Path) -> None:
    assert load(good).embed([]).shape == (0, tiny_models.DIMENSIONS)


def test_unusable_vectors_are_refused_by_position(tmp_path: Path) -> None:
    model = load(tiny_models.nan_model(tmp_path))
    texts = ["a cat eats the food", "nan", "a dog", "infinity and more"]
    with pytest.raises(InferenceError, match="NaN or infinity") as caught:
        model.embed(texts)
    assert caught.value.positions == (1, 3)
    with pytest.raises(InferenceError, match="length 0") as caught:
        model.embed(["a cat", "zero"], batch_tokens=1)
    assert caught.value.positions == (1,)


def test_a_network_that_raises(tmp_path: Path) -> None:
    model = load(tiny_models.raising_model(tmp_path))
    assert model.embed(["a cat"]).shape == (1, tiny_models.DIMENSIONS)
    with pytest.raises(InferenceError, match=r"failed on a batch of 2 texts"):
        model.embed(["a cat", "poison"])


def test_a_slow_network_is_slow_on_its_word_only(tmp_path: Path) -> None:
    model = load(tiny_models.slow_model(tmp_path, steps=1000))
    start = time.thread_time()
    model.embed(["a cat"])
    quick = time.thread_time() - start
    model.embed(["slow"])
    assert time.thread_time() - start > 5 * quick


def test_texts_without_tokens_are_refused(good: Path) -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.post_processor = None
    data = (good / "model.onnx").read_bytes()
    model = Model.load(data, tokenizer.to_str().encode(), ModelOptions())
    with pytest.raises(InferenceError, match="no tokens") as caught:
        model.embed(["a cat", "", "a dog", " "])
    assert caught.value.positions == (1, 3)


def test_a_graph_the_runtime_cannot_load(good: Path) -> None:
    network = tiny_models.network()
    network.graph.node[0].op_type = "NoSuchOperator"
    tokenizer = (good / "tokenizer.json").read_bytes()
    with pytest.raises(ModelFileError, match="cannot load the model"):
        Model.load(network.SerializeToString(), tokenizer, ModelOptions())


def test_an_output_that_does_not_fit(good: Path) -> None:
    with pytest.raises(ModelError, match="no output of the model fits pooling 'none'"):
        load(good, pooling="none")
    with pytest.raises(ModelError, match="has no output 'logits'"):
        load(good, output="logits")


def test_outputs_are_chosen_by_name_then_by_rank() -> None:
    shapes = {"logits": [1, 2, 3], "token_embeddings": [1, 2, 3], "pooled": [1, 3]}
    assert choose_output(shapes, "mean") == "token_embeddings"
    assert choose_output(shapes, "none") == "pooled"
    assert choose_output({"x": [1, 2, 3]}, "cls") == "x"
