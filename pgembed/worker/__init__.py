"""The processes that hold models and do the work."""

from __future__ import annotations
