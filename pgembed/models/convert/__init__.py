"""Safetensors models of the BERT family → one self-contained ONNX graph, no torch."""

from __future__ import annotations

from pgembed.models.convert.encoder import convert
from pgembed.models.convert.families import ARCHITECTURES

__all__ = ["ARCHITECTURES", "convert"]
