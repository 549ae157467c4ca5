"""Search, seen from Python: advice on indexes, and recall."""

from __future__ import annotations
