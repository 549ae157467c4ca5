"""SQLAlchemy models with embeddings, and searches as ordinary SELECTs."""

from __future__ import annotations

import sys

from pgembed.sqlalchemy.batch import search_batch
from pgembed.sqlalchemy.chunks import Chunk
from pgembed.sqlalchemy.ddl import CreateEmbedding, DropEmbedding
from pgembed.sqlalchemy.declaration import EmbeddingSpec
from pgembed.sqlalchemy.embedding import Embedding
from pgembed.sqlalchemy.search import hybrid_search, search

__all__ = [
    "Chunk",
    "CreateEmbedding",
    "DropEmbedding",
    "Embedding",
    "EmbeddingSpec",
    "hybrid_search",
    "search",
    "search_batch",
]

if "alembic" in sys.modules:
    # Where Alembic runs, its autogenerate must know what these models declare.
    import pgembed.alembic  # noqa: F401
