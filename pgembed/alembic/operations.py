"""The operations that ``op`` has once pgembed.alembic is imported."""

from __future__ import annotations

import dataclasses
from typing import Any

from alembic.operations import MigrateOperation, Operations

from pgembed.errors import EmbeddingError
from pgembed.sqlalchemy.declaration import (
    EmbeddingSpec,
    default_column,
    default_name,
)

CHANGEABLE = (
    "content",
    "model",
    "chunk_tokens",
    "chunk_overlap",
    "storage",
    "index",
    "on_change",
)
KEEPING_VECTORS = frozenset({"content", "index", "on_change"})
"""Changes of these leave the vector column where it is."""


@Operations.register_operation("create_embedding")
class CreateEmbeddingOp(MigrateOperation):
    """``op.create_embedding``; reversed, drop_embedding.

    With *takes_over* the vector column is there before it, and after its reversal.
    """

    def __init__(self, spec: EmbeddingSpec, *, takes_over: bool = False) -> None:
        self.spec = spec
        self.takes_over = takes_over

    @classmethod
    def create_embedding(
        cls,
        operations: Operations,
        table: str,
        content: str,
        *,
        model: str,
        name: str | None = None,
        schema: str | None = None,
        target_column: str | None = None,
        chunk_tokens: int | None = None,
        chunk_overlap: int = 0,
        storage: str = "vector",
        index: str = "hnsw",
        on_change: str = "keep",
    ) -> None:
        """Declare an embedding, as pgembed.create_embedding does.

        The table is there, and the model registered: 'pgembed model add'.
        """
        if target_column is None and chunk_tokens is None:
            target_column = default_column(content)
        spec = EmbeddingSpec(
            table, schema, content, model, name or default_name(table, content),
            target_column, chunk_tokens, chunk_overlap, storage, index, on_change,
        )  # fmt: skip
        operations.invoke(cls(spec))

    def reverse(self) -> DropEmbeddingOp:
        """Return the operation that drops it, with the vectors that it brought."""
        return DropEmbeddingOp(
            self.spec.name, drop_vectors=not self.takes_over, spec=self.spec
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference, for compare_metadata()."""
        return ("add_embedding", self.spec)


@Operations.register_operation("drop_embedding")
class DropEmbeddingOp(MigrateOperation):
    """``op.drop_embedding``; reversed, create_embedding, if it is known which."""

    def __init__(
        self, name: str, *, drop_vectors: bool = True, spec: EmbeddingSpec | None = None
    ) -> None:
        self.name = name
        self.drop_vectors = drop_vectors
        self.spec = spec

    @classmethod
    def drop_embedding(
        cls, operations: Operations, name: str, *, drop_vectors: bool = True
    ) -> None:
        """Stop keeping an embedding; with *drop_vectors* its vectors go, too."""
        operations.invoke(cls(name, drop_vectors=drop_vectors))

    def reverse(self) -> CreateEmbeddingOp:
        """Return the operation that creates it again."""
        if self.spec is None:
            raise EmbeddingError(
                f"what the embedding {self.name!r} was is not known, so that dropping "
                "it cannot be reversed: write op.create_embedding() by hand"
            )
        return CreateEmbeddingOp(self.spec, takes_over=not self.drop_vectors)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference, for compare_metadata()."""
        return ("remove_embedding", self.name)


@Operations.register_operation("alter_embedding")
class AlterEmbeddingOp(MigrateOperation):
    """``op.alter_embedding``; reversed, the same with the earlier values."""

    def __init__(
        self, name: str, changes: dict[str, Any], before: dict[str, Any] | None = None
    ) -> None:
        self.name = name
        self.changes = changes
        self.before = before

    @classmethod
    def alter_embedding(cls, operations: Operations, name: str, **changes: Any) -> None:
        """Change an embedding: content, model, chunk_tokens, chunk_overlap, storage,
        index or on_change.

        Index and on_change are changed in place. After another content, the vectors
        of a vector column stay until the new ones are there. Chunks, and vectors after
        another model, storage or cutting, are gone until their rows are embedded anew.
        A paused embedding stays paused. Raises EmbeddingError for other arguments.

        The vector column, or the table of chunks, is then made anew. What roles were
        granted on it is granted again, but not from the one to the other. What else
        was made there by hand is gone: comments, indexes, constraints and triggers;
        a chunk table with policies of its own loses them, and with them all grants.
        A view on it makes the operation fail.
        """
        unknown = changes.keys() - set(CHANGEABLE)
        if unknown or not changes:
            raise EmbeddingError(
                f"op.alter_embedding({name!r}) changes {', '.join(CHANGEABLE)}; "
                f"{', '.join(sorted(unknown)) or 'nothing'} was given"
            )
        operations.invoke(cls(name, changes))

    def reverse(self) -> AlterEmbeddingOp:
        """Return the operation that restores the earlier values."""
        if self.before is None:
            raise EmbeddingError(
                f"what the embedding {self.name!r} was before is not known, so that "
                "altering it cannot be reversed: write op.alter_embedding() by hand"
            )
        return AlterEmbeddingOp(self.name, self.before, self.changes)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference, for compare_metadata()."""
        return ("modify_embedding", self.name, self.before, self.changes)


@Operations.register_operation("install_pgembed")
@dataclasses.dataclass
class InstallPgembedOp(MigrateOperation):
    """``op.install_pgembed``; reversed, uninstall_pgembed."""

    vector_schema: str = "public"
    dblink_schema: str | None = "public"

    @classmethod
    def install_pgembed(
        cls,
        operations: Operations,
        *,
        vector_schema: str = "public",
        dblink_schema: str | None = "public",
    ) -> None:
        """Install pgembed, or upgrade it, as 'pgembed install' does.

        The schemas of the extensions are found in the database; offline (``--sql``)
        they are those given here, and *dblink_schema* None does without dblink. Such
        a script raises where pgembed is already, and it registers no model: until
        'pgembed model add', op.create_embedding() fails, so that this operation
        belongs into a migration of its own, before the first embedding.
        """
        operations.invoke(cls(vector_schema, dblink_schema))

    def reverse(self) -> UninstallPgembedOp:
        """Return the operation that removes it, unless it is in use."""
        return UninstallPgembedOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference, for compare_metadata()."""
        return ("install_pgembed",)


@Operations.register_operation("uninstall_pgembed")
@dataclasses.dataclass
class UninstallPgembedOp(MigrateOperation):
    """``op.uninstall_pgembed``; reversed, install_pgembed."""

    force: bool = False

    @classmethod
    def uninstall_pgembed(cls, operations: Operations, *, force: bool = False) -> None:
        """Remove schema pgembed; tables and vectors stay.

        While models or embeddings are registered, which may be those of others, all
        of it stays, and a warning says so; with *force* they go with it.
        """
        operations.invoke(cls(force))

    def reverse(self) -> InstallPgembedOp:
        """Return the operation that installs it again."""
        return InstallPgembedOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference, for compare_metadata()."""
        return ("uninstall_pgembed",)
