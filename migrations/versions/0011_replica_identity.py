"""Queues have a replica identity: publications of all tables let them be updated."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give the queues that are there the replica identity that new ones have."""
    text = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.execute(context.config.attributes["resolve_schemas"](text))
