"""Every distinct condition, evaluated once, by PostgreSQL.

Conditions are made of terms, many of which occur in several. Terms are evaluated in one
pass over the table: each row answers with words of bits. A condition that an index
answers with few rows, or that holds subqueries, has a statement of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgembed.batch import lookups
from pgembed.batch.lookups import Lookup
from pgembed.batch.packing import Packing
from pgembed.batch.rows import RowIds, Tables, TidArray, at_a_time, fetch, unpack
from pgembed.batch.source import Source
from pgembed.batch.terms import REFERENCE, Term
from pgembed.batch.workload import Condition
from pgembed.errors import FilterError
from pgembed.postgres.connection import Connection, fetch_one

_NOTHING = Packing.of()
Filters = dict[str | None, tuple[str | None, list[str]]]
"""Filters as SQL, and the values that they refer to."""
SHARED_MS = 2e-5
"""Milliseconds that a term costs per row in a shared pass (measured)."""
_PLAN_MS = 4e-3
"""Milliseconds per unit of the planner's cost (measured)."""
_MATCH_MS = 1e-3
"""Milliseconds for each row that one condition finds by itself (measured)."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A condition: the terms that its rows meet, all of them."""

    terms: tuple[Term, ...]
    plan: dict[str, Any] | None = None
    """PostgreSQL's plan for the rows that meet it; None if it was not asked for one."""

    def sql(self, parameter: int = 1) -> str:
        """Return the condition; its values are ``$parameter`` and those after it."""
        parts = []
        for term in self.terms:
            parts.append(term.sql(parameter))
            parameter += len(term.parameters)
        return " AND ".join(parts) or "true"

    @property
    def parameters(self) -> list[list[str]]:
        """The parameters of a statement with this condition alone."""
        return [values for term in self.terms for values in term.parameters]


@dataclasses.dataclass(frozen=True)
class Listing:
    """Rows with a vector: ids (n,), xmin (n,), words (w, n) of condition bits."""

    ids: RowIds
    xmins: NDArray[np.uint32]
    words: NDArray[np.uint64]


def compile_conditions(
    connection: Connection, source: Source, conditions: Iterable[Condition]
) -> tuple[list[Compiled], tuple[Lookup, ...]]:
    """Turn conditions into SQL; return also which of their terms to look up together.

    Raises FilterError for what the filter language, or PostgreSQL, refuses.
    """
    listed = [(condition, condition.parts()) for condition in conditions]
    distinct = dict.fromkeys(part for _, parts in listed for part in parts)
    with connection.transaction():
        filters = _known_filters(connection, source, [p.filter for p in distinct])
        terms: dict[Condition, Term] = {}
        for condition, parts in listed:
            with refusals(f"{condition}: "):
                for part in parts:
                    if part not in terms:
                        terms[part] = _compile_term(connection, source, part, filters)
        found = lookups.find(connection, source, terms.values())
        # But for the first, whose column may be refused to the caller.
        many = {term for each in found if each.is_large for term in each.terms[1:]}
        compiled = []
        for condition, parts in listed:
            each = Compiled(tuple(terms[part] for part in parts))
            if not many.issuperset(each.terms):
                with refusals(f"{condition}: "):
                    each = dataclasses.replace(
                        each, plan=_plan(connection, source, each)
                    )
            compiled.append(each)
    return compiled, found


@contextlib.contextmanager
def refusals(where: str) -> Iterator[None]:
    """Make what PostgreSQL refuses in a block a FilterError, which names *where*."""
    try:
        yield
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        message = error.diag.message_primary or str(error)
        lines = [f"{where}{message}", error.diag.message_hint]
        raise FilterError("\n".join(line for line in lines if line)) from None


def is_refusal(error: psycopg.Error) -> bool:
    """Whether PostgreSQL cannot read a condition, or evaluate it on some row."""
    return error.sqlstate is not None and error.sqlstate[:2] in ("0A", "22", "42")


def _compile_term(
    connection: Connection, source: Source, part: Condition, known: Filters
) -> Term:
    if part.filter not in known:
        known |= _compile_filters(connection, source, [part.filter])
    sql, values = known[part.filter]
    if part.predicate is not None:
        # Once outside parentheses: there, one that closes ours is an error. The plan
        # then has it within them: there, a clause that follows WHERE is one.
        statement = f"EXPLAIN SELECT FROM {source.relation} WHERE {part.predicate}"
        try:
            fetch(connection, statement)
        except psycopg.errors.ProtocolViolation:
            raise FilterError(
                f"{part}: there is no parameter $1: write values into the predicate, "
                "or what users give into a filter"
            ) from None
    return Term(sql, part.predicate, tuple(values))


def _known_filters(
    connection: Connection, source: Source, given: Sequence[str | None]
) -> Filters:
    """Compile filters together; none if one is refused: each by itself tells which."""
    known: Filters = {None: (None, [])}
    texts = dict.fromkeys(text for text in given if text is not None)
    with contextlib.suppress(psycopg.DatabaseError), connection.transaction():
        known |= _compile_filters(connection, source, list(texts))
    return known


def _compile_filters(
    connection: Connection, source: Source, texts: Sequence[str | None]
) -> Filters:
    rows = fetch(
        connection,
        "SELECT f.condition, f.arguments "
        "FROM pg_catalog.unnest($1::pg_catalog._text) WITH ORDINALITY "
        "AS u (content, place) CROSS JOIN LATERAL pgembed._compile_filter("
        "$2::pg_catalog.text::pg_catalog.regclass, u.content::pg_catalog.jsonb, $3) "
        "AS f ORDER BY u.place",
        [list(texts), source.relation, REFERENCE],
    )
    return dict(zip(texts, rows, strict=True))


@dataclasses.dataclass(frozen=True)
class Alone:
    """What a condition finds when it is evaluated by itself; estimates."""

    rows: int
    milliseconds: float
    due: bool
    """Whether it had better be, because of what it holds."""


def alone(condition: Compiled, rows: int) -> Alone | None:
    """Estimate a condition that had better be evaluated by itself; None: together.

    The table has about *rows* rows.
    """
    plan = condition.plan
    if plan is None:
        return None
    nodes = _nodes(plan)
    expected = int(plan["Plan Rows"])
    cost = plan["Total Cost"] * _PLAN_MS + expected * _MATCH_MS
    if any("Subplan Name" in node or "Hash Cond" in node for node in nodes):
        return Alone(expected, cost, due=True)
    if {n["Node Type"] for n in nodes} <= {"Seq Scan", "Gather", "Append", "Result"}:
        return None
    return Alone(expected, cost, due=False) if cost < rows * SHARED_MS else None


def _plan(
    connection: Connection, source: Source, condition: Compiled
) -> dict[str, Any] | None:
    if condition.sql() == "true":
        return None
    ((plans,),) = fetch(
        connection,
        f"EXPLAIN (FORMAT JSON) SELECT FROM {source.relation} WHERE {condition.sql()}",
        condition.parameters,
    )
    found: dict[str, Any] = plans[0]["Plan"]
    return found


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(n for child in plan.get("Plans", ()) for n in _nodes(child))]


def read_matching(
    connection: Connection, source: Source, tables: Tables, condition: Compiled
) -> RowIds:
    """Read the ids of the rows that have a vector and meet one condition."""
    parts = _aggregate(
        connection,
        source,
        f"pg_catalog.tidsend({source.row}.ctid)",
        source.rows(condition.sql()),
        condition.parameters,
    )
    found = [tables.ids(oid, unpack(data)) for oid, data in parts]
    return np.concatenate([np.empty(0, np.uint64), *found])


def read_listing(
    connection: Connection,
    source: Source,
    tables: Tables,
    packing: Packing = _NOTHING,
    *,
    rows: int = 0,
    memory: int = 1 << 29,
    ids: RowIds | None = None,
) -> Listing:
    """Read which rows have a vector, and the words of what each of them meets.

    With about *rows* rows, no answer of the server is to exceed *memory* bytes. With
    *ids* (n,), only those rows, and others in the same place of other tables.
    """
    words = packing.words()
    packed = [
        f"pg_catalog.tidsend({source.row}.ctid)",
        f"pg_catalog.xidsend({source.row}.xmin)",
        *(f"pg_catalog.int8send({source.computed(i, w)})" for i, w in enumerate(words)),
    ]
    parts: Iterable[tuple[str, list[Any]]]
    if ids is None:
        pieces = 1 + rows * (10 + 8 * len(words)) // memory
        parts = [(where, []) for where in _ranges(connection, source, pieces)]
    else:
        place = f" AND {source.row}.ctid = ANY (${1 + len(packing.parameters)})"
        parts = [(place, [TidArray(some)]) for some in at_a_time(ids)]
    fields = [("xmin", ">u4"), *((f"word_{i}", ">u8") for i in range(len(words)))]
    found_ids, xmins, bits = [], [], []
    for where, parameters in parts:
        for oid, data in _aggregate(
            connection,
            source,
            " || ".join(packed),
            source.rows(computed=words, joins=packing.joins()) + where,
            [*packing.parameters, *parameters],
        ):
            found = unpack(data, fields)
            found_ids.append(tables.ids(oid, found))
            xmins.append(found["xmin"].astype(np.uint32))
            bits.append([found[f"word_{i}"] for i in range(len(words))])
    joined = [_join([part[i] for part in bits], np.uint64) for i in range(len(words))]
    listed = _join(found_ids, np.uint64)
    return Listing(
        listed,
        _join(xmins, np.uint32),
        np.array(joined, np.uint64).reshape(len(words), len(listed)),
    )


def _ranges(connection: Connection, source: Source, pieces: int) -> list[str]:
    """Return conditions that cut the table's pages into so many ranges."""
    if pieces == 1:
        return [""]
    (pages,) = fetch_one(
        connection,
        """
        WITH RECURSIVE parts (oid) AS (
            SELECT %s::pg_catalog.text::pg_catalog.regclass::pg_catalog.oid
            UNION
            SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i
            INNER JOIN parts ON i.inhparent = parts.oid
        )
        SELECT pg_catalog.max(pg_catalog.pg_relation_size(oid)) / 8192 FROM parts
        """,
        [source.target],
    )
    cuts = np.linspace(0, int(pages), pieces + 1).astype(np.int64).tolist()
    starts = [f" AND {source.row}.ctid >= '({cut},0)'" for cut in cuts[:-1]]
    ends = [f" AND {source.row}.ctid < '({cut},0)'" for cut in cuts[1:-1]]
    return [start + end for start, end in zip(starts, [*ends, ""], strict=True)]


def _join(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


def _aggregate(
    connection: Connection,
    source: Source,
    value: str,
    rows: str,
    parameters: Sequence[Any],
) -> list[tuple[int, bytes]]:
    # One value for all rows is far cheaper to send than a message for each.
    packed = f"pg_catalog.string_agg({value}, ''::pg_catalog.bytea)"
    if source.divided:
        statement = f"SELECT {source.row}.tableoid::pg_catalog.int8, {packed} {rows} "
        found = fetch(connection, statement + "GROUP BY 1 ORDER BY 1", parameters)
    else:
        found = fetch(
            connection,
            f"SELECT '{source.target.replace(chr(39), chr(39) * 2)}'"
            f"::pg_catalog.regclass::pg_catalog.oid::pg_catalog.int8, {packed} {rows}",
            parameters,
        )
    return [(int(oid), data) for oid, data in found if data]
