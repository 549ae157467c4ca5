"""Text that a terminal shows and does not obey."""

from __future__ import annotations

import re

_LINE_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def visible(text: str) -> str:
    """Return a text with its control characters spelled out, but lines and tabs."""
    return _CONTROLS.sub(_spelled, text)


def visible_line(text: str) -> str:
    """Return a text with its control characters spelled out, ends of lines too."""
    return _LINE_CONTROLS.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]
