"""Alembic: embeddings in migrations, and autogenerate that knows them.

Importing this package is enough; pgembed.sqlalchemy does so where Alembic runs.
"""

from __future__ import annotations

from pgembed.alembic import autogenerate, implementations, render
from pgembed.alembic.operations import (
    AlterEmbeddingOp,
    CreateEmbeddingOp,
    DropEmbeddingOp,
    InstallPgembedOp,
    UninstallPgembedOp,
)

implementations.register()
render.register()
autogenerate.register()

__all__ = [
    "AlterEmbeddingOp",
    "CreateEmbeddingOp",
    "DropEmbeddingOp",
    "InstallPgembedOp",
    "UninstallPgembedOp",
]
