"""What a model's class says about an embedding, and what that means for a table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Table

from pgembed.errors import EmbeddingError

INFO = "pgembed"

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")

_DEFAULTS: Mapping[str, Any] = {
    "name": None,
    "target_column": None,
    "chunk_tokens": None,
    "chunk_overlap": 0,
    "storage": "vector",
    "index": "hnsw",
    "on_change": "keep",
}


@dataclasses.dataclass(frozen=True)
class EmbeddingSpec:
    """An embedding as the database keeps it: the arguments of create_embedding."""

    table: str
    schema: str | None
    content: str
    model: str
    name: str
    target_column: str | None
    """None: the vectors are in a table of chunks."""
    chunk_tokens: int | None = None
    chunk_overlap: int = 0
    storage: str = "vector"
    index: str = "hnsw"
    on_change: str = "keep"

    def options(self) -> dict[str, Any]:
        """Return the arguments that differ from create_embedding's defaults."""
        usual = {**_DEFAULTS, "name": default_name(self.table, self.content)}
        if self.chunk_tokens is None:
            usual["target_column"] = default_column(self.content)
        given = {name: getattr(self, name) for name in _DEFAULTS}
        return {name: value for name, value in given.items() if value != usual[name]}

    def content_columns(self) -> frozenset[str]:
        """Return the names of the columns that are embedded."""
        return frozenset(template_columns(self.content) or (self.content,))


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What Embedding(...) was given, before the table is known."""

    content: str
    model: str
    name: str | None = None
    chunk_tokens: int | None = None
    chunk_overlap: int = 0
    storage: str = "vector"
    index: str = "hnsw"
    on_change: str = "keep"
    dimensions: int | None = None

    def name_on(self, table: Table) -> str:
        """Return the name of the embedding that this is on *table*."""
        name = self.name or default_name("{table}", self.content)
        return name.replace("{table}", table.name)

    def spec(self, table: Table, target_column: str | None) -> EmbeddingSpec:
        """Return the embedding that this is on *table*.

        *target_column* names the vector column; None, for chunks.
        Raises EmbeddingError when the table lacks a column of the content.
        """
        require_columns(self.content, table)
        return EmbeddingSpec(
            table=table.name,
            schema=table.schema,
            content=self.content,
            model=self.model,
            name=self.name_on(table),
            target_column=target_column,
            chunk_tokens=self.chunk_tokens,
            chunk_overlap=self.chunk_overlap,
            storage=self.storage,
            index=self.index,
            on_change=self.on_change,
        )


def default_name(table: str, content: str) -> str:
    """Return the name that create_embedding gives an embedding."""
    return f"{table}_{_stem(content)}"


def default_column(content: str) -> str:
    """Return the name that create_embedding gives a vector column."""
    return f"{_stem(content)}_embedding"


def _stem(content: str) -> str:
    return "content" if "{" in content else content


def template_columns(content: str) -> list[str]:
    """Return the columns that a template such as '{title}: {body}' names."""
    return [
        match[1] for match in _TOKEN.finditer(content) if match[0] not in ("{{", "}}")
    ]


def require_columns(content: str, table: Table) -> None:
    """Raise EmbeddingError unless *table* has the columns of the content."""
    names = [column.name for column in table.columns]
    if content in names:
        return
    missing = [c for c in template_columns(content) or [content] if c not in names]
    if missing:
        raise EmbeddingError(
            f"the embedding of {content!r} needs column {', '.join(missing)}, which "
            f"table {table.fullname} does not have: its columns are "
            f"{', '.join(names)}; content is the name of a column in the database, "
            "or a template such as '{title}: {body}'"
        )


def declare(table: Table, declaration: Declaration, target: str | None) -> None:
    """Record on *table* that it has this embedding."""
    entries = table.info.setdefault(INFO, {})
    entries[target or ("chunks", declaration)] = (declaration, target)


def declarations(table: Table) -> Iterator[tuple[Declaration, EmbeddingSpec]]:
    """Yield the embeddings of a table, in the order of their declaration."""
    for declaration, target in table.info.get(INFO, {}).values():
        yield declaration, declaration.spec(table, target)


def specs(tables: Iterable[Table]) -> list[EmbeddingSpec]:
    """Return the embeddings that are declared on these tables."""
    return [spec for table in tables for _, spec in declarations(table)]
