"""A managed server, with a database as docs/managed.md leaves it."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgembed.models.session import Model
from pgembed.postgres.connection import Connection, connect
from tests.harness import debian, pgbouncer, tiny_models
from tests.harness.managed import PASSWORD, ManagedServer, free_port, managed_server
from tests.integration.managed.page import Page

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def managed() -> Iterator[ManagedServer]:
    """Return a server with TLS and passwords; skips where Debian's is not installed."""
    if debian.installed_major() is None:
        pytest.skip(f"no PostgreSQL with TLS here: {debian.HOW_TO_INSTALL}")
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    with managed_server() as server:
        yield server


@pytest.fixture
def page(managed: ManagedServer, tmp_path: Path) -> Iterator[Page]:
    """Return docs/managed.md, carried out up to where the worker is started."""
    name = f"app_{next(_numbers)}"
    with managed.provider("postgres") as provider:
        provider.execute(f"CREATE DATABASE {name}".encode())
    page = Page(managed, name, tiny_models.good_model(tmp_path / "tiny"), tmp_path)
    try:
        yield page.carry_out()
    finally:
        with managed.provider("postgres") as provider:
            provider.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            provider.execute("DROP ROLE app")


@pytest.fixture
def app(page: Page) -> Iterator[Connection]:
    """Return the application's session."""
    with connect(page.dsn, purpose="test") as connection:
        yield connection


@pytest.fixture
def model(app: Connection) -> Model:
    """Return the registered model, loaded."""
    from pgembed.models import registry

    return registry.load(app, "minilm", threads=1)


@pytest.fixture
def pooled(page: Page, managed: ManagedServer, tmp_path: Path) -> Iterator[str]:
    """Return the application's DSN by way of PgBouncer, configured as the page says."""
    program = pgbouncer.install()
    if program is None:
        pytest.skip("pgbouncer is not installed, and apt-get could not install it")
    folder = managed.folder
    port = free_port()
    (text,) = page.blocks("ini")
    text = re.sub(
        r"^app = .*$", f"* = host=localhost port={managed.port}", text, flags=re.M
    )
    for file in ("server.crt", "server.key", "userlist.txt"):
        text = text.replace(f"= {file}", f"= {folder / file}")
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"{text}\nlisten_addr = localhost\nlisten_port = {port}\nunix_socket_dir =\n"
        "default_pool_size = 3\n",
        encoding="utf-8",
    )
    (folder / "userlist.txt").write_text(f'"app" "{PASSWORD}"\n', encoding="utf-8")
    address = managed.dsn("app", page.database, port=str(port))
    with pgbouncer.serving(program, config, managed.user, address):
        yield address


@pytest.fixture
def provider(
    page: Page, managed: ManagedServer
) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Return a superuser's session, as only the provider has it."""
    with managed.provider(page.database) as connection:
        yield connection
