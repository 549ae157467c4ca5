"""docs/managed.md, carried out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Self

import psycopg
from click.testing import CliRunner

from pgembed.cli.main import pgembed
from tests.harness.managed import ManagedServer

_PAGE = Path(__file__).parents[3] / "docs" / "managed.md"


class Page:
    """The page's blocks, with this server in place of db.example.com."""

    def __init__(
        self, server: ManagedServer, database: str, model: Path, folder: Path
    ) -> None:
        self._server = server
        self.database = database
        self.model = model
        self.folder = folder
        self.dsn = ""
        """What the page puts into PGEMBED_DSN."""
        self.text = _PAGE.read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """Return the fenced blocks of a language, in order."""
        pattern = rf"^```{language}\n(.*?)^```$"
        return re.findall(pattern, self.text, re.MULTILINE | re.DOTALL)

    def carry_out(self) -> Self:
        """Do all that comes before the worker."""
        administrator, application = self.blocks("sql")
        install, worker = self.blocks("console")
        assert worker == "$ pgembed worker\n"
        with self._server.provider(self.database) as provider:
            statement = administrator.replace(
                "DATABASE app", f"DATABASE {self.database}"
            )
            provider.execute(statement.encode())
        for line in install.splitlines():
            self._type(line.removeprefix("$ "))
        with psycopg.connect(self.dsn, autocommit=True) as app:
            text = application.replace("dbname 'app'", f"dbname '{self.database}'")
            text = text.replace("port '5432'", f"port '{self._server.port}'")
            app.execute(text.encode())
            app.execute("CREATE SCHEMA app")  # its tables', first in search_path
        return self

    def _type(self, line: str) -> None:
        words = shlex.split(line)
        if words[0] == "export":
            name, _, given = words[1].partition("=")
            assert name == "PGEMBED_DSN"
            self.dsn = given.replace(
                "db.example.com/app", f"localhost:{self._server.port}/{self.database}"
            ).replace("/etc/ssl/provider.pem", str(self._server.certificate))
            return
        assert words[0] == "pgembed"
        arguments = words[1:]
        if arguments[:2] == ["model", "add"]:
            arguments[3] = str(self.model)  # no hub can be reached from a test
        self.run(*arguments)

    def run(self, *arguments: str) -> str:
        """Run a command of pgembed with the page's DSN; return what it printed."""
        result = CliRunner().invoke(
            pgembed, arguments, env={"PGEMBED_DSN": self.dsn}, catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result.output
