"""Conversions against a forward pass in NumPy, written from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy

from pgembed.errors import ModelFileError, ModelSourceError
from pgembed.models.checks import check_graph
from pgembed.models.convert import ARCHITECTURES, convert
from tests.harness.tiny_weights import (
    CONFIG,
    HEADS,
    HIDDEN,
    LAYERS,
    NAMES,
    PADDING,
    VOCABULARY,
    Arrays,
    config_of,
    make_weights,
)


def gelu(x: Any) -> Any:
    erf = np.array([math.erf(value) for value in np.ravel(x / math.sqrt(2))])
    return 0.5 * x * (1 + erf.reshape(x.shape))


def gelu_tanh(x: Any) -> Any:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}


def norm(x: Any, weights: Arrays, name: str, epsilon: float) -> Any:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Any, weights: Arrays, name: str) -> Any:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def bucket(distance: int) -> int:
    """Return the bucket of a key so many tokens after the query (MPNet)."""
    offset = 16 if distance > 0 else 0
    far = abs(distance)
    if far < 8:
        return offset + far
    step = int(math.log(far / 8) / math.log(128 / 8) * 8)
    return offset + min(8 + step, 15)


def attend(x: Any, weights: Arrays, names: list[str], bias: Any) -> Any:
    parts = []
    size = HIDDEN // HEADS
    for head in range(HEADS):
        columns = slice(head * size, (head + 1) * size)
        query, key, value = (linear(x, weights, n)[:, columns] for n in names)
        scores = query @ key.T / math.sqrt(size) + bias[head]
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        parts.append(shares / shares.sum(axis=1, keepdims=True) @ value)
    return np.concatenate(parts, axis=1)


def forward(kind: str, ids: Any, weights: Arrays, config: dict[str, Any]) -> Any:
    """Return the last hidden state of one text, float64 (tokens, HIDDEN)."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    epsilon = 1e-12 if kind == "distilbert" else config["layer_norm_eps"]
    activate = ACTIVATIONS[config["hidden_act"]]
    first = PADDING + 1 if kind not in ("bert", "distilbert") else 0
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][first : first + len(ids)]
    if "embeddings.token_type_embeddings.weight" in weights:
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, weights, "embeddings.LayerNorm", epsilon)
    bias = np.zeros((HEADS, len(ids), len(ids)))
    if kind == "mpnet":
        table = weights["encoder.relative_attention_bias.weight"]
        for i in range(len(ids)):
            for j in range(len(ids)):
                bias[:, i, j] = table[bucket(j - i)]
    stem, parts = NAMES[kind]
    for layer in range(LAYERS):
        names = [f"{stem}.{layer}.{part}" for part in parts]
        attention = linear(attend(x, weights, names[:3], bias), weights, names[3])
        x = norm(x + attention, weights, names[4], epsilon)
        inner = activate(linear(x, weights, names[5]))
        x = norm(x + linear(inner, weights, names[6]), weights, names[7], epsilon)
    return x


def run(model: bytes, lengths: list[int]) -> tuple[Any, Any]:
    random = np.random.default_rng(3)
    ids = random.integers(4, VOCABULARY, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids[mask == 0] = PADDING
    session = onnxruntime.InferenceSession(model)
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0], ids


def test_every_architecture_is_tested() -> None:
    assert set(NAMES) == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", NAMES)
def test_like_the_formulas(kind: str) -> None:
    weights = make_weights(kind)
    model = convert(config_of(kind), safetensors.numpy.save(weights))
    check_graph(model)
    lengths = [160, 7, 1]
    hidden, ids = run(model, lengths)
    for row, length in enumerate(lengths):
        expected = forward(kind, ids[row, :length], weights, CONFIG)
        np.testing.assert_allclose(hidden[row, :length], expected, atol=2e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    weights = make_weights("bert")
    config = config_of("bert", hidden_act=activation)
    hidden, ids = run(convert(config, safetensors.numpy.save(weights)), [9])
    expected = forward("bert", ids[0], weights, config)
    np.testing.assert_allclose(hidden[0], expected, atol=2e-5)


def test_prefixed_old_names_and_half_precision() -> None:
    weights = make_weights("bert", prefix="bert.")
    plain = convert(config_of("bert"), safetensors.numpy.save(make_weights("bert")))
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in weights.items()
    }
    assert convert(config_of("bert"), safetensors.numpy.save(old)) == plain
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    hidden, _ = run(convert(config_of("bert"), safetensors.numpy.save(half)), [9])
    np.testing.assert_allclose(hidden, run(plain, [9])[0], atol=0.05)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "t5"}, "type 't5' .* only bert, camembert, distilbert, mpnet"),
        ({"position_embedding_type": "relative_key"}, "relative_key positions"),
        ({"hidden_act": "silu"}, "activation 'silu'"),
    ],
)
def test_what_is_not_supported(changes: dict[str, Any], says: str) -> None:
    data = safetensors.numpy.save(make_weights("bert"))
    with pytest.raises(ModelSourceError, match=says):
        convert(config_of("bert", **changes), data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": None}, "hidden_size is None, but it must be a number from 1"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small', .* from 0 to 1"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps is nan"),
        ({"num_attention_heads": 3}, "16 dimensions cannot be divided among 3"),
        ({"num_hidden_layers": 3}, r"no tensor 'encoder\.layer\.2\.attention"),
        ({"hidden_size": 8}, r"has the shape \[170, 16\], but config\.json says"),
    ],
)
def test_files_that_do_not_fit_together(changes: dict[str, Any], says: str) -> None:
    data = safetensors.numpy.save(make_weights("bert"))
    with pytest.raises(ModelFileError, match=says):
        convert(config_of("bert", **changes), data)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pad_token_id": -2}, "pad_token_id is -2, but it must be a number from 0"),
        ({"pad_token_id": [1]}, r"pad_token_id is \[1\]"),
        ({"relative_attention_num_buckets": 3}, "num_buckets is 3, .* from 4 to 511"),
        ({"relative_attention_num_buckets": "a"}, "num_buckets is 'a'"),
    ],
)
def test_numbers_that_place_the_tokens(changes: dict[str, Any], says: str) -> None:
    data = safetensors.numpy.save(make_weights("mpnet"))
    with pytest.raises(ModelFileError, match=says):
        convert(config_of("mpnet", **changes), data)


def test_null_is_the_default() -> None:
    data = safetensors.numpy.save(make_weights("roberta"))
    nulls = config_of("roberta", pad_token_id=None, layer_norm_eps=None)
    stated = config_of("roberta", pad_token_id=1, layer_norm_eps=1e-12)
    assert convert(nulls, data) == convert(stated, data)


def test_a_tensor_without_rows() -> None:
    weights = make_weights("bert")
    name = "embeddings.token_type_embeddings.weight"
    weights[name] = weights[name][:0]
    with pytest.raises(ModelFileError, match=r"has the shape \[0, 16\]"):
        convert(config_of("bert"), safetensors.numpy.save(weights))


def test_bytes_that_are_not_safetensors() -> None:
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        convert(config_of("bert"), b"hello")


def test_quantized_weights_are_refused() -> None:
    weights = make_weights("bert")
    name = "embeddings.word_embeddings.weight"
    weights[name] = weights[name].astype(np.int8)
    with pytest.raises(ModelFileError, match="is of type I8"):
        convert(config_of("bert"), safetensors.numpy.save(weights))
