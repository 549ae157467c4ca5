"""Queues inherit from one table: what drops pgembed drops them."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and let the queues that are there inherit from it."""
    text = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.execute(context.config.attributes["resolve_schemas"](text))
