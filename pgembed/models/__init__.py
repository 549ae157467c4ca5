"""The only rooms that import onnxruntime and tokenizers."""

from __future__ import annotations
