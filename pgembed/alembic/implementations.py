"""What the operations do."""

from __future__ import annotations

from alembic.operations import Operations

from pgembed.alembic import install
from pgembed.alembic.alter import AlterEmbedding
from pgembed.alembic.operations import (
    AlterEmbeddingOp,
    CreateEmbeddingOp,
    DropEmbeddingOp,
    InstallPgembedOp,
    UninstallPgembedOp,
)
from pgembed.sqlalchemy.ddl import CreateEmbedding, DropEmbedding, explained


def register() -> None:
    """Tell Alembic how to run the operations."""
    for kind, function in (
        (CreateEmbeddingOp, _create),
        (DropEmbeddingOp, _drop),
        (AlterEmbeddingOp, _alter),
        (InstallPgembedOp, _install),
        (UninstallPgembedOp, _uninstall),
    ):
        Operations.implementation_for(kind)(function)


def _create(operations: Operations, operation: CreateEmbeddingOp) -> None:
    with explained():
        operations.execute(CreateEmbedding(operation.spec))


def _drop(operations: Operations, operation: DropEmbeddingOp) -> None:
    drop = DropEmbedding(operation.name, drop_vectors=operation.drop_vectors)
    with explained():
        operations.execute(drop)


def _alter(operations: Operations, operation: AlterEmbeddingOp) -> None:
    with explained():
        operations.execute(AlterEmbedding(operation.name, operation.changes))


def _install(operations: Operations, operation: InstallPgembedOp) -> None:
    context = operations.get_context()
    if context.as_sql:
        with install.nested(operations):
            script = install.script(operation.vector_schema, operation.dblink_schema)
        context.impl.static_output(script)
    else:
        install.install_within(operations)


def _uninstall(operations: Operations, operation: UninstallPgembedOp) -> None:
    context = operations.get_context()
    if context.as_sql:
        context.impl.static_output(
            install.REMOVAL if operation.force else install.REMOVAL_IF_UNUSED
        )
    else:
        install.uninstall_within(operations, force=operation.force)
