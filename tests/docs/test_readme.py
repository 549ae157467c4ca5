"""What the README shows works: its SQL runs, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pgembed.cli.main import pgembed
from pgembed.models.registry import store_model
from pgembed.postgres.connection import Connection
from tests.harness.minilm import minilm_candidate
from tests.integration.worker.running import answering, embedding

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_sql_block_runs(dsn: str, connection: Connection) -> None:
    """The statements run in the order of the page, with MiniLM and a worker."""
    store_model(connection, "minilm", minilm_candidate())
    connection.execute(
        """
        CREATE TABLE articles (
            id int PRIMARY KEY, title text, body text, year int, language text
        );
        CREATE TABLE products (id int PRIMARY KEY, image_vector vector(3),
            category int, price numeric(8,2));
        INSERT INTO articles VALUES (1, 'Sails', 'A sail for light', 2021, 'en');
        CREATE ROLE app;
        """
    )
    try:
        # Here a model is loaded from the database, and other tests may run.
        connection.execute("SET pgembed.call_timeout = '60s'")
        with embedding(dsn), answering(dsn):
            for block in blocks("sql"):
                connection.execute(block.encode())
    finally:
        connection.execute("DROP OWNED BY app; DROP ROLE app")


def commands() -> list[str]:
    """Return the pgembed commands of the console blocks."""
    return [
        line.removeprefix("$ ")
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ pgembed ")
    ]


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    """Command and options exist."""
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = pgembed
    context = click.Context(command)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    command.make_context(command.name, words)
