"""Autogenerate: the embeddings of models compared with those of the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from pgvector.sqlalchemy import BIT, HALFVEC, VECTOR
from sqlalchemy import Column, Connection, Table
from sqlalchemy.types import NullType

from pgembed.alembic import vector_indexes
from pgembed.alembic.inventory import Inventory, Place
from pgembed.alembic.operations import (
    CHANGEABLE,
    KEEPING_VECTORS,
    AlterEmbeddingOp,
    CreateEmbeddingOp,
    DropEmbeddingOp,
    InstallPgembedOp,
)
from pgembed.alembic.render import render_vectors
from pgembed.errors import EmbeddingError
from pgembed.sqlalchemy.ddl import named, require_dimensions
from pgembed.sqlalchemy.declaration import (
    INFO,
    EmbeddingSpec,
    declarations,
    specs,
)

Schemas = set[str | None]

_TYPES = {"vector": VECTOR, "halfvec": HALFVEC, "bit": BIT}


def register() -> None:
    """Compare before and after Alembic does."""
    try:
        from alembic.util import DispatchPriority
    except ImportError:  # before Alembic 1.18
        comparators.dispatch_for("schema")(_compare)
        return
    comparators.dispatch_for("schema", priority=DispatchPriority.FIRST)(_hide)
    comparators.dispatch_for("schema", priority=DispatchPriority.LAST)(_compare)


def _hide(context: AutogenContext, upgrade: ops.UpgradeOps, schemas: Schemas) -> None:
    """Keep Alembic from comparing, and logging as removed, what pgembed made."""
    schemas.discard("pgembed")
    connection = _postgresql(context)
    if connection is None:
        return
    inventory = Inventory.of(connection)

    def include(item: Any, name: str, kind: str, reflected: bool, other: Any) -> bool:
        return not (reflected and other is None and _made(item, name, kind, inventory))

    context._object_filters = [*context._object_filters, include]


def _made(item: Any, name: str, kind: str, inventory: Inventory) -> bool:
    """Whether what Alembic found in the database is pgembed's."""
    if kind not in ("table", "column", "index"):  # of another plugin, with its items
        return False
    table: Table = item if kind == "table" else item.table
    place: Place = (table.schema, table.name)
    if kind == "column":
        return (place, name) in inventory.columns
    if kind == "index":
        return (table.schema, name) in inventory.indexes
    return place in inventory.tables


def _postgresql(context: AutogenContext) -> Connection | None:
    """Return the connection, if it is PostgreSQL's."""
    connection = context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return None
    return connection


def _compare(
    context: AutogenContext, upgrade: ops.UpgradeOps, schemas: Schemas
) -> None:
    connection = _postgresql(context)
    if connection is None:
        return
    render_vectors(context)
    inventory = Inventory.of(connection)
    default = connection.dialect.default_schema_name
    tables = [
        table
        for table in context.sorted_tables
        if (None if table.schema == default else table.schema) in schemas
        and _included(context, table)
    ]
    declared = _by_name(_at_home(spec, default) for spec in specs(tables))
    if inventory.installed:
        for table in tables:
            for declaration, spec in declarations(table):
                require_dimensions(connection, declaration, spec)
    removed = _removed_tables(upgrade)
    present = {
        name: spec
        for name, spec in inventory.embeddings.items()
        if (spec.schema, spec.table) in removed | {_place(t, default) for t in tables}
    }
    upgrade.ops[:] = list(_cleaned(upgrade.ops, inventory))
    vector_indexes.compare(context, tables, upgrade)
    plain = {
        (_place(table, default), column.name)
        for table in tables
        for column in table.columns
        if INFO not in column.info
    }
    _add(upgrade, declared, present, inventory.installed, plain)


def _by_name(given: Iterable[EmbeddingSpec]) -> dict[str, EmbeddingSpec]:
    """Return the embeddings of the models; raises EmbeddingError for one name twice."""
    found: dict[str, EmbeddingSpec] = {}
    for spec in given:
        other = found.setdefault(spec.name, spec)
        if other != spec:
            places = " and ".join(
                f"{each.schema or 'the default schema'}.{each.table} "
                f"({each.target_column or 'chunks'})"
                for each in (other, spec)
            )
            raise EmbeddingError(
                f"{places} both have an embedding {spec.name!r}, and names are unique "
                "in a database: pass name=… to one of them"
            )
    return found


def _included(context: AutogenContext, table: Table) -> bool:
    return context.run_object_filters(table, table.name, "table", False, None)


def _place(table: Table, default: str | None) -> Place:
    return (None if table.schema == default else table.schema, table.name)


def _at_home(spec: EmbeddingSpec, default: str | None) -> EmbeddingSpec:
    if spec.schema == default:
        return dataclasses.replace(spec, schema=None)
    return spec


def _removed_tables(upgrade: ops.UpgradeOps) -> set[Place]:
    return {
        (operation.schema, operation.table_name)
        for operation in upgrade.ops
        if isinstance(operation, ops.DropTableOp)
    }


def _add(
    upgrade: ops.UpgradeOps,
    declared: dict[str, EmbeddingSpec],
    present: dict[str, EmbeddingSpec],
    installed: bool,
    plain: set[tuple[Place, str]],
) -> None:
    """Add our operations: what is dropped, first; what is made or changed, last."""
    first: list[ops.MigrateOperation] = []
    last: list[ops.MigrateOperation] = []
    for name, spec in present.items():
        if name not in declared:
            # The model may go on with the column, as one of its own.
            kept = ((spec.schema, spec.table), spec.target_column) in plain
            first.append(DropEmbeddingOp(name, drop_vectors=not kept, spec=spec))
    gone = set(_removed_columns(upgrade.ops))
    for name, spec in declared.items():
        before = present.get(name)
        if before is None:
            takes_over = _take_over(upgrade.ops, spec)
            last.append(CreateEmbeddingOp(spec, takes_over=takes_over))
        elif before != spec and _must_be_anew(before, spec, gone):
            first.append(DropEmbeddingOp(name, spec=before))
            last.append(CreateEmbeddingOp(spec))
        elif before != spec:
            last.append(_alteration(before, spec))
    dropped = [each.spec for each in first if isinstance(each, DropEmbeddingOp)]
    made = [each.spec for each in last if isinstance(each, CreateEmbeddingOp)]
    # Their columns go and come.
    anew = [
        declared[each.name]
        for each in last
        if isinstance(each, AlterEmbeddingOp)
        and not each.changes.keys() <= KEEPING_VECTORS
    ]
    # Indexes of the application's own on vectors that come or go.
    first[:0] = _taken(upgrade.ops, ops.DropIndexOp, [*dropped, *anew])
    last += _taken(upgrade.ops, ops.CreateIndexOp, [*made, *anew])
    if declared and not installed:
        first.insert(0, InstallPgembedOp())
    upgrade.ops[:] = [*first, *upgrade.ops, *last]


def _taken(
    operations: list[ops.MigrateOperation],
    kind: type[ops.MigrateOperation],
    specs: Iterable[EmbeddingSpec | None],
) -> list[ops.MigrateOperation]:
    """Take the operations on indexes of the embeddings' columns out of *operations*."""
    columns = {(s.schema, s.table, s.target_column) for s in specs if s is not None}
    taken: list[ops.MigrateOperation] = []
    for operation in list(operations):
        if isinstance(operation, ops.ModifyTableOps):
            taken += _taken(operation.ops, kind, specs)
            if not operation.ops:
                operations.remove(operation)
        elif isinstance(operation, kind):
            index: Any = operation.to_index()  # type: ignore[attr-defined]
            for name in index.dialect_options["postgresql"].get("include") or ():
                if name not in index.table.c:  # Alembic adds it when it runs
                    index.table.append_column(Column(name, NullType))
            place = operation.schema, operation.table_name  # type: ignore[attr-defined]
            if any((*place, name) in columns for name in named(index)):
                operations.remove(operation)
                taken.append(operation)
    return taken


def _take_over(operations: list[ops.MigrateOperation], spec: EmbeddingSpec) -> bool:
    """Leave the column of vectors that an embedding is to keep in its place.

    Returns whether there is one: a column of the application's own until now.
    """
    for operation in list(operations):
        if isinstance(operation, ops.ModifyTableOps):
            if _take_over(operation.ops, spec):
                if not operation.ops:
                    operations.remove(operation)
                return True
        elif isinstance(operation, ops.DropColumnOp):
            place = operation.schema, operation.table_name, operation.column_name
            column: Any = operation.to_column()
            if place == (spec.schema, spec.table, spec.target_column) and isinstance(
                column.type, _TYPES[spec.storage]
            ):
                operations.remove(operation)
                return True
    return False


def _must_be_anew(
    before: EmbeddingSpec, after: EmbeddingSpec, gone: set[tuple[Place, str]]
) -> bool:
    """Whether it moves, or loses a column of its content, so that it must go first."""
    place = (before.schema, before.table)
    return (
        place != (after.schema, after.table)
        or before.target_column != after.target_column
        or any((place, column) in gone for column in before.content_columns())
    )


def _alteration(before: EmbeddingSpec, after: EmbeddingSpec) -> AlterEmbeddingOp:
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    changed = [name for name in CHANGEABLE if old[name] != new[name]]
    return AlterEmbeddingOp(
        after.name,
        {name: new[name] for name in changed},
        {name: old[name] for name in changed},
    )


def _removed_columns(
    operations: Iterable[ops.MigrateOperation],
) -> Iterator[tuple[Place, str]]:
    for operation in operations:
        if isinstance(operation, ops.ModifyTableOps):
            yield from _removed_columns(operation.ops)
        elif isinstance(operation, ops.DropColumnOp):
            yield (operation.schema, operation.table_name), operation.column_name


def _cleaned(
    operations: Iterable[ops.MigrateOperation], inventory: Inventory
) -> Iterator[ops.MigrateOperation]:
    """Yield the operations that are not about something that pgembed made."""
    for operation in operations:
        if isinstance(operation, ops.ModifyTableOps):
            operation.ops[:] = list(_cleaned(operation.ops, inventory))
            if operation.ops:
                yield operation
        elif not _is_ours(operation, inventory):
            _forget_columns(operation, inventory)
            yield operation


def _is_ours(operation: Any, inventory: Inventory) -> bool:
    schema = getattr(operation, "schema", None)
    table: Place = (schema, str(getattr(operation, "table_name", "")))
    if schema == "pgembed" or table in inventory.tables:
        return True
    if isinstance(operation, ops.DropColumnOp):
        return (table, operation.column_name) in inventory.columns
    if isinstance(operation, ops.DropIndexOp):
        return (schema, str(operation.index_name)) in inventory.indexes
    return False


def _forget_columns(operation: ops.MigrateOperation, inventory: Inventory) -> None:
    """Leave the vector columns out of a CREATE TABLE: create_embedding adds them."""
    if isinstance(operation, ops.DropTableOp):
        _strip(operation._reverse, inventory)
        operation.info = _plain(operation.info)
    elif isinstance(operation, ops.CreateTableOp):
        _strip(operation, inventory)


def _strip(operation: ops.CreateTableOp | None, inventory: Inventory) -> None:
    if operation is None:
        return
    place: Place = (operation.schema, operation.table_name)
    operation.info = _plain(operation.info)
    operation.columns = [
        column
        for column in operation.columns
        if INFO not in column.info and (place, _name(column)) not in inventory.columns
    ]


def _name(item: Any) -> str:
    return str(getattr(item, "name", ""))


def _plain(info: Any) -> dict[Any, Any]:
    return {key: value for key, value in (info or {}).items() if key != INFO}
