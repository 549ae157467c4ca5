"""Tiny ONNX models, built here: good ones, and ones that fail on a certain word.

Each function writes a folder with model.onnx and tokenizer.json, fit to be added with
pgembed.models.registry.add_model, and returns it. Different texts get different
vectors: words beyond the vocabulary are read by their characters, and a token counts
the more the later it stands.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import models, normalizers, pre_tokenizers, processors

DIMENSIONS = 8
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PANIC_TEXT = "ab" * 40 + "c"
TRIGGERS = ("nan", "infinity", "zero", "poison", "slow")
WORDS = ("a", "cat", "dog", "man", "eats", "food", "sleeps", "red", "blue", "the")
_SIDE = 192  # a slow step multiplies two square matrices of this size


def good_model(folder: Path, *, dimensions: int = DIMENSIONS, seed: int = 0) -> Path:
    """Write a model that embeds every text; another seed gives other vectors."""
    return write_model(folder, dimensions=dimensions, seed=seed)


def nan_model(folder: Path) -> Path:
    """Write a model that gives NaN for texts with the word nan.

    The word infinity gives infinity, and zero a vector of length 0.
    """
    return write_model(folder, triggers=("nan", "infinity", "zero"))


def wrong_size_model(folder: Path) -> Path:
    """Write a model like good_model's, but with one dimension less."""
    return write_model(folder, dimensions=DIMENSIONS - 1)


def raising_model(folder: Path) -> Path:
    """Write a model that raises for a batch with the word poison in it."""
    return write_model(folder, triggers=("poison",))


def slow_model(folder: Path, *, steps: int = 5_000) -> Path:
    """Write a model that works long on a batch with the word slow in it.

    5,000 steps take about one second of a core.
    """
    return write_model(folder, triggers=("slow",), steps=steps)


def picky_model(folder: Path) -> Path:
    """Write a model whose tokenizer refuses texts with characters it does not know."""
    values = json.loads(tokenizer().to_str())
    values["added_tokens"] = [
        token for token in values["added_tokens"] if token["content"] != "[UNK]"
    ]
    del values["model"]["vocab"]["[UNK]"]
    return with_tokenizer(good_model(folder), values)


def panicking_model(folder: Path) -> Path:
    """Write a model whose tokenizer panics, which is no Exception, on PANIC_TEXT."""
    values = json.loads(tokenizer().to_str())
    values["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": r"(?:[ab]|[ab][ab])+[0-9?]|\w+"},
        "behavior": "Isolated",
        "invert": False,
    }
    return with_tokenizer(good_model(folder), values)


def with_tokenizer(folder: Path, values: dict[str, Any]) -> Path:
    """Write this tokenizer.json into the folder of a model."""
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


def write_model(
    folder: Path,
    *,
    dimensions: int = DIMENSIONS,
    seed: int = 0,
    triggers: Sequence[str] = (),
    steps: int = 5_000,
) -> Path:
    """Write a model on which these triggers, some of TRIGGERS, have their effect."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    model = network(dimensions=dimensions, seed=seed, triggers=triggers, steps=steps)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return folder


def vocabulary() -> dict[str, int]:
    """Return the ids of all tokens: special ones, words, characters."""
    characters = string.ascii_lowercase[1:] + string.digits + string.punctuation
    parts = [f"##{character}" for character in "a" + characters]
    tokens = [*SPECIAL, *TRIGGERS, *WORDS, *characters, *parts]
    return {token: i for i, token in enumerate(tokens)}


def tokenizer(max_length: int | None = None) -> tokenizers.Tokenizer:
    """Return a tokenizer that puts [CLS] before a text and [SEP] after it.

    With max_length it carries truncation and padding, as published ones often do.
    """
    ids = vocabulary()
    made = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    made.add_special_tokens(list(SPECIAL))
    if max_length is not None:
        made.enable_truncation(max_length)
        made.enable_padding(length=max_length)
    return made


def network(
    *,
    dimensions: int = DIMENSIONS,
    seed: int = 0,
    triggers: Sequence[str] = (),
    steps: int = 5_000,
) -> onnx.ModelProto:
    """Return token ids and mask → last_hidden_state, float32 (b, s, dimensions)."""
    graph = _Graph(triggers)
    rows = np.random.default_rng(seed).standard_normal((len(vocabulary()), dimensions))
    for word, value in (("nan", np.nan), ("infinity", np.inf)):
        if word in triggers:
            rows[vocabulary()[word]] = value
    hidden = graph.node("Gather", graph.constant(rows.astype(np.float32)), "input_ids")
    hidden = graph.node("Mul", hidden, graph.weights())
    for word, effect in (("zero", _zero), ("poison", _poison), ("slow", _slow)):
        if word in triggers:
            hidden = effect(graph, hidden, steps)
    return graph.model(hidden, dimensions)


class _Graph:
    def __init__(self, triggers: Sequence[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.triggers = triggers

    def constant(self, values: npt.ArrayLike) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def weights(self) -> str:
        """Return what each token counts: more from the left to the right."""
        ones = self.node("Cast", "attention_mask", to=TensorProto.FLOAT)
        position = self.node("CumSum", ones, self.constant(np.int64(1)))
        share = self.node("Mul", position, self.constant(np.float32(0.05)))
        return self.node("Unsqueeze", share, self.constant(np.array([2])))

    def per_token(self, word: str, value: Any, otherwise: Any) -> str:
        """Return value where a token is this word, otherwise elsewhere: (b, s)."""
        table = np.full(len(vocabulary()), otherwise)
        table[vocabulary()[word]] = value
        return self.node("Gather", self.constant(table), "input_ids")

    def model(self, hidden: str, dimensions: int) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [hidden], ["last_hidden_state"]))
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [
                info("input_ids", TensorProto.INT64, ["b", "s"]),
                info("attention_mask", TensorProto.INT64, ["b", "s"]),
            ],
            [info("last_hidden_state", TensorProto.FLOAT, ["b", "s", dimensions])],
            self.constants,
        )
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


def _zero(graph: _Graph, hidden: str, _: int) -> str:
    factors = graph.per_token("zero", np.float32(0), np.float32(1))
    lowest = graph.node("ReduceMin", factors, axes=[1], keepdims=1)
    text = graph.node("Unsqueeze", lowest, graph.constant(np.array([2])))
    return graph.node("Mul", hidden, text)


def _poison(graph: _Graph, hidden: str, _: int) -> str:
    """Look up a row that is not there."""
    index = graph.per_token("poison", np.int64(9), np.int64(0))
    nothing = graph.node("Gather", graph.constant(np.zeros(1, np.float32)), index)
    text = graph.node("Unsqueeze", nothing, graph.constant(np.array([2])))
    return graph.node("Add", hidden, text)


def _slow(graph: _Graph, hidden: str, steps: int) -> str:
    """Multiply matrices of zeros so many times, and add what comes of it."""
    costs = graph.per_token("slow", np.int64(steps), np.int64(0))
    count = graph.node("ReduceMax", costs, keepdims=0)
    start = graph.constant(np.zeros((_SIDE, _SIDE), np.float32))
    always = graph.constant(np.array(True))
    work = graph.node("Loop", count, always, start, body=_multiply())
    nothing = graph.node("ReduceSum", work, keepdims=0)
    return graph.node("Add", hidden, nothing)


def _multiply() -> onnx.GraphProto:
    info = helper.make_tensor_value_info
    square = [_SIDE, _SIDE]
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "state"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "multiply",
        [
            info("step", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, square),
        ],
        [
            info("go_on", TensorProto.BOOL, []),
            info("next", TensorProto.FLOAT, square),
        ],
    )
