"""${message}"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """${message}."""
    text = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.execute(context.config.attributes["resolve_schemas"](text))
