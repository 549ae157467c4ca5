"""Rows become vectors, and stay true."""

from __future__ import annotations
