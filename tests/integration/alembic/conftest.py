"""An engine with a model, and a project on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.integration.alembic.project import Project
from tests.integration.sqlalchemy.conftest import engine

__all__ = ["engine"]


@pytest.fixture
def project(engine: Engine, tmp_path: Path) -> Project:
    """Return an application without migrations."""
    return Project(tmp_path / "migrations", engine, include_schemas=True)
