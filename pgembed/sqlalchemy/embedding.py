"""``Embedding``: a vector column, or a list of chunks, that pgembed keeps true."""

from __future__ import annotations

from typing import Any, overload

from pgvector.sqlalchemy import BIT, HALFVEC, VECTOR
from sqlalchemy import Column, Table, event
from sqlalchemy.orm import Mapped, MappedColumn, declared_attr, mapped_column
from sqlalchemy.types import TypeEngine

from pgembed.errors import EmbeddingError
from pgembed.sqlalchemy import ddl
from pgembed.sqlalchemy.chunks import Chunk, Chunks
from pgembed.sqlalchemy.declaration import INFO, Declaration, declare

_STORAGES = ("vector", "halfvec", "bit")


@overload
def Embedding(
    content: str,
    *,
    model: str,
    name: str | None = None,
    target_column: str | None = None,
    chunk_tokens: None = None,
    storage: str = "vector",
    index: str = "hnsw",
    on_change: str = "keep",
    dimensions: int | None = None,
    deferred: bool = True,
    **attribute: Any,
) -> MappedColumn[Any]: ...


@overload
def Embedding(
    content: str,
    *,
    model: str,
    name: str | None = None,
    chunk_tokens: int,
    chunk_overlap: int = 0,
    storage: str = "vector",
    index: str = "hnsw",
    on_change: str = "keep",
    dimensions: int | None = None,
    **attribute: Any,
) -> Mapped[list[Chunk]]: ...


def Embedding(  # noqa: N802
    content: str,
    *,
    model: str,
    name: str | None = None,
    target_column: str | None = None,
    chunk_tokens: int | None = None,
    chunk_overlap: int = 0,
    storage: str = "vector",
    index: str = "hnsw",
    on_change: str = "keep",
    dimensions: int | None = None,
    deferred: bool = True,
    **attribute: Any,
) -> Any:
    """Declare that a vector column is *model* of *content*, on a declarative class.

    *content* is a column of the table, or a template such as ``'{title}: {body}'``.
    The attribute is the vector column, named after the attribute unless
    *target_column* says otherwise; pgvector's comparators work on it. It is loaded
    only when it is read (*deferred*), and written by pgembed's workers.

    With *chunk_tokens* the attribute is the list of a row's chunks instead: instances
    of a generated subclass of Chunk, read-only, in order.

    *name*, *chunk_overlap*, *storage*, *index* and *on_change* are those of
    pgembed.create_embedding; ``{table}`` in a name is the table's, for mixins.
    *dimensions*, when given, must be the model's.
    Other arguments go to mapped_column() or relationship(): ``init=False``, say. On
    dataclass-mapped classes leave the annotation of an attribute with chunks away.
    An index of your own on the vector column goes when its model or storage changes:
    the next autogenerate makes it anew.

    Raises EmbeddingError for options that contradict each other.
    """
    if storage not in _STORAGES:
        raise EmbeddingError(
            f"storage is {storage!r}: choose one of {', '.join(_STORAGES)}"
        )
    declaration = Declaration(
        content, model, name, chunk_tokens, chunk_overlap, storage, index, on_change,
        dimensions,
    )  # fmt: skip
    if chunk_tokens is None:
        if chunk_overlap:
            raise EmbeddingError("chunk_overlap without chunk_tokens: set both")
        if "comment" in attribute:
            raise EmbeddingError(
                "comment: the column is not there yet when create_all() would comment "
                "on it; use COMMENT ON COLUMN in a migration after it"
            )
        return _vector_column(declaration, target_column, deferred, attribute)
    if target_column is not None:
        raise EmbeddingError(
            f"target_column {target_column!r} with chunk_tokens: "
            "chunks have a table of their own, leave target_column out"
        )
    return declared_attr(
        lambda cls: Chunks(declaration, vector_type(declaration)).relationship(
            cls, **attribute
        )
    )


def vector_type(declaration: Declaration) -> TypeEngine[Any]:
    """Return pgvector's type for the vectors."""
    if declaration.storage == "bit":
        return BIT(declaration.dimensions)
    kind = HALFVEC if declaration.storage == "halfvec" else VECTOR
    return kind(declaration.dimensions)


def _vector_column(
    declaration: Declaration,
    target_column: str | None,
    deferred: bool,
    attribute: dict[str, Any],
) -> MappedColumn[Any]:
    # system: create_embedding adds the column, CREATE TABLE leaves it out.
    mapped: MappedColumn[Any] = mapped_column(
        target_column,
        vector_type(declaration),
        nullable=True,
        system=True,
        deferred=deferred,
        info={INFO: declaration},
        **attribute,
    )
    event.listen(mapped.column, "after_parent_attach", _attach, propagate=True)
    return mapped


def _attach(column: Column[Any], table: Table) -> None:
    declare(table, column.info[INFO], column.name)
    ddl.follow(table)
