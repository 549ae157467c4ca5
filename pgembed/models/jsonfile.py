"""JSON that nobody vouches for: parsed, and of the type that is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pgembed.errors import ModelFileError

T = TypeVar("T")
_TYPES: Mapping[type, str] = {dict: "object", list: "array", str: "string"}


def parse(data: bytes, file: str, kind: type[T]) -> T:
    """Return the object (a dict) or the array (a list) that a file holds.

    Raises ModelFileError, which names the file, for what is neither JSON nor that.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is not JSON: {error}") from None
    return _checked(value, file, kind)


def field(values: Mapping[str, Any], name: str, kind: type[T], file: str) -> T:
    """Return a field of an object, an empty one where it is missing or null.

    Raises ModelFileError, which names the file, for another type.
    """
    value = values.get(name)
    return kind() if value is None else _checked(value, f"{name} in {file}", kind)


def _checked(value: Any, what: str, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ModelFileError(
            f"{what} is not a JSON {_TYPES[kind]}: get the model's files again"
        )
    return value
