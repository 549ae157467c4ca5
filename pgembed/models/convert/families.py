"""Architectures of the BERT family: what they call their weights and sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

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

_LARGEST = 2**31 - 1
N = TypeVar("N", int, float)

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
    sizes = {
        size: _number(config, name, int, least=1, most=_LARGEST)
        for size, name in family.sizes.items()
    }
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
    return Shape(
        **sizes,
        activation=activation,
        epsilon=_number(config, "layer_norm_eps", float, 1e-12, least=0, most=1),
        first_position=_first_position(config) if family.padded_positions else 0,
        buckets=_buckets(config) if family.relative_bias else 0,
    )


def _first_position(config: Mapping[str, Any]) -> int:
    return 1 + _number(config, "pad_token_id", int, 1, least=0, most=_LARGEST)


def _buckets(config: Mapping[str, Any]) -> int:
    # With fewer or more, no distance is left between the near and the far ones.
    return _number(config, "relative_attention_num_buckets", int, 32, least=4, most=511)


def _number(
    config: Mapping[str, Any],
    name: str,
    kind: type[N],
    default: N | None = None,
    *,
    least: N,
    most: N,
) -> N:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, (int, kind)) or not least <= value <= most:
        raise ModelFileError(
            f"config.json says {name} is {value!r}, but it must be a number from "
            f"{least} to {most}: get the model's files again"
        )
    return kind(value)
