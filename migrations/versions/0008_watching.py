"""Workers that look for work by themselves, so that nobody needs to wake one."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    text = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.execute(context.config.attributes["resolve_schemas"](text))
