"""pgembed as an extension: its control file and script, written for one server."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

from pgembed import __version__
from pgembed.errors import InstallError
from pgembed.postgres import guards, installation, script
from pgembed.postgres.resources import Resources, Transport, quote_literal

# From here on a script may say @extschema:vector@ and be given the schema.
_KNOWS_SCHEMAS = 16
_EXTENSIONS = {
    "plpython": ("vector", "plpython3u"),
    "dblink": ("vector", "dblink"),
    "none": ("vector",),
}

_CONTROL = """\
comment = 'Models, kept embeddings and search for pgvector'
default_version = '{version}'
requires = '{requires}'
schema = pgembed
relocatable = false
superuser = true
"""

_HEAD = '\\echo Use "CREATE EXTENSION pgembed CASCADE" to load this file. \\quit'

_REQUIRE_PUBLIC = """
DO $$
DECLARE
    misplaced text := (
        SELECT string_agg(e.extname, ', ')
        FROM pg_catalog.pg_extension AS e
        WHERE e.extname IN ('vector', 'dblink')
            AND e.extnamespace IS DISTINCT FROM pg_catalog.to_regnamespace('public')
    );
BEGIN
    IF misplaced IS NOT NULL THEN
        RAISE EXCEPTION 'extension pgembed needs these in schema public: %', misplaced
            USING HINT = 'Move them, or run: pgembed install';
    END IF;
END;
$$;
"""

# What users make. The others are filled by the script, or forgotten by a restart.
_DUMPED = """
DO $$
DECLARE
    relation regclass;
BEGIN
    FOR relation IN
        SELECT c.oid FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'pgembed'::regnamespace AND c.relkind IN ('r', 'S')
            AND c.relpersistence = 'p'
            AND c.relname NOT IN
                ('installation', 'alembic_version', 'worker', 'progress')
        ORDER BY c.oid
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(relation, '');
    END LOOP;
END;
$$;
"""


@dataclasses.dataclass(frozen=True)
class Server:
    """A PostgreSQL installation, as its pg_config describes it."""

    major: int
    folder: Path
    """Where its extensions are."""

    @classmethod
    def described_by(cls, pg_config: str) -> Server:
        """Ask the program *pg_config*. Raises InstallError when it does not answer."""
        try:
            version = _ask(pg_config, "--version")
            shared = _ask(pg_config, "--sharedir")
        except (OSError, subprocess.CalledProcessError) as error:
            raise InstallError(
                f"{pg_config} does not say where extensions belong ({error}): name the "
                "server's with --pg-config, /usr/lib/postgresql/17/bin/pg_config say"
            ) from None
        match = re.search(r"\d+", version)
        major = int(match[0]) if match else 0
        if major < guards.MIN_SERVER // 10000:
            raise InstallError(
                f"{pg_config} is of {version!r}, but pgembed needs PostgreSQL "
                f"{guards.MIN_SERVER // 10000} or later: name another with --pg-config"
            )
        return cls(major, Path(shared) / "extension")


def _ask(program: str, question: str) -> str:
    answer = subprocess.run(
        [program, question], check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def write(
    server: Server,
    transport: Transport,
    socket_dir: str = installation.DEFAULT_SOCKET_DIR,
) -> list[Path]:
    """Write control file and script into the server's folder; return their paths.

    *transport* is how SQL functions will reach a worker, *socket_dir* where they look
    for its socket. Raises InstallError when the folder cannot be written to.
    """
    control = _CONTROL.format(
        version=__version__, requires=", ".join(_EXTENSIONS[transport])
    )
    texts = {
        server.folder / f"pgembed--{__version__}.sql": script_for(
            server, transport, socket_dir
        ),
        server.folder / "pgembed.control": control,
    }
    for path, text in texts.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InstallError(
                f"cannot write {path}: {error.strerror}; run this as a user who may, "
                "root as a rule"
            ) from None
    return list(texts)


def script_for(
    server: Server,
    transport: Transport,
    socket_dir: str = installation.DEFAULT_SOCKET_DIR,
) -> str:
    """Return the SQL that CREATE EXTENSION runs."""
    keeps = server.major >= _KNOWS_SCHEMAS
    schemas = dict.fromkeys(("vector", "dblink"), "public")
    parts = [
        _HEAD,
        "" if keeps else _REQUIRE_PUBLIC,
        script.contents(Resources.found(), schemas, transport, keep_placeholders=keeps),
        f"UPDATE pgembed.installation SET transport = '{transport}', "  # noqa: S608
        f"socket_dir = {quote_literal(socket_dir)};",
        _DUMPED,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"
