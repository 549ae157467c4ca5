"""Columns as a code for each row, which layouts keep.

Of a column of few values each has a code, and PostgreSQL is asked for each value what a
condition says of it, not for each row. Numbers of more values have a code for all of
those of which the workload's own terms say the same: one stands for the others, as far
as these terms go. Values are kept as PostgreSQL sends them, so that none is mistaken
for another.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgembed.batch import freshness
from pgembed.batch.lookups import NAME, Lookup
from pgembed.batch.packing import WORD, Packing, Unit
from pgembed.batch.predicates import read_listing
from pgembed.batch.rows import Images, RowIds, RowMap, Tables, fetch, look_up
from pgembed.batch.source import Source
from pgembed.batch.terms import Term
from pgembed.postgres.connection import Connection

Values = tuple[bytes, ...]

_MOST_VALUES = 1 << 14
_MOST_BYTES = 1 << 20
_NUMBERS = {21, 23, 20, 700, 701, 1700}
"""int2, int4, int8, float4, float8, numeric: settings do not change how they read."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: what its values are, and what they are compared by."""

    name: str
    """Quoted, as are the other names."""
    type: str
    oid: int
    """Of the type."""
    send: str
    """The function that makes bytes of its values."""
    collation: str | None
    encoding: str
    """In which texts were sent."""


@dataclasses.dataclass(frozen=True)
class Codes:
    """A column's values, and the code that each row of a layout has."""

    column: Column
    values: Values
    """What code 1 and those that follow stand for; 0 is NULL."""
    terms: tuple[Term, ...] | None
    """Those of which a code says whether they hold; None: all on the column."""
    rows: NDArray[np.uint16]
    """(n,)"""
    columns: list[list[int]]
    """What freshness.columns says of it in each table."""

    def decides(self, unit: Unit) -> bool:
        """Whether the codes say what a unit on the column is."""
        terms = unit.terms if isinstance(unit, Lookup) else (unit,)
        return self.terms is None or set(self.terms).issuperset(terms)

    def words(
        self, connection: Connection, source: Source, packing: Packing
    ) -> NDArray[np.uint64]:
        """Return (w, 1 + values): the words that rows with each code have."""
        words = packing.words()
        packed = " || ".join(f"pg_catalog.int8send({word})" for word in words)
        column = self.column
        collated = f" COLLATE {column.collation}" if column.collation else ""
        array = f"${len(packing.parameters) + 1}::{column.type}[]"
        place = "pgembed_place" + "_" * (column.name == "pgembed_place")
        # By the name of the table: then conditions mean these columns.
        ((data,),) = fetch(
            connection,
            f"SELECT pg_catalog.string_agg({packed}, ''::pg_catalog.bytea "  # noqa: S608
            f"ORDER BY {source.alias}.{place}) "
            f"FROM (SELECT u.value{collated} AS {column.name}, "
            f"u.place AS {place} FROM pg_catalog.unnest({array}) "
            "WITH ORDINALITY AS u (value, place)) "
            f"AS {source.alias}{packing.joins()}",
            [*packing.parameters, Images(column.oid, (None, *self.values))],
        )
        found = np.frombuffer(data, ">u8").astype(np.uint64)
        return np.ascontiguousarray(found.reshape(-1, len(words)).T)


def column_of(unit: Unit, source: Source) -> str | None:
    """Return the one column, quoted, that a unit depends on; None if there are more."""
    term = unit.terms[0] if isinstance(unit, Lookup) else unit
    if term.predicate is not None:
        return None
    alias = re.escape(source.alias)
    names = set(re.findall(rf'(?<![\w".]){alias}\.({NAME})', term.filter or ""))
    return names.pop() if len(names) == 1 else None


def describe(connection: Connection, source: Source) -> dict[str, Column]:
    """Return the columns that may be coded: of built-in types, NULL or not.

    A virtual column can have other values in rows that stay what they are.
    """
    rows = fetch(
        connection,
        """
        SELECT pg_catalog.quote_ident(a.attname),
            pg_catalog.format('pg_catalog.%I', t.typname), t.oid::pg_catalog.int8,
            pg_catalog.format('pg_catalog.%I', p.proname),
            CASE WHEN c.oid IS NOT NULL
                THEN pg_catalog.format('%I.%I', n.nspname, c.collname) END,
            pg_catalog.current_setting('client_encoding')
        FROM pg_catalog.pg_attribute AS a
        INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
        INNER JOIN pg_catalog.pg_proc AS p ON p.oid = t.typsend::oid
        LEFT JOIN pg_catalog.pg_collation AS c ON c.oid = a.attcollation
        LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.collnamespace
        WHERE a.attrelid = $1::pg_catalog.text::pg_catalog.regclass::oid
            AND a.attgenerated IN ('', 's')
            AND coalesce(c.collisdeterministic, true)
            AND t.oid IN (
                'pg_catalog.bool'::pg_catalog.regtype,
                'pg_catalog.int2'::pg_catalog.regtype,
                'pg_catalog.int4'::pg_catalog.regtype,
                'pg_catalog.int8'::pg_catalog.regtype,
                'pg_catalog.float4'::pg_catalog.regtype,
                'pg_catalog.float8'::pg_catalog.regtype,
                'pg_catalog.numeric'::pg_catalog.regtype,
                'pg_catalog.text'::pg_catalog.regtype,
                'pg_catalog.varchar'::pg_catalog.regtype,
                'pg_catalog.uuid'::pg_catalog.regtype,
                'pg_catalog.date'::pg_catalog.regtype,
                'pg_catalog.timestamp'::pg_catalog.regtype,
                'pg_catalog.timestamptz'::pg_catalog.regtype
            )
            AND a.attnum > 0
        """,
        [source.relation],
    )
    return {row[0]: Column(*row) for row in rows}


def read(
    connection: Connection,
    source: Source,
    tables: Tables,
    terms: Iterable[Term],
    ids: RowIds,
    memory: int,
) -> list[Codes]:
    """Read the codes of columns that *terms* depend on, for the rows *ids* (n,).

    No answer of the server is to exceed *memory* bytes. None are read with chunks,
    which stay what they are when another column of their row changes.
    """
    if source.chunked:
        return []
    by_name: dict[str | None, list[Term]] = {}
    for term in dict.fromkeys(terms):
        by_name.setdefault(column_of(term, source), []).append(term)
    lookups: dict[Column, Lookup] = {}
    own: dict[Column, list[Term]] = {}
    for name, column in describe(connection, source).items():
        values = name in by_name and _values(connection, source, column)
        if values:
            lookups[column] = _lookup(source, column, values)
        elif name in by_name and column.oid in _NUMBERS:
            own[column] = by_name[name][:WORD]
    packing = Packing.of([*lookups.values(), *itertools.chain(*own.values())])
    listing = read_listing(
        connection, source, tables, packing, rows=len(ids), memory=memory
    )
    positions = RowMap(ids).positions(listing.ids)

    def coded(column: Column, values: Values, codes: NDArray[Any]) -> Codes:
        rows = np.zeros(len(ids), np.uint16)
        rows[positions] = codes
        where = freshness.columns(connection, tables.oids, [column.name])
        terms = tuple(own[column]) if column in own else None
        return Codes(column, values, terms, rows, where)

    found = []
    for column, lookup in lookups.items():
        values = tuple(bytes.fromhex(term.values[0]) for term in lookup.terms)
        found.append(coded(column, values, packing.values(lookup, listing.words)))
    for column, some in own.items():
        bits = [packing.values(term, listing.words) << i for i, term in enumerate(some)]
        _, first, which = np.unique(
            np.bitwise_or.reduce(bits), return_index=True, return_inverse=True
        )
        places = listing.ids[first]
        values, codes = _standing(connection, source, tables, column, places)
        found.append(coded(column, values, codes[which]))
    return found


def _standing(
    connection: Connection,
    source: Source,
    tables: Tables,
    column: Column,
    ids: RowIds,
) -> tuple[Values, NDArray[np.uint16]]:
    """Return the values of the rows *ids* (n,), and their codes (n,)."""
    images: list[bytes | None] = [None] * len(ids)
    send = f"{column.send}(t.{column.name})"
    for place, image in look_up(connection, source, tables, ids, send):
        images[place] = image
    there = np.array([image is not None for image in images], bool)
    values = tuple(bytes(image) for image in images if image is not None)
    return values, np.where(there, np.cumsum(there), 0).astype(np.uint16)


def known(
    connection: Connection, source: Source, oids: Sequence[int], coded: Sequence[Codes]
) -> tuple[Codes, ...]:
    """Return those of *coded* whose columns are what they were in the tables *oids*."""
    if not coded:
        return ()
    columns = describe(connection, source)
    now = freshness.columns(connection, oids, [each.column.name for each in coded])
    return tuple(
        each
        for number, each in enumerate(coded)
        if columns.get(each.column.name) == each.column
        and now[number :: len(coded)] == each.columns
    )


def _values(connection: Connection, source: Source, column: Column) -> Values | None:
    """Return the distinct values but NULL; None if they are too many, or too large."""
    rows = fetch(
        connection,
        f"SELECT DISTINCT {column.send}(t.{column.name}) "  # noqa: S608 - quoted
        f"FROM {source.relation} AS t WHERE t.{column.name} IS NOT NULL "
        f"LIMIT {_MOST_VALUES}",
    )
    values = tuple(bytes(value) for (value,) in rows)
    few = len(values) < _MOST_VALUES and sum(map(len, values)) <= _MOST_BYTES
    return values if few else None


def _lookup(source: Source, column: Column, values: Sequence[bytes]) -> Lookup:
    return Lookup(
        f"pg_catalog.encode({column.send}({source.alias}.{column.name}), 'hex')",
        "u.content",
        tuple(Term(None, None, (value.hex(),)) for value in values),
        tuple(range(1, 1 + len(values))),
    )
