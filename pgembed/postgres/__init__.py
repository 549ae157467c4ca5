"""The only rooms that open connections to PostgreSQL."""

from __future__ import annotations
