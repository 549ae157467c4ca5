"""Which of many conditions fails on a row, when all of them are evaluated together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import psycopg

from pgembed.batch.packing import Packing
from pgembed.batch.predicates import is_refusal, refusals
from pgembed.batch.terms import Term
from pgembed.batch.workload import Condition
from pgembed.postgres.connection import Connection

Answer = TypeVar("Answer")


def evaluate(
    connection: Connection,
    packing: Packing,
    conditions: Mapping[Term, Condition],
    read: Callable[[Packing], Answer],
) -> Answer:
    """Return what *read* makes of *packing*.

    When a predicate among the *conditions* of its terms fails on a row, half of them
    are read again and again, to raise a FilterError that names it.
    """
    try:
        with connection.transaction():
            return read(packing)
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        terms = [term for term in conditions if term.predicate is not None]
        while len(terms) > 1:
            half = terms[: len(terms) // 2]
            failed = _fails(connection, half, read)
            terms = half if failed else terms[len(half) :]
        for term in terms:
            with refusals(f"{conditions[term]}: "), connection.transaction():
                read(Packing.of([term]))
        raise


def _fails(
    connection: Connection, terms: Sequence[Term], read: Callable[[Packing], object]
) -> bool:
    try:
        with connection.transaction():
            read(Packing.of(terms))
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        return True
    return False
