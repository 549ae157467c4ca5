"""What the doctor says: one finding about one subject."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warning", "error"]
    subject: str
    message: str
    remedy: str = ""
    """What to do about it; empty when nothing is wrong."""


def ok(subject: str, message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding("ok", subject, message)


def warning(subject: str, message: str, remedy: str) -> Finding:
    """Return a finding about something that works, but not as well as it could."""
    return Finding("warning", subject, message, remedy)


def error(subject: str, message: str, remedy: str) -> Finding:
    """Return a finding about something that does not work."""
    return Finding("error", subject, message, remedy)
