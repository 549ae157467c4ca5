"""``search`` and ``hybrid_search``: the nearest rows, as a SELECT to go on with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pgvector.sqlalchemy import BIT, HALFVEC, VECTOR
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Float,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    and_,
    cast,
    inspect,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import BIT as PLAIN_BIT
from sqlalchemy.dialects.postgresql import JSONB, REGCONFIG
from sqlalchemy.orm import ColumnProperty, QueryableAttribute
from sqlalchemy.sql.selectable import Alias
from sqlalchemy.types import NullType, UserDefinedType

from pgembed.errors import EmbeddingError, VectorError
from pgembed.sqlalchemy.call import SearchCall, Signature
from pgembed.sqlalchemy.chunks import Chunks
from pgembed.sqlalchemy.declaration import INFO, Declaration
from pgembed.sqlalchemy.json_filter import checked
from pgembed.sqlalchemy.made import Made
from pgembed.sqlalchemy.vectors import VectorText, as_vector, query_vector

Query = str | Sequence[float] | Any
"""A text; or a vector, as a list, an array or an SQL expression."""


# As the driver returns a value of type bit; too long for what somebody looks for.
_BITS = re.compile("[01]{64,}")


class Embedder(Protocol):
    """A model in this process, such as pgembed.models.session.Model."""

    def embed(self, texts: Sequence[str], side: str = ...) -> Any:
        """Return an array (n, d) of the vectors of these texts."""


# One of each type for all statements: it remembers its part of their cache keys.
_TEXT, _INTEGER, _FLOAT = Text(), Integer(), Float()
_JSON, _LANGUAGE, _VECTOR = JSONB(), REGCONFIG(), VectorText()

MODE, RECALL = "auto", 0.99
"""The defaults of pgembed.search, which a statement leaves out."""


def search(
    embedding: Any,
    query: Query,
    *,
    k: int = 10,
    filter: Any = None,  # noqa: A002 - the name it has in SQL
    mode: str = MODE,
    recall: float = RECALL,
    embedder: Embedder | Callable[[str], Any] | None = None,
    name: str | None = None,
) -> Select[Any, float]:
    """Return a SELECT of the *k* rows nearest to *query*: (entity, distance).

    *embedding* is an attribute that Embedding() made (or its column in a Core table);
    or any vector column, whose embedding is then called *name*, or is the only one of
    its table. *query* is a text, which a worker embeds, or *embedder* in this process,
    or a vector.

    Go on with where(), join(), options(), limit() as with any SELECT. All criteria
    take part in the search: the rows are the k nearest of those that pass, whatever
    the criteria are. The nearest comes first; ``selected_columns.distance`` is the
    distance. *filter* is pgembed's JSON filter, safe to take from a user.
    *mode* and *recall* are those of pgembed.search.

    Raises EmbeddingError when *embedding* is not one; FilterError for a *filter* with
    values that JSON has not (pass dates and decimals as text) and, when the statement
    is compiled, for criteria that cannot take part.
    """
    target = _target(embedding, name)
    vector = _vector(query, embedder)
    arguments = {
        "query": literal(query, _TEXT) if vector is None else vector,
        **_common(k, filter, mode, recall),
    }
    return target.statement("search", "distance", arguments, descending=False)


def hybrid_search(
    embedding: Any,
    query: str,
    *,
    k: int = 10,
    filter: Any = None,  # noqa: A002
    mode: str = MODE,
    recall: float = RECALL,
    embedder: Embedder | Callable[[str], Any] | None = None,
    name: str | None = None,
    words: str | None = None,
    language: str | None = None,
    fusion: str = "rrf",
    word_weight: float = 1.0,
    vector_weight: float = 1.0,
    lexical: str = "fulltext",
) -> Select[Any, float]:
    """Return a SELECT of the *k* best rows by words and vectors: (entity, score).

    The best comes first. *words*, *language*, *fusion*, the weights and *lexical*
    (fulltext, trigram with pg_trgm, or bm25 with pg_textsearch) are those of
    pgembed.hybrid_search; everything else is as in search().
    """
    target = _target(embedding, name)
    vector = _vector(query, embedder)
    arguments = {
        "query": literal(query, _TEXT),
        **_common(k, filter, mode, recall),
        "fusion": literal(fusion, _TEXT),
        "word_weight": literal(word_weight, _FLOAT),
        "vector_weight": literal(vector_weight, _FLOAT),
        "lexical": literal(lexical, _TEXT),
    }
    if vector is not None:
        arguments["query_vector"] = vector
    if words is not None:
        arguments["words"] = literal(words, _TEXT)
    if language is not None:
        arguments["language"] = literal(language, _LANGUAGE)
    return target.statement("hybrid_search", "score", arguments, descending=True)


def _common(
    k: int, filter_: Any, mode: str, recall: float
) -> dict[str, ColumnElement[Any]]:
    arguments: dict[str, ColumnElement[Any]] = {"k": literal(k, _INTEGER)}
    if mode != MODE:
        arguments["mode"] = literal(mode, _TEXT)
    if recall != RECALL:
        arguments["recall"] = literal(recall, _FLOAT)
    if filter_ is not None:
        arguments["filter"] = literal(checked(filter_), _JSON)
    return arguments


def _vector(
    query: Query, embedder: Embedder | Callable[[str], Any] | None
) -> ColumnElement[Any] | None:
    """Return the query as a vector; None for a text that the database embeds."""
    if hasattr(query, "__clause_element__"):
        query = query.__clause_element__()
    if isinstance(query, BindParameter) and isinstance(query.type, VECTOR | HALFVEC):
        if query.required or query.callable is not None:
            return as_vector(query)
        query = query.effective_value
    elif isinstance(query, ColumnElement):
        return _expression(query)
    if isinstance(query, str):
        if _BITS.fullmatch(query):
            raise _bits(f"{query[:20]}…")
        if embedder is None:
            return None
        query = embedded(embedder, [query])[0]
    return literal(query_vector(query), _VECTOR)


def _expression(query: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return an expression as one of a type that a search takes."""
    if isinstance(query.type, BIT | PLAIN_BIT):
        raise _bits(f"{query!s:.60}")
    if isinstance(query.type, HALFVEC):
        return cast(query, VECTOR())
    return query


def _bits(query: str) -> VectorError:
    return VectorError(
        f"the query {query} is of type bit, and a search compares vectors: pass the "
        "value itself as pgvector.Bit(…), or the vector that it was made of"
    )


def embedded(
    embedder: Embedder | Callable[[str], Any], texts: Sequence[str]
) -> Sequence[Any]:
    """Return the vectors of query texts, made in this process."""
    embed = getattr(embedder, "embed", None)
    if embed is None:
        return [embedder(text) for text in texts]  # type: ignore[operator]
    made: Sequence[Any] = embed(texts, side="query")
    return made


@dataclasses.dataclass(frozen=True)
class _Target:
    """What is searched: whose rows, and by which embedding."""

    entity: Any
    source: Table
    keys: Sequence[ColumnElement[Any]]
    """The columns of the source's key, as the statement names them."""
    name: str | None

    def statement(
        self,
        function: str,
        result: str,
        arguments: dict[str, ColumnElement[Any]],
        *,
        descending: bool,
    ) -> Select[Any, float]:
        if self.name is not None:
            arguments["embedding"] = literal(self.name, _TEXT)
        signature = Signature(function, result, self.source, tuple(arguments))
        rows = SearchCall(signature, list(arguments.values())).rows(self.entity)
        pairs = zip(self.keys, signature.keys, strict=True)
        matches = [key == rows.c[name] for key, name in pairs]
        match = matches[0] if len(matches) == 1 else and_(*matches)
        number = rows.c[result]
        statement = (
            select(self.entity, number)
            .join_from(self.entity, rows, match)
            .order_by(number.desc() if descending else number, *self.keys)
        )
        # Criteria may name two aliases of a table, which only all of it tells apart.
        if all(isinstance(key.table, Table) for key in self.keys):
            types = [type(each.type) for each in arguments.values()]
            kind = self.entity, signature, *types
            Made.note(statement, kind, arguments.values())
        return statement


def _target(embedding: Any, name: str | None) -> _Target:
    if isinstance(embedding, QueryableAttribute):
        return _attribute_target(embedding, name)
    if getattr(embedding, "table", None) is not None:
        return _column_target(embedding, name)
    raise _no_embedding(embedding)


def _no_embedding(given: Any) -> EmbeddingError:
    return EmbeddingError(
        f"{given!r} is not an embedding: search(Model.body_embedding, …) takes "
        "an attribute made by Embedding(), or a vector column"
    )


def _attribute_target(attribute: QueryableAttribute[Any], name: str | None) -> _Target:
    mapped = getattr(attribute, "property", None)  # hybrid properties have none
    found = getattr(mapped, "info", {}).get(INFO)
    if isinstance(found, Chunks):
        source: Table = found.source
        known: str | None = name or found.spec.name
    elif isinstance(mapped, ColumnProperty):
        base: Any = mapped.columns[0]
        if getattr(base, "table", None) is None:
            raise _no_embedding(attribute)
        source, known = base.table, name or _column_name(base)
    else:
        raise _no_embedding(attribute)
    parent = inspect(attribute.parent)
    keys = _keys(parent.selectable, source)
    return _Target(parent.entity, source, keys, known)


def _column_target(column: ColumnElement[Any], name: str | None) -> _Target:
    place: FromClause = column.table
    base = next(iter(column.base_columns))
    source: Table = base.table
    return _Target(place, source, _keys(place, source), name or _column_name(base))


def _column_name(column: Any) -> str | None:
    declaration = column.info.get(INFO)
    if not isinstance(declaration, Declaration):
        _require_vectors(column)
        return None
    return declaration.name_on(column.table)


def _require_vectors(column: Any) -> None:
    """Raise EmbeddingError for a column that holds text or numbers, say."""
    type_ = getattr(column.type, "impl_instance", column.type)
    if not isinstance(type_, UserDefinedType | NullType):
        raise EmbeddingError(
            f"{column} is {type_!r}, and no vector column: search by the attribute "
            "that Embedding() made of it, such as Model.body_embedding"
        )


def _keys(selectable: FromClause, source: Table) -> Sequence[ColumnElement[Any]]:
    found = [selectable.corresponding_column(key) for key in source.primary_key]
    keys = [key for key in found if key is not None]
    places = {type(getattr(key, "table", None)) for key in keys}
    if len(keys) != len(found) or not keys or not places <= {Table, Alias}:
        raise EmbeddingError(
            f"a search needs the table {source.fullname} with its primary key, or an "
            f"alias of it, and finds {selectable.description!r}: "
            "alias an inherited class with aliased(…, flat=True)"
        )
    return keys
