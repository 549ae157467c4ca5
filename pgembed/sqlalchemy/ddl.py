"""DDL: create_all() declares the embeddings of a table, drop_all() drops them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    Connection,
    Index,
    MetaData,
    String,
    Table,
    event,
    func,
    select,
    table,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from pgembed.errors import EmbeddingError, PgembedError
from pgembed.sqlalchemy.declaration import (
    INFO,
    Declaration,
    EmbeddingSpec,
    declarations,
)

_NAME = re.compile(r'"((?:[^"]|"")+)"|(\w+)')
_UNDEFINED = ("3F000", "42883", "42P01")


class CreateEmbedding(ExecutableDDLElement):
    """``SELECT pgembed.create_embedding(…)``."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.spec = spec


class DropEmbedding(ExecutableDDLElement):
    """``SELECT pgembed.drop_embedding(…)``; with drop_vectors the column goes, too."""

    def __init__(self, name: str, *, drop_vectors: bool = True) -> None:
        self.name = name
        self.drop_vectors = drop_vectors


@compiles(CreateEmbedding)
def _create_embedding(element: CreateEmbedding, compiler: DDLCompiler, **_: Any) -> str:
    spec = element.spec
    # A Table, unlike a table(), is where schema_translate_map says.
    source = compiler.preparer.format_table(
        Table(spec.table, MetaData(), schema=spec.schema)
    )
    source = _undoubled(compiler.preparer, source)
    arguments = [
        f"{literal(compiler, source)}::pg_catalog.regclass",
        literal(compiler, spec.content),
        literal(compiler, spec.model),
        *(
            f"{name} => {literal(compiler, value)}"
            for name, value in spec.options().items()
        ),
    ]
    return f"SELECT pgembed.create_embedding({', '.join(arguments)})"


@compiles(DropEmbedding)
def _drop_embedding(element: DropEmbedding, compiler: DDLCompiler, **_: Any) -> str:
    flag = ", drop_vectors => true" if element.drop_vectors else ""
    return f"SELECT pgembed.drop_embedding({literal(compiler, element.name)}{flag})"


def literal(compiler: DDLCompiler, value: str | int) -> str:
    """Return a number or a string as SQL, quoted for the driver as well."""
    if isinstance(value, int):
        return str(value)
    return str(compiler.sql_compiler.render_literal_value(value, String()))


def follow(source: Table) -> None:
    """Create and drop the embeddings of *source* together with the table."""
    event.listen(source, "before_create", _before_create)
    event.listen(source, "after_create", _after_create)
    event.listen(source, "before_drop", _before_drop)


def _before_create(source: Table, connection: Any, **_: Any) -> None:
    for index in _on_vectors(source):
        if index._ddl_if is None:
            index.ddl_if(callable_=_is_due)


def _is_due(
    ddl: Any, target: Any, bind: Any, tables: Any = None, state: Any = None, **_: Any
) -> bool:
    """Whether an index on vectors can be created: create_embedding adds the column."""
    if not isinstance(bind, Connection):
        return False
    there = text(
        "SELECT count(*) FROM pg_catalog.pg_attribute WHERE "
        "attrelid = CAST(pg_catalog.to_regclass(:place) AS oid) "
        "AND attname = ANY (:columns)"
    )
    columns = list(named(target) & _vectors(target.table))
    values = {"place": _place(bind, target.table), "columns": columns}
    return bool(bind.scalar(there, values) == len(columns))


def _on_vectors(source: Table) -> list[Index]:
    return [index for index in source.indexes if named(index) & _vectors(source)]


def _vectors(source: Table) -> set[str]:
    return {column.name for column in source.columns if INFO in column.info}


def named(index: Index) -> set[str]:
    """Return all names in the definition of an index: in INCLUDE and WHERE, too."""
    dialect: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
    definition = str(CreateIndex(index).compile(dialect=dialect)).replace("%%", "%")
    found = _NAME.findall(definition)
    return {plain or quoted.replace('""', '"') for quoted, plain in found}


def _after_create(source: Table, connection: Any, **_: Any) -> None:
    for declaration, spec in declarations(source):
        with explained():
            if isinstance(connection, Connection):
                require_dimensions(connection, declaration, spec)
            connection.execute(CreateEmbedding(spec))
    for index in _on_vectors(source):
        connection.execute(CreateIndex(index))


def require_dimensions(
    connection: Connection, declaration: Declaration, spec: EmbeddingSpec
) -> None:
    """Raise EmbeddingError when the registered model has other dimensions."""
    if declaration.dimensions is None:
        return
    model = table("model", schema="pgembed")
    query = select(text("dimensions")).select_from(model)
    found = connection.scalar(query.where(text("name = :name")), {"name": spec.model})
    if found is not None and found != declaration.dimensions:
        raise EmbeddingError(
            f"the embedding {spec.name!r} says dimensions={declaration.dimensions}, "
            f"but model {spec.model!r} has {found}: name another model, or leave "
            "dimensions out"
        )


def _before_drop(source: Table, connection: Any, **_: Any) -> None:
    for _declaration, spec in declarations(source):
        if not isinstance(connection, Connection) or _exists(connection, source, spec):
            with explained():
                connection.execute(DropEmbedding(spec.name))


def _exists(connection: Connection, source: Table, spec: EmbeddingSpec) -> bool:
    """Whether the embedding is there, and of the table that is to be dropped."""
    registry = func.pg_catalog.to_regclass("pgembed.embedding")
    if connection.scalar(select(registry.is_(None))):
        return False
    query = text(
        "SELECT EXISTS (SELECT FROM pgembed.embedding "
        "WHERE name = :name "
        "AND CAST(source AS oid) = CAST(pg_catalog.to_regclass(:place) AS oid))"
    )
    values = {"name": spec.name, "place": _place(connection, source)}
    return bool(connection.scalar(query, values))


def _place(connection: Connection, source: Table) -> str:
    """Return the name of a table, in the schema that it has there."""
    schema = connection.schema_for_object(source)
    preparer = connection.dialect.identifier_preparer
    place = preparer.format_table(Table(source.name, MetaData(), schema=schema))
    return _undoubled(preparer, place)


def _undoubled(preparer: Any, name: str) -> str:
    """Return a name that becomes a value, without the drivers' double percent signs."""
    return name.replace("%%", "%") if preparer._double_percents else name


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise EmbeddingError, with PostgreSQL's hint, for what pgembed refuses."""
    try:
        yield
    except DBAPIError as error:
        raise explain(error) from error


def explain(error: DBAPIError) -> PgembedError:
    """Return the error of the database as one that says what to do."""
    diagnosis = getattr(error.orig, "diag", None)
    message = getattr(diagnosis, "message_primary", None) or str(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    if state in _UNDEFINED and "pgembed" in message:
        return EmbeddingError(
            f"pgembed is not installed in this database ({message}): run "
            "'pgembed install', or op.install_pgembed() in a migration before this one"
        )
    hint = getattr(diagnosis, "message_hint", None)
    return EmbeddingError(f"{message}: {hint}" if hint else message)
