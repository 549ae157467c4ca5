"""The environment of the example's migrations; PGEMBED_EXAMPLE_URL is the database."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import create_engine

import pgembed.alembic  # noqa: F401 - autogenerate knows embeddings
from tests.examples.articles.models import Base

engine = create_engine(os.environ["PGEMBED_EXAMPLE_URL"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
