"""What search() made of a statement: the part that a batch need not read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Select
from sqlalchemy.sql.cache_key import CacheKey, HasCacheKey
from sqlalchemy.sql.visitors import InternalTraversal

_CRITERIA = "_where_criteria"
_MADE = "_pgembed_made"

Parameters = list[BindParameter[Any]]


@dataclasses.dataclass(frozen=True)
class Made:
    """A statement as search() returned it; where() hands this on to what it returns."""

    kind: Hashable
    """The same for statements that differ only in their values."""
    parameters: tuple[BindParameter[Any], ...]
    parts: tuple[tuple[str, Any], ...]
    """Attributes of the statement, but for its criteria."""

    @classmethod
    def note(
        cls,
        statement: Select[Any, float],
        kind: Hashable,
        arguments: Iterable[ColumnElement[Any]],
    ) -> None:
        """Note how *statement* was made, unless *arguments* are more than values."""
        given = tuple(each for each in arguments if isinstance(each, BindParameter))
        parts = [each for each in vars(statement).items() if each[0] != _CRITERIA]
        if len(given) == len(list(arguments)):
            setattr(statement, _MADE, cls(kind, given, tuple(parts)))


class _Criteria(HasCacheKey):
    """The criteria of a statement, without the rest of it."""

    inherit_cache = True
    _cache_key_traversal = [  # noqa: RUF012 - as SQLAlchemy declares it
        ("criteria", InternalTraversal.dp_clauseelement_tuple)
    ]

    def __init__(self, criteria: tuple[ColumnElement[Any], ...]) -> None:
        self.criteria = criteria


def identify(statement: Select[Any]) -> tuple[Hashable, Parameters]:
    """Return what statements of the same shape share, and the statement's parameters.

    That is SQLAlchemy's cache key; of a statement by search() to which only criteria
    were added, the key of these.
    """
    made = vars(statement).get(_MADE)
    if made is not None and _adds_only_criteria(statement, made):
        key = _Criteria(statement._where_criteria)._generate_cache_key()
        if key is not None:
            return (made.kind, key.key), [*made.parameters, *key.bindparams]
    # Not the statement's own method, which keeps the key for as long as it lives.
    whole: CacheKey | None = HasCacheKey._generate_cache_key(statement)
    if whole is None:
        return id(statement), []
    return whole.key, list(whole.bindparams)


def _adds_only_criteria(statement: Select[Any], made: Made) -> bool:
    """Whether a statement has all else as it was made, and nothing more."""
    now = vars(statement)
    return len(now) == len(made.parts) + 1 + (_CRITERIA in now) and all(
        now.get(name) is value for name, value in made.parts
    )
