"""Filters given as Python objects: what of them JSON has no value for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from pgembed.batch.workload import shown
from pgembed.errors import FilterError


def checked(given: Any) -> Any:
    """Return a filter that JSON can say.

    Raises FilterError, which names the value, the column and the operator.
    """
    if isinstance(given, str):
        raise FilterError(
            f"the filter {shown(given)} is a text: pass json.loads() of it"
        )
    try:
        json.dumps(given, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FilterError(_reason(given, error)) from None
    return given


def _reason(given: Any, error: Exception) -> str:
    with contextlib.suppress(RecursionError):  # it may be in itself
        for path, value in _leaves(given, ()):
            if not _is_plain(value):
                return (
                    f"the filter compares {'.'.join(path) or 'a column'} with "
                    f"{shown(value)}, for which JSON has no value: pass it as text, "
                    "which is read as the column's type"
                )
    return f"the filter {shown(given)} is no JSON: {error}"


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            name = key if isinstance(key, str) else shown(key)
            yield from _leaves(each, (*path, name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each, path)
    else:
        yield path, value


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
