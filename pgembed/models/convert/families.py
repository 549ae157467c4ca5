"""Architectures of the BERT family: what they call their weights and sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pgembed.errors import ModelFileError, ModelSourceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Names of one architecture; a layer's parts by what they are for."""

    prefix: str
    layer: str
    parts: Mapping[str, str]
    sizes: Mapping[str, str]
    activation: str = "hidden_act"
    padded_positions: bool = False
    """Whether the position table starts with rows for padding."""
    relative_bias: str = ""
    """The name of the relative position table, if there is one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one model, from its config.json."""

    hidden: int
    heads: int
    layers: int
    epsilon: float
    activation: str
    first_position: int
    buckets: int


_SIZES = {
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
}
_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_BERT = Family(prefix="bert.", layer="encoder.layer", parts=_PARTS, sizes=_SIZES)
_ROBERTA = dataclasses.replace(_BERT, prefix="roberta.", padded_positions=True)
_MPNET = Family(
    prefix="mpnet.",
    layer="encoder.layer",
    parts={
        **_PARTS,
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "attention": "attention.attn.o",
        "attention_norm": "attention.LayerNorm",
    },
    sizes=_SIZES,
    padded_positions=True,
    relative_bias="encoder.relative_attention_bias.weight",
)
_DISTILBERT = Family(
    prefix="distilbert.",
    layer="transformer.layer",
    parts={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "norm": "output_layer_norm",
    },
    sizes={
        "hidden": "dim",
        "heads": "n_heads",
        "layers": "n_layers",
    },
    activation="activation",
)
ARCHITECTURES: Mapping[str, Family] = {
    "bert": _BERT,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""Families by the model_type of config.json."""

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that config.json names.

    Raises ModelSourceError for an architecture that is not converted.
    """
    kind = str(config.get("model_type"))
    positions = config.get("position_embedding_type") or "absolute"
    if kind not in ARCHITECTURES or positions != "absolute":
        raise ModelSourceError(
            f"a model of type {kind!r} with {positions} positions cannot be converted "
            f"to ONNX here, only {', '.join(ARCHITECTURES)} with absolute ones: use a "
            f"source that has an ONNX file"
        )
    return ARCHITECTURES[kind]


def shape_of(config: Mapping[str, Any], family: Family) -> Shape:
    """Return the sizes that config.json states.

    Raises ModelFileError for sizes that are missing or make no sense.
    """
    sizes = {size: _size(config, name) for size, name in family.sizes.items()}
    activation = config.get(family.activation)
    if activation not in ACTIVATIONS:
        raise ModelSourceError(
            f"the activation {activation!r} cannot be converted to ONNX here, only "
            f"{', '.join(ACTIVATIONS)}: use a source that has an ONNX file"
        )
    if sizes["hidden"] % sizes["heads"]:
        raise ModelFileError(
            f"config.json: {sizes['hidden']} dimensions cannot be divided among "
            f"{sizes['heads']} attention heads"
        )
    padding = config.get("pad_token_id", 1) if family.padded_positions else -1
    return Shape(
        **sizes,
        activation=activation,
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
        first_position=padding + 1,
        buckets=int(config.get("relative_attention_num_buckets", 32)),
    )


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ModelFileError(
            f"config.json says {name} is {value!r}, but it must be a size: "
            f"get the model's files again"
        )
    return value
