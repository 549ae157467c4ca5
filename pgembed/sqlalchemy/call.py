"""``pgembed.search(…)`` as a FROM clause that knows the statement around it.

A search must know the whole WHERE clause before it looks for the k nearest rows. So the
call is compiled last, when the statement's criteria are all there: those written with
where(), those that joins and inheritance bring, and those of with_loader_criteria().
They become the predicate of the call, their parameters stay parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import ColumnElement, Float, Table, TableValuedAlias, column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal

from pgembed.sqlalchemy.predicate import predicate


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


class SearchCall(FunctionElement[Any]):
    """A call of a search function; its rows are keys of the source and distances."""

    name = "search"
    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012 - as SQLAlchemy declares it
        *FunctionElement._traverse_internals,
        ("signature", InternalTraversal.dp_plain_obj),
    ]

    def __init__(
        self, signature: Signature, arguments: list[ColumnElement[Any]]
    ) -> None:
        self.signature = signature
        super().__init__(*arguments)

    def rows(self) -> TableValuedAlias:
        """Return the call as something to select from."""
        types = [each.type for each in self.signature.source.primary_key]
        keys = zip(self.signature.keys, types, strict=True)
        return self.table_valued(
            *(column(name, type_) for name, type_ in keys),
            column(self.signature.result, Float),
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
    if found is not None:
        arguments.append(f"predicate => {found}")
    quote = compiler.preparer.quote
    keys = [f"(r.item).{quote(key)} AS {name}" for name, key in signature.keys.items()]
    return (
        f"(SELECT {', '.join(keys)}, r.{signature.result} "  # noqa: S608
        f"FROM pgembed.{signature.function}({', '.join(arguments)}) AS r)"
    )
