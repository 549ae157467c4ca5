"""The BERT encoder as a graph of standard operators.

On CPUs ONNX Runtime's fused operators are no gain: on MiniLM they took a fifth longer,
mostly in SkipLayerNormalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from pgembed.errors import ModelFileError
from pgembed.models.convert.families import Family, Shape, family_of, shape_of
from pgembed.models.convert.graph import Graph
from pgembed.models.convert.weights import Array, Weights

_MAX_DISTANCE = 128  # MPNet's relative positions are all alike from here on


def convert(config: Mapping[str, Any], weights: bytes) -> bytes:
    """Return the ONNX model of config.json and the bytes of a safetensors file.

    Its inputs are input_ids and attention_mask, int64 (batch, tokens), padding to
    the right; its output is last_hidden_state, float32 (batch, tokens, hidden).
    Raises ModelSourceError for an architecture that is not supported and
    ModelFileError for files that do not fit together.
    """
    family = family_of(config)
    shape = shape_of(config, family)
    return _Encoder(family, shape, Weights(weights, family.prefix)).build()


class _Encoder:
    def __init__(self, family: Family, shape: Shape, weights: Weights) -> None:
        self._family = family
        self._shape = shape
        self._weights = weights
        self._graph = Graph()

    def build(self) -> bytes:
        positions = self._positions()
        hidden = self._embed(positions)
        bias = self._mask()
        if self._family.relative_bias:
            relative = self._relative_bias(len(positions))
            bias = self._graph.node("Add", relative, bias)
        for layer in range(self._shape.layers):
            hidden = self._layer(layer, hidden, bias)
        return self._graph.serialize(hidden, self._shape.hidden)

    def _mask(self) -> str:
        """Return what is added to attention scores: 0, or very little at padding."""
        graph = self._graph
        mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
        one = graph.constant("real", np.float32(1))
        missing = graph.node("Sub", mask, one)
        scale = graph.constant("never", np.float32(1e4))
        heads_and_queries = graph.constant("axes", np.array([1, 2], np.int64))
        return graph.node(
            "Unsqueeze", graph.node("Mul", missing, scale), heads_and_queries
        )

    def _positions(self) -> Array:
        """Return what is added at each position.

        Texts are padded to the right, so that positions count from the first one,
        and a text alone has token type 0 throughout.
        """
        size = self._shape.hidden
        table = self._weights.get("embeddings.position_embeddings.weight", -1, size)
        table = table[self._shape.first_position :]
        types = "embeddings.token_type_embeddings.weight"
        if types in self._weights:
            table = table + self._weights.get(types, -1, size)[0]
        if not len(table):
            raise ModelFileError("the model has no position at all: get it again")
        return table

    def _embed(self, positions: Array) -> str:
        graph = self._graph
        words = self._weights.get(
            "embeddings.word_embeddings.weight", -1, self._shape.hidden
        )
        word = graph.node("Gather", graph.constant("words", words), "input_ids")
        position = graph.node(
            "Slice",
            graph.constant("positions", positions),
            graph.constant("first", np.array([0], np.int64)),
            graph.node("Shape", "input_ids", start=1, end=2),
        )
        total = graph.node("Add", word, position)
        gamma, beta = self._norm("embeddings", "embeddings.LayerNorm")
        return graph.node(
            "LayerNormalization", total, gamma, beta, epsilon=self._shape.epsilon
        )

    def _layer(self, layer: int, hidden: str, bias: str) -> str:
        size = self._shape.hidden
        attention = self._attention(layer, hidden, bias)
        projected = self._linear(layer, "attention", attention, size, size)
        hidden = self._add_and_norm(layer, "attention_norm", projected, hidden)
        inner = self._linear(layer, "up", hidden, -1, size)
        outer = self._linear(layer, "down", self._activate(inner), size, -1)
        return self._add_and_norm(layer, "norm", outer, hidden)

    def _attention(self, layer: int, hidden: str, bias: str) -> str:
        graph, size = self._graph, self._shape.hidden
        query = self._heads(layer, "query", hidden, [0, 2, 1, 3])
        key = self._heads(layer, "key", hidden, [0, 2, 3, 1])
        value = self._heads(layer, "value", hidden, [0, 2, 1, 3])
        root = np.float32((size // self._shape.heads) ** -0.5)
        scale = graph.constant("scale", root)
        scores = graph.node("Mul", graph.node("MatMul", query, key), scale)
        weights = graph.node("Softmax", graph.node("Add", scores, bias), axis=-1)
        heads = graph.node("MatMul", weights, value)
        merged = graph.constant("merged", np.array([0, 0, size], np.int64))
        rows = graph.node("Transpose", heads, perm=[0, 2, 1, 3])
        return graph.node("Reshape", rows, merged)

    def _heads(self, layer: int, part: str, hidden: str, order: list[int]) -> str:
        size, heads = self._shape.hidden, self._shape.heads
        rows = self._linear(layer, part, hidden, size, size)
        split = np.array([0, 0, heads, size // heads], np.int64)
        parts = self._graph.node("Reshape", rows, self._graph.constant("split", split))
        return self._graph.node("Transpose", parts, perm=order)

    def _add_and_norm(self, layer: int, part: str, inputs: str, residual: str) -> str:
        gamma, beta = self._norm(f"{layer}.{part}", self._name(layer, part))
        return self._graph.node(
            "LayerNormalization",
            self._graph.node("Add", inputs, residual),
            gamma,
            beta,
            epsilon=self._shape.epsilon,
        )

    def _activate(self, inner: str) -> str:
        activation = self._shape.activation
        if activation == "relu":
            return self._graph.node("Relu", inner)
        approximate = "none" if activation == "gelu" else "tanh"
        return self._graph.node("Gelu", inner, approximate=approximate)

    def _linear(
        self, layer: int, part: str, inputs: str, rows: int, columns: int
    ) -> str:
        """Apply a linear map, its weight stored as (rows, columns): out, in."""
        name = self._name(layer, part)
        weight = self._weights.get(f"{name}.weight", rows, columns)
        bias = self._weights.get(f"{name}.bias", len(weight))
        product = self._graph.node(
            "MatMul", inputs, self._graph.constant(f"{layer}.{part}.weight", weight.T)
        )
        return self._graph.node(
            "Add", product, self._graph.constant(f"{layer}.{part}.bias", bias)
        )

    def _norm(self, name: str, source: str) -> tuple[str, str]:
        size = self._shape.hidden
        return (
            self._graph.constant(
                f"{name}.gamma", self._weights.get(f"{source}.weight", size)
            ),
            self._graph.constant(
                f"{name}.beta", self._weights.get(f"{source}.bias", size)
            ),
        )

    def _name(self, layer: int, part: str) -> str:
        return f"{self._family.layer}.{layer}.{self._family.parts[part]}"

    def _relative_bias(self, positions: int) -> str:
        """Add what each head adds to the score of two tokens so far apart."""
        graph, shape = self._graph, self._shape
        table = self._weights.get(
            self._family.relative_bias, shape.buckets, shape.heads
        )
        distances = np.arange(1 - positions, positions)
        by_distance = table[_buckets(distances, shape.buckets)].T
        count = graph.node("Shape", "input_ids", start=1, end=2)
        zero = graph.constant("zero", np.array(0, np.int64))
        one = graph.constant("one", np.array(1, np.int64))
        ahead = graph.node("Range", zero, graph.node("Squeeze", count), one)
        axis = graph.constant("axis", np.array([1], np.int64))
        distance = graph.node("Sub", ahead, graph.node("Unsqueeze", ahead, axis))
        middle = graph.constant("middle", np.array(positions - 1, np.int64))
        index = graph.node("Add", distance, middle)
        bias = graph.node(
            "Gather", graph.constant("bias_by_distance", by_distance), index, axis=1
        )
        front = graph.constant("front", np.array([0], np.int64))
        return graph.node("Unsqueeze", bias, front)


def _buckets(distances: Any, buckets: int) -> Any:
    """Return the bucket of each distance key - query, as T5 and MPNet count them."""
    half = buckets // 2
    exact = half // 2
    far = np.abs(distances)
    ratio = np.maximum(far, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(np.log(_MAX_DISTANCE / exact)) * (half - exact)
    large = np.minimum(exact + steps.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(far < exact, far, large)
