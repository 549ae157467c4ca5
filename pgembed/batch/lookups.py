"""Equalities on one column, looked up together instead of one after the other.

A workload may ask for the rows of each of a thousand categories. PostgreSQL then joins
the table with the list of their names, which takes one look into a hash table for each
row, however many there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Sequence

import psycopg

from pgembed.batch.rows import fetch
from pgembed.batch.source import Source
from pgembed.batch.terms import Term
from pgembed.postgres.connection import Connection

TERMS = 4
"""Comparisons that take as long as a lookup (measured)."""
_MANY = 64
NAME = r'(?:"(?:[^"]|"")*"|\w+)'
"""A quoted identifier, as a regular expression."""
_CONTENT = r"\(\$1::pg_catalog\._text\)\[1\]"
_EQUALITY = re.compile(
    rf"\((?P<column>{NAME}\.{NAME}) OPERATOR\(pg_catalog\.=\) "
    rf"(?:\({_CONTENT}\)::(?P<cast>pg_catalog\.{NAME})"
    rf"|pgembed\._value\({_CONTENT}, NULL::(?P<read>pg_catalog\.{NAME})\))\)"
)
"""What pgembed._compile_filter makes of ``{"column": value}`` for built-in types."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lookup:
    """Terms that compare one column with a value each."""

    column: str
    value: str
    """SQL of a value, made of the text ``u.content``."""
    terms: tuple[Term, ...]
    codes: tuple[int, ...]
    """What rows that meet each term are marked with; 0 are those that meet none."""

    @property
    def bits(self) -> int:
        """How many bits a code has."""
        return len(self.terms).bit_length()

    @property
    def is_large(self) -> bool:
        """Whether planning each condition, or reading its rows, would take longer."""
        return len(self.terms) > _MANY

    @property
    def contents(self) -> list[str]:
        """The values as text: the parameter of :meth:`join`."""
        return [term.values[0] for term in self.terms]

    def join(self, number: int, parameter: int) -> str:
        """Return the join that finds the code of each row; *number* makes its name.

        The values are ``$parameter``.
        """
        return (
            f" LEFT JOIN (SELECT {self.value} AS pgembed_value, "  # noqa: S608 - quoted
            "pg_catalog.min(u.place) AS pgembed_code FROM "
            f"{_contents(parameter)} GROUP BY 1) AS pgembed_lookup_{number} "
            f"ON {self.column} OPERATOR(pg_catalog.=) "
            f"pgembed_lookup_{number}.pgembed_value"
        )

    def code(self, number: int) -> str:
        """Return the SQL of a row's code, int8, for the join of that number."""
        return f"coalesce(pgembed_lookup_{number}.pgembed_code, 0)"


def _contents(parameter: int) -> str:
    return (
        f"pg_catalog.unnest(${parameter}::pg_catalog._text) "
        "WITH ORDINALITY AS u (content, place)"
    )


def find(
    connection: Connection, source: Source, terms: Iterable[Term]
) -> tuple[Lookup, ...]:
    """Return the lookups that pay for *terms*; each is in one lookup at most."""
    by_column: dict[tuple[str, str], list[Term]] = {}
    for term in dict.fromkeys(terms):
        found = term.predicate is None and _EQUALITY.fullmatch(term.filter or "")
        if found and len(term.values) == 1:
            by_column.setdefault((found["column"], _value(found)), []).append(term)
    several = {key: found for key, found in by_column.items() if len(found) >= TERMS}
    if not several:
        return ()
    blurred = _blurred(connection, source)
    lookups = []
    for (column, value), alike in several.items():
        if column in blurred:
            continue
        # Values of types that have no order, such as xid, cannot be numbered.
        unordered = psycopg.errors.FeatureNotSupported
        with contextlib.suppress(unordered), connection.transaction():
            lookups.append(_lookup(connection, column, value, alike))
    return tuple(lookups)


def _value(found: re.Match[str]) -> str:
    if found["cast"] is not None:
        return f"u.content::{found['cast']}"
    return f"pgembed._value(u.content, NULL::{found['read']})"


def _lookup(
    connection: Connection, column: str, value: str, terms: Sequence[Term]
) -> Lookup:
    """Number the values; equal ones, 1 and 1.0 say, have one code."""
    rows = fetch(
        connection,
        "SELECT pg_catalog.min(t.place) OVER (PARTITION BY t.value) "  # noqa: S608
        f"FROM (SELECT u.place, {value} AS value FROM {_contents(1)}) AS t "
        "ORDER BY t.place",
        [[term.values[0] for term in terms]],
    )
    return Lookup(column, value, tuple(terms), tuple(int(code) for (code,) in rows))


def _blurred(connection: Connection, source: Source) -> set[str]:
    """Return the columns on which values are equal that elsewhere differ.

    Their collations are not deterministic, and that of the list of values is.
    """
    rows = fetch(
        connection,
        """
        SELECT $2 || '.' || pg_catalog.quote_ident(a.attname)
        FROM pg_catalog.pg_attribute AS a
        INNER JOIN pg_catalog.pg_collation AS c ON c.oid = a.attcollation
        WHERE a.attrelid = $1::pg_catalog.text::pg_catalog.regclass::oid
            AND NOT c.collisdeterministic
        """,
        [source.relation, source.alias],
    )
    return {name for (name,) in rows}
