"""An application with migrations, in a folder of its own."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.config import Config
from alembic.operations.ops import UpgradeOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData

from tests.integration.sqlalchemy.support import catalog

_ENV = """
from alembic import context

import pgembed.alembic

options = context.config.attributes["options"]
if context.is_offline_mode():
    options["dialect_opts"] = {"paramstyle": "named"}
    context.configure(url="postgresql+psycopg://", literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with context.config.attributes["engine"].connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""

_TEMPLATE = '''"""${message}"""
import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''


class Project:
    """Migrations of a database, written and run here."""

    def __init__(self, folder: Path, engine: Engine, **options: Any) -> None:
        (folder / "versions").mkdir(parents=True)
        (folder / "env.py").write_text(_ENV)
        (folder / "script.py.mako").write_text(_TEMPLATE)
        self.folder = folder
        self.engine = engine
        self.options = options

    def config(self, metadata: MetaData | None = None) -> Config:
        """Return Alembic's configuration, with a model or none."""
        config = Config(stdout=io.StringIO(), output_buffer=io.StringIO())
        config.set_main_option("script_location", str(self.folder))
        config.set_main_option("path_separator", "os")
        options = {**self.options, "target_metadata": metadata}
        config.attributes.update(engine=self.engine, options=options)
        return config

    def revise(self, metadata: MetaData, number: int, **options: Any) -> str:
        """Write the migration to *metadata* by autogenerate; return its text."""
        revision = command.revision(
            self.config(metadata),
            "step",
            autogenerate=True,
            rev_id=f"{number:04}",
            **options,
        )
        return Path(revision.path).read_text()  # type: ignore[union-attr]

    def write(self, number: int, upgrade: str, downgrade: str, **options: Any) -> None:
        """Write a migration by hand."""
        revision: Any = command.revision(
            self.config(), "step", rev_id=f"{number:04}", **options
        )
        path = Path(revision.path)
        text = path.read_text()
        text = text.replace(
            "def upgrade():\n    pass", f"def upgrade():\n    {upgrade}"
        )
        text = text.replace(
            "def downgrade():\n    pass", f"def downgrade():\n    {downgrade}"
        )
        path.write_text("import pgembed.alembic\n" + text.partition('"""\n')[2])

    def upgrade(self, revision: str = "head") -> None:
        """Run the migrations up to *revision*."""
        command.upgrade(self.config(), revision)

    def downgrade(self, revision: str) -> None:
        """Run the migrations back to *revision*."""
        command.downgrade(self.config(), revision)

    def script(self, revision: str = "head", *, down: bool = False) -> str:
        """Return the SQL that offline mode writes."""
        config = self.config()
        with contextlib.redirect_stdout(io.StringIO()):
            run = command.downgrade if down else command.upgrade
            run(config, revision, sql=True)
        assert isinstance(config.output_buffer, io.StringIO)
        return config.output_buffer.getvalue()

    def differences(self, metadata: MetaData) -> list[tuple[Any, ...]]:
        """Return what autogenerate would do now."""
        with self.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=self.options)
            found = produce_migrations(context, metadata).upgrade_ops
            assert isinstance(found, UpgradeOps)
            return list(found.as_diffs())

    def catalog(self) -> list[tuple[Any, ...]]:
        """Return what is in the database."""
        with self.engine.connect() as connection:
            return catalog(connection)
