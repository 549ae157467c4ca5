"""Which call is answered next: short ones first and together, long ones in slices."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pgembed.postgres.vectors import Float32

_SHORT_TEXTS = 4  # a call of more texts yields to those of fewer


class Group(NamedTuple):
    """What calls must share to run in one batch."""

    model: str
    model_hash: bytes
    side: str


@dataclasses.dataclass(eq=False, frozen=True)
class Call:
    """Texts that wait for their vectors.

    *deadline* and *taken* are on the clock of time.monotonic; *reply_to* says where
    the answer belongs, in the terms of the transport that brought the call.
    """

    reply_to: object
    group: Group
    contents: list[str]
    deadline: float
    taken: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def is_short(self) -> bool:
        """Whether it is answered in one go."""
        return len(self.contents) <= _SHORT_TEXTS


AnsweredCall = tuple[Call, Float32 | str]
"""A call, and its vectors, float32 (n, d), or an error."""


class PendingCalls:
    """Calls that wait, in the order in which they came."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, calls: Iterable[Call]) -> None:
        """Take calls in."""
        self._calls.extend(calls)

    def groups(self) -> list[Group]:
        """Return the groups of the calls that wait, the oldest first."""
        return list(dict.fromkeys(call.group for call in self._calls))

    def has_only_short_of(self, group: Group) -> bool:
        """Whether none but short calls of the group wait."""
        return all(call.group == group and call.is_short for call in self._calls)

    def drop(self, unwanted: Callable[[Call], bool]) -> None:
        """Forget calls."""
        self._take(unwanted)

    def all_of(self, group: Group) -> list[Call]:
        """Remove and return the calls of a group."""
        return self._take(lambda call: call.group == group)

    def short_of(self, group: Group) -> list[Call]:
        """Remove and return the short calls of a group."""
        return self._take(lambda call: call.group == group and call.is_short)

    def long_of(self, group: Group) -> Call | None:
        """Remove and return the first long call of a group, if there is one."""
        for call in self._calls:
            if call.group == group and not call.is_short:
                self._calls.remove(call)
                return call
        return None

    def _take(self, wanted: Callable[[Call], bool]) -> list[Call]:
        taken = [call for call in self._calls if wanted(call)]
        self._calls = [call for call in self._calls if not wanted(call)]
        return taken
