"""Runs pgembed's migrations on the connection that the installer lends.

The installer holds the transaction open, so nothing is committed here.
"""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="alembic_version",
    version_table_schema="pgembed",
    transactional_ddl=True,
)

with context.begin_transaction():
    context.run_migrations()
