"""pgembed: embeddings kept true in PostgreSQL, and searched with filters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgembed.batch.join import JoinResult
    from pgembed.batch.layout import build_layout, drop_layout
    from pgembed.batch.result import BatchResult
    from pgembed.batch.search import knn_join, search_batch

__version__ = "0.1.0"

# ONNX Runtime and the hub's client report to their makers, errors of the model's
# included, unless they find this when they are imported. Who has set it keeps it.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")

__all__ = [
    "BatchResult",
    "JoinResult",
    "__version__",
    "build_layout",
    "drop_layout",
    "knn_join",
    "search_batch",
]

# NumPy and psycopg are imported when a name is first used, not with the package.
_MODULES = {
    "BatchResult": "pgembed.batch.result",
    "JoinResult": "pgembed.batch.join",
    "build_layout": "pgembed.batch.layout",
    "drop_layout": "pgembed.batch.layout",
    "knn_join": "pgembed.batch.search",
    "search_batch": "pgembed.batch.search",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pgembed' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
