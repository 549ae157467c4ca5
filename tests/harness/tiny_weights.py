"""Random weights of tiny models of the BERT family, as safetensors files name them."""

from __future__ import annotations

from typing import Any

import numpy as np

HIDDEN, HEADS, LAYERS, INNER, VOCABULARY, POSITIONS = 16, 2, 2, 24, 40, 170
PADDING = 1
CONFIG = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": PADDING,
    "dim": HIDDEN,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "activation": "gelu",
}
# Names of a layer: query, key, value, out, norm, up, down, norm.
_BERT_LAYER = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
]
_MPNET_LAYER = [
    "attention.attn.q",
    "attention.attn.k",
    "attention.attn.v",
    "attention.attn.o",
    "attention.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
]
_DISTILBERT_LAYER = [
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
]
NAMES = {
    "bert": ("encoder.layer", _BERT_LAYER),
    "roberta": ("encoder.layer", _BERT_LAYER),
    "xlm-roberta": ("encoder.layer", _BERT_LAYER),
    "camembert": ("encoder.layer", _BERT_LAYER),
    "mpnet": ("encoder.layer", _MPNET_LAYER),
    "distilbert": ("transformer.layer", _DISTILBERT_LAYER),
}
Arrays = dict[str, Any]


def make_weights(kind: str, prefix: str = "") -> Arrays:
    """Return random weights, float32, under the names of an architecture."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    if kind not in ("mpnet", "distilbert"):
        shapes["embeddings.token_type_embeddings.weight"] = (2, HIDDEN)
    if kind == "mpnet":
        shapes["encoder.relative_attention_bias.weight"] = (32, HEADS)
    stem, parts = NAMES[kind]
    for layer in range(LAYERS):
        for i, part in enumerate(parts):
            rows = INNER if i == 5 else HIDDEN
            columns = INNER if i == 6 else HIDDEN
            weight = (HIDDEN,) if i in (4, 7) else (rows, columns)
            shapes[f"{stem}.{layer}.{part}.weight"] = weight
            shapes[f"{stem}.{layer}.{part}.bias"] = (rows,)
    return {
        prefix + name: (random.standard_normal(shape) * 0.4).astype(np.float32)
        for name, shape in shapes.items()
    }


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of these weights."""
    config = {**CONFIG, "model_type": kind, **changes}
    if kind == "distilbert":
        # Its epsilon is fixed.
        del config["layer_norm_eps"]
    return config
