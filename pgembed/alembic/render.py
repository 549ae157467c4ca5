"""The operations as the Python text of a migration."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext

from pgembed.alembic.operations import (
    AlterEmbeddingOp,
    CreateEmbeddingOp,
    DropEmbeddingOp,
    InstallPgembedOp,
    UninstallPgembedOp,
)


def register() -> None:
    """Tell Alembic how to write the operations."""
    for kind, function in (
        (CreateEmbeddingOp, _create),
        (DropEmbeddingOp, _drop),
        (AlterEmbeddingOp, _alter),
        (InstallPgembedOp, _install),
        (UninstallPgembedOp, _uninstall),
    ):
        renderers.dispatch_for(kind)(function)


def render_vectors(context: AutogenContext) -> None:
    """Write pgvector's types with the import that they need."""
    given = context.opts.get("render_item")
    if not isinstance(given, _RenderItem):
        context.opts["render_item"] = _RenderItem(given)


class _RenderItem:
    """Alembic's hook render_item, before the application's own."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def __call__(self, kind: str, item: Any, context: AutogenContext) -> Any:
        found = self._given(kind, item, context) if self._given else False
        if found is not False or kind != "type":
            return found
        if not type(item).__module__.startswith("pgvector."):
            return False
        context.imports.add("import pgvector.sqlalchemy")
        return f"pgvector.sqlalchemy.{item!r}"


def _create(context: AutogenContext, operation: CreateEmbeddingOp) -> str:
    spec = operation.spec
    options: dict[str, Any] = {"model": spec.model, **spec.options()}
    if spec.schema is not None:
        options["schema"] = spec.schema
    return _call(context, "create_embedding", [spec.table, spec.content], options)


def _drop(context: AutogenContext, operation: DropEmbeddingOp) -> str:
    options = {} if operation.drop_vectors else {"drop_vectors": False}
    return _call(context, "drop_embedding", [operation.name], options)


def _alter(context: AutogenContext, operation: AlterEmbeddingOp) -> str:
    return _call(context, "alter_embedding", [operation.name], operation.changes)


def _install(context: AutogenContext, operation: InstallPgembedOp) -> str:
    return _call(context, "install_pgembed", [], {})


def _uninstall(context: AutogenContext, operation: UninstallPgembedOp) -> str:
    options = {"force": True} if operation.force else {}
    return _call(context, "uninstall_pgembed", [], options)


def _call(
    context: AutogenContext, name: str, values: list[str], options: dict[str, Any]
) -> str:
    # The migration has the operations, whatever env.py imports.
    context.imports.add("import pgembed.alembic")
    prefix = context.opts.get("alembic_module_prefix") or ""
    named = [f"{key}={value!r}" for key, value in options.items()]
    return f"{prefix}{name}({', '.join([*map(repr, map(str, values)), *named])})"
