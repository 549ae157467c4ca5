"""Filters given as Python objects: what of them JSON has no value for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pgembed.errors import FilterError


def checked(given: Any) -> Any:
    """Return a filter that JSON can say.

    Raises FilterError, which names the value, the column and the operator.
    """
    try:
        json.dumps(given, allow_nan=False)
    except (TypeError, ValueError) as error:
        for path, value in _leaves(given, ()):
            if not _is_plain(value):
                raise FilterError(
                    f"the filter compares {'.'.join(path) or 'a column'} with "
                    f"{value!r}, for which JSON has no value: pass it as text, "
                    "str(value), which is read as the column's type"
                ) from None
        raise FilterError(f"the filter {given!r} is no JSON: {error}") from None
    return given


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, (*path, str(key)))
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
