"""``pgembed.search(…)`` as a FROM clause that knows the statement around it.

A search must know the whole WHERE clause before it looks for the k nearest rows. So the
call is compiled last, when the statement's criteria are all there: those written with
where(), those that joins and inheritance bring, and those of with_loader_criteria().
They become the predicate of the call, their parameters stay parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    Select,
    Table,
    TableValuedAlias,
    Text,
    column,
    inspect,
    literal,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal

from pgembed.sqlalchemy.predicate import predicate

# One for all statements: it remembers its part of their cache keys.
_FLOAT = Float()


@dataclasses.dataclass(frozen=True)
class Signature:
    """What of a call does not change between executions."""

    function: str
    """search or hybrid_search."""
    result: str
    """Its column of numbers: distance or score."""
    source: Table
    arguments: tuple[str, ...]
    """The names of the arguments, in their order."""

    @property
    def keys(self) -> dict[str, str]:
        """Names of the result's key columns, and of the source's."""
        names = [column.name for column in self.source.primary_key]
        return {f"key_{i}": name for i, name in enumerate(names, 1)}


class _Rows(TableValuedAlias):
    """What a search is joined as."""

    inherit_cache = True
    entity: Any
    """What is searched: an entity, or a table."""

    def __str__(self) -> str:
        # Errors of SQLAlchemy name it, and alone it cannot be compiled.
        call: Any = self.element
        return f"{call.signature.function}()"

    @property
    def entity_namespace(self) -> Any:
        """Return what has the names that filter_by() is given."""
        # SQLAlchemy 2.0 looks into the last join alone, which is not the entity's.
        if hasattr(Select, "_filter_by_zero"):
            return inspect(self.entity).entity_namespace
        return super().entity_namespace


class SearchCall(FunctionElement[Any]):
    """A call of a search function; its rows are keys of the source and distances."""

    name = "search"
    inherit_cache = True
    # The signature says what columns the rows have.
    _traverse_internals = [  # noqa: RUF012 - as SQLAlchemy declares it
        ("signature", InternalTraversal.dp_plain_obj),
        ("clause_expr", InternalTraversal.dp_clauseelement),
    ]

    def __init__(
        self, signature: Signature, arguments: list[ColumnElement[Any]]
    ) -> None:
        self.signature = signature
        super().__init__(*arguments)

    def rows(self, entity: Any) -> _Rows:
        """Return the call as something to join to *entity*, which it searches."""
        types = [each.type for each in self.signature.source.primary_key]
        keys = zip(self.signature.keys, types, strict=True)
        made: Any = self.table_valued(
            *(column(name, type_) for name, type_ in keys),
            column(self.signature.result, _FLOAT),
        )
        made.entity = entity
        rows: _Rows = made
        return rows

    def alias(self, name: str | None = None, joins_implicitly: bool = False) -> _Rows:
        """Return the call as table_valued() names it."""
        made: _Rows = _Rows._construct(
            self,
            name=name,
            table_value_type=self.type,
            joins_implicitly=joins_implicitly,
        )
        return made


class SearchedBy(ColumnElement[str]):
    """The predicate of the search in a statement, instead of what it finds; or NULL."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012 - as SQLAlchemy declares it
        ("statement", InternalTraversal.dp_clauseelement)
    ]
    type = Text()

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(SearchedBy)
def _searched_by(element: SearchedBy, compiler: SQLCompiler, **_: Any) -> str:
    found: list[str | None] = []
    compiler.process(element.statement, asfrom=True, predicates=found)
    return f"CAST({found[0] or 'NULL'} AS TEXT)"


class SearchedEmbedding(ColumnElement[str]):
    """The name of the embedding that a search is in: the only one, if it says none."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012 - as SQLAlchemy declares it
        ("source", InternalTraversal.dp_clauseelement),
        ("embedding", InternalTraversal.dp_clauseelement),
    ]
    type = Text()

    def __init__(self, source: Table, embedding: str | None) -> None:
        self.source = source
        self.embedding = literal(embedding, Text)


@compiles(SearchedEmbedding)
def _searched_embedding(
    element: SearchedEmbedding, compiler: SQLCompiler, **_: Any
) -> str:
    return (
        "(pgembed._search_embedding(pg_catalog.pg_typeof("
        f"NULL::{compiler.preparer.format_table(element.source)}), "
        f"{compiler.process(element.embedding)})).name"
    )


@compiles(SearchCall)
def _search_call(element: SearchCall, compiler: SQLCompiler, **options: Any) -> str:
    signature = element.signature
    literal = {k: v for k, v in options.items() if k == "literal_binds"}
    values = [compiler.process(clause, **literal) for clause in element.clauses]
    arguments = [
        f"NULL::{compiler.preparer.format_table(signature.source)}",
        *map("{} => {}".format, signature.arguments, values),
    ]
    found = predicate(signature.source, compiler, literal)
    if "predicates" in options:
        options["predicates"].append(found)
    if found is not None:
        arguments.append(f"predicate => {found}")
    quote = compiler.preparer.quote
    keys = [f"(r.item).{quote(key)} AS {name}" for name, key in signature.keys.items()]
    return (
        f"(SELECT {', '.join(keys)}, r.{signature.result} "  # noqa: S608
        f"FROM pgembed.{signature.function}({', '.join(arguments)}) AS r)"
    )
