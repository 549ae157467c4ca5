"""Batches: workloads that SQL posts and workers carry out."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    text = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.execute(context.config.attributes["resolve_schemas"](text))
