"""The chunks of a row: a class and a table for each chunked embedding."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from sqlalchemy import Column, Integer, MetaData, Table, Text, and_, event
from sqlalchemy.orm import Mapper, Relationship, foreign, relationship, remote
from sqlalchemy.types import TypeEngine

from pgembed.errors import EmbeddingError
from pgembed.sqlalchemy import ddl
from pgembed.sqlalchemy.declaration import (
    INFO,
    Declaration,
    EmbeddingSpec,
    declare,
)


class Chunk:
    """A piece of a row's content, with its vector; pgembed writes it.

    The generated subclasses are mapped, and have the key columns of the source, too.
    """

    __table__: ClassVar[Any]
    chunk: int
    """The place of the piece in its row: 0, 1, …"""
    content: str
    embedding: Any

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.chunk}: {self.content[:40]!r}>"


class Chunks:
    """The chunks of an embedding; class and table follow once the source is mapped."""

    chunk_class: type[Chunk]
    chunk_table: Table
    source: Table

    def __init__(self, declaration: Declaration, vector: TypeEngine[Any]) -> None:
        self._declaration = declaration
        self._vector = vector

    @property
    def spec(self) -> EmbeddingSpec:
        """The embedding on its table."""
        return self._declaration.spec(self.source, None)

    def relationship(self, cls: type[Any], **arguments: Any) -> Relationship[Any]:
        """Return the read-only relationship from class *cls* to its chunks."""
        event.listen(cls, "after_mapper_constructed", self._follow)
        self._relationship: Relationship[Any] = relationship(
            lambda: self.chunk_class,
            primaryjoin=self._condition,
            order_by=lambda: self.chunk_table.c.chunk,
            viewonly=True,
            uselist=True,
            info={INFO: self},
            **arguments,
        )
        return self._relationship

    def _follow(self, mapper: Mapper[Any], cls: type[Any]) -> None:
        self._require_no_field(cls)
        assert isinstance(mapper.local_table, Table)  # noqa: S101 - it is declarative
        self.source = mapper.local_table
        declare(self.source, self._declaration, None)
        ddl.follow(self.source)
        self.chunk_table = chunk_table(self.source, self.spec.name, self._vector)
        self.chunk_class = _chunk_class(mapper, self.spec.name, self.chunk_table)

    def _require_no_field(self, cls: type[Any]) -> None:
        key = getattr(self._relationship, "key", None)
        if dataclasses.is_dataclass(cls) and key in {
            field.name for field in dataclasses.fields(cls)
        }:
            raise EmbeddingError(
                f"{cls.__name__}.{key} is annotated, which makes it a field of the "
                "dataclass, and chunks are never given: leave the annotation away "
                "(type checkers know the type of Embedding(…, chunk_tokens=…))"
            )

    def _condition(self) -> Any:
        return and_(
            *(
                column == remote(foreign(self.chunk_table.c[column.name]))
                for column in self.source.primary_key
            )
        )


def chunk_table(source: Table, name: str, vector: TypeEngine[Any]) -> Table:
    """Return the table that create_embedding makes for the chunks of *source*.

    It has a MetaData of its own, so that neither create_all nor Alembic makes it.
    """
    keys = [
        Column(column.name, column.type, primary_key=True)
        for column in source.primary_key
    ]
    return Table(
        f"{name}_chunk",
        MetaData(),
        *keys,
        Column("chunk", Integer, primary_key=True, autoincrement=False),
        Column("content", Text, nullable=False),
        Column("embedding", vector, nullable=False),
        schema=source.schema,
    )


def _chunk_class(parent: Mapper[Any], name: str, table: Table) -> type[Chunk]:
    words = "".join(word.capitalize() for word in f"{name}_chunk".split("_"))
    # Where pickle finds it.
    place = {
        "__module__": parent.class_.__module__,
        "__qualname__": f"{parent.class_.__qualname__}.{words}",
    }
    made = type(words, (Chunk,), place)
    type.__setattr__(parent.class_, words, made)
    parent.registry.map_imperatively(made, table)
    return made
