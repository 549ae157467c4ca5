"""Whole workloads of hybrid queries, executed as one job."""

from __future__ import annotations
