"""HNSW and IVFFlat indexes: operator class, WITH and WHERE survive Alembic.

Alembic compares names and columns of indexes. A vector index that differs in more is
another index: it is dropped and created again, and back in the downgrade.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from sqlalchemy import Connection, Index, Table, text
from sqlalchemy.dialects import postgresql

METHODS = ("hnsw", "ivfflat")

_INDEXES = text(
    """
    SELECT s.nspname AS schema, t.relname AS table, c.relname AS name,
        m.amname AS method, o.opcname AS opclass, o.opcdefault AS is_default,
        a.attname AS column, c.reloptions AS options,
        pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
    JOIN pg_catalog.pg_namespace AS s ON s.oid = t.relnamespace
    JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
    JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
    LEFT JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
    """
)

_TOKEN = re.compile(r"'(?:[^']|'')*'|[\w.]+|[<>=!~@#&|*/+%^-]+")
_CAST = re.compile(
    r"::\s*(?:character varying|double precision|[\w.]+)(?:\(\d+\))?\s*(?:\[\])?"
)
_NUMBER = re.compile(r"'(-\d+(?:\.\d+)?)'")
"""PostgreSQL writes -5 as '-5'::integer."""
_WORDS = {"in", "any", "array", "between", "and", "like", "not", "all", "or"}


@dataclasses.dataclass(frozen=True)
class _Traits:
    method: str
    opclass: str | None
    """None: the default of the method."""
    options: frozenset[str]
    predicate: str | None


def compare(
    context: AutogenContext, tables: Iterable[Table], upgrade: ops.UpgradeOps
) -> None:
    """Replace the vector indexes whose traits differ from their models'."""
    connection = context.connection
    assert connection is not None  # noqa: S101 - the caller has looked
    default = connection.dialect.default_schema_name
    present = {
        (None if row.schema == default else row.schema, row.table, row.name): row
        for row in connection.execute(_INDEXES)
    }
    touched = _complete(upgrade.ops, present)
    for table in tables:
        schema = None if table.schema == default else table.schema
        changed = [
            (index, row)
            for index in sorted(table.indexes, key=lambda index: str(index.name))
            if (row := present.get((schema, table.name, str(index.name)))) is not None
            and index.name not in touched
            and _differ(_declared(index, row), _reflected(row))
        ]
        replaced = list(_replacements(context, connection, changed))
        if replaced:
            upgrade.ops.append(ops.ModifyTableOps(table.name, replaced, schema=schema))


def _complete(operations: Iterable[Any], present: dict[Any, Any]) -> set[str]:
    """Give the downgrade of DROP INDEX the operator class; return the names seen."""
    names: set[str] = set()
    for operation in operations:
        if isinstance(operation, ops.ModifyTableOps):
            names |= _complete(operation.ops, present)
        elif isinstance(operation, ops.CreateIndexOp | ops.DropIndexOp):
            names.add(str(operation.index_name))
        if isinstance(operation, ops.DropIndexOp):
            key = (operation.schema, operation.table_name, str(operation.index_name))
            if key in present:
                operation.kw.update(_keywords(present[key]))
    return names


def _replacements(
    context: AutogenContext, connection: Connection, indexes: list[tuple[Index, Any]]
) -> Iterable[Any]:
    for index, row in indexes:
        table = index.table
        assert table is not None  # noqa: S101 - it is among the table's indexes
        reflected = Table(
            table.name,
            type(table.metadata)(),
            schema=table.schema,
            autoload_with=connection,
            resolve_fks=False,
        )
        (old,) = (each for each in reflected.indexes if each.name == index.name)
        if not context.run_object_filters(index, old.name, "index", False, old):
            continue
        drop = ops.DropIndexOp.from_index(old)
        drop.kw.update(_keywords(row))
        yield drop
        yield ops.CreateIndexOp.from_index(index)


def _keywords(row: Any) -> dict[str, Any]:
    """Return the arguments of op.create_index that make the index what it is."""
    found: dict[str, Any] = {"postgresql_using": row.method}
    if row.options:
        found["postgresql_with"] = dict(each.split("=", 1) for each in row.options)
    if row.column is not None and not row.is_default:
        found["postgresql_ops"] = {row.column: row.opclass}
    if row.predicate is not None:
        found["postgresql_where"] = row.predicate
    return found


def _reflected(row: Any) -> _Traits:
    return _Traits(
        row.method,
        None if row.is_default else row.opclass,
        frozenset(each.lower() for each in row.options or ()),
        row.predicate,
    )


def _declared(index: Index, row: Any) -> _Traits | None:
    options = index.dialect_options["postgresql"]
    method = (options.get("using") or "btree").lower()
    if method not in METHODS:
        return None
    where = options.get("where")
    classes = list((options.get("ops") or {}).values())
    opclass = str(classes[0]).rpartition(".")[2] if classes else None
    return _Traits(
        method,
        None if row.is_default and opclass == row.opclass else opclass,
        frozenset(f"{k}={v}".lower() for k, v in (options.get("with") or {}).items()),
        None if where is None else _sql(where),
    )


def _sql(where: Any) -> str:
    if isinstance(where, str):
        return where
    dialect: Any = postgresql.dialect
    compiled = where.compile(
        dialect=dialect(),
        compile_kwargs={"literal_binds": True, "include_table": False},
    )
    return str(compiled).replace("%%", "%")


def _differ(declared: _Traits | None, reflected: _Traits) -> bool:
    if declared is None:
        return True
    same = dataclasses.replace(reflected, predicate=declared.predicate)
    if declared != same:
        return True
    return not _same_predicate(declared.predicate, reflected.predicate)


def _same_predicate(declared: str | None, reflected: str | None) -> bool:
    """Whether two predicates agree, one of them as PostgreSQL writes it back."""
    if declared is None or reflected is None:
        return declared is reflected
    first, second = (_tokens(each) for each in (declared, reflected))
    if any(token in _WORDS for token in (*first, *second)):
        # IN becomes = ANY, BETWEEN becomes >= and <=: names and values remain.
        first, second = _names(first), _names(second)
    return first == second


def _tokens(predicate: str) -> Counter[str]:
    plain = _CAST.sub("", predicate).replace('"', "").replace("!=", "<>")
    plain = _NUMBER.sub(r"\1", plain)
    return Counter(
        token if token.startswith("'") else token.lower().rpartition(".")[2] or token
        for token in _TOKEN.findall(plain)
    )


def _names(tokens: Counter[str]) -> Counter[str]:
    return Counter(
        token for token in tokens if token not in _WORDS and not _is_operator(token)
    )


def _is_operator(token: str) -> bool:
    return not (token[0] == "'" or token[0].isalnum() or token[0] == "_")
