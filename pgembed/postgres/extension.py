"""pgembed as an extension: its control file and script, written for one server."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

from pgembed.errors import InstallError
from pgembed.postgres import guards, script
from pgembed.postgres.resources import (
    Resources,
    Transport,
    quote_literal,
    resolve_schemas,
)
from pgembed.postgres.update_script import update
from pgembed.settings import check_socket_dir

# From here on a script may say @extschema:vector@ and be given the schema.
_KNOWS_SCHEMAS = 16
_EXTENSIONS: dict[Transport, tuple[str, ...]] = {
    "plpython": ("vector", "plpython3u"),
    "dblink": ("vector", "dblink"),
    "none": ("vector",),
}

_SCHEMAS = dict.fromkeys(("vector", "dblink"), "public")

_CONTROL = """\
comment = 'Models, kept embeddings and search for pgvector'
default_version = '{version}'
requires = '{requires}'
schema = pgembed
relocatable = false
superuser = {superuser}
"""

# The scripts fill in where these are. A server that does not do that refuses the line.
_NO_RELOCATE = "no_relocate = '{requires}'\n"

# The server reads no comments: this one is for the next time.
_SOCKET_DIR = "# socket_dir = "

_HEAD = '\\echo Use "{statement}" to load this file. \\quit'

# Whoever owns the schema can put functions in the way of those made here.
_REQUIRE_OWNER = """
DO $$
DECLARE
    owner text := (
        SELECT n.nspowner::pg_catalog.regrole FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname = 'pgembed' AND n.nspowner <> current_user::pg_catalog.regrole
    );
BEGIN
    IF owner IS NOT NULL THEN
        RAISE EXCEPTION 'schema pgembed belongs to role %, and you are %',
            owner, current_user
            USING HINT = format('Be that role: SET ROLE %s, pg_restore --role=%s',
                owner, owner);
    END IF;
END;
$$;
"""

_REFUSE_SCHEMA = """
DO $$
BEGIN
    IF pg_catalog.to_regclass('pgembed.installation') IS NOT NULL THEN
        RAISE EXCEPTION '"pgembed install" made schema pgembed in this database'
            USING HINT = 'To have an extension instead, run "pgembed uninstall" first; '
                'models and embeddings go with it, your tables and vectors stay.';
    END IF;
END;
$$;
"""

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

# The server refuses the other characters that resolve_schemas() does.
_REFUSE_PERCENT = """
DO $$
DECLARE
    unfit text := (
        SELECT string_agg(format('%s in %I', e.extname, n.nspname), ', ')
        FROM pg_catalog.pg_extension AS e
        JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname IN ('vector', 'dblink') AND n.nspname ~ '%'
    );
BEGIN
    IF unfit IS NOT NULL THEN
        RAISE EXCEPTION
            'extension pgembed cannot use a schema with a percent sign: %', unfit
            USING HINT = 'Move what is there: ALTER EXTENSION ... SET SCHEMA ...';
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
                ('installation', 'alembic_version', 'worker', 'progress', 'call_secret')
            -- Not what embeddings made.
            AND EXISTS (
                SELECT FROM pg_catalog.pg_depend AS d
                WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                    AND d.deptype = 'e'
            )
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
    transport: Transport | None = None,
    socket_dir: str | None = None,
    *,
    resources: Resources | None = None,
) -> list[Path]:
    """Write control file and scripts into the server's folder; return their paths.

    *transport* is how SQL functions will reach a worker, None: as the control file that
    is there has it, dblink without one. *socket_dir* is where they look for its socket,
    None: where they did, /run/pgembed at first. Raises InstallError when the folder
    cannot be written to, SettingError for a *socket_dir* that is not absolute.
    """
    check_socket_dir(socket_dir)
    resources = resources or Resources.found()
    transport = transport or _transport_of(server)
    socket_dir = socket_dir or _socket_dir_of(server)
    requires = ", ".join(_EXTENSIONS[transport])
    control = _CONTROL.format(
        version=resources.version,
        requires=requires,
        # Only a superuser creates functions in PL/Python.
        superuser=str(transport == "plpython").lower(),
    )
    if server.major >= _KNOWS_SCHEMAS:
        control += _NO_RELOCATE.format(requires=requires)
    if socket_dir is not None:
        control += f"{_SOCKET_DIR}{json.dumps(socket_dir)}\n"
    version = resources.version
    texts = {
        f"pgembed--{version}.sql": script_for(server, transport, socket_dir, resources),
        **{
            f"pgembed--{earlier}--{version}.sql": update_script_for(
                server, transport, socket_dir, resources, since=head
            )
            for earlier, head in resources.earlier_releases().items()
        },
        # The last: it names the others.
        "pgembed.control": control,
    }
    return [_write(server.folder / name, text) for name, text in texts.items()]


def _transport_of(server: Server) -> Transport:
    """Return the transport for which the server's control file was written."""
    match = re.search(r"^requires = '(.*)'$", _control_of(server), re.MULTILINE)
    required = tuple(match[1].split(", ")) if match else ()
    return next((t for t in _EXTENSIONS if _EXTENSIONS[t] == required), "dblink")


def _socket_dir_of(server: Server) -> str | None:
    """Return the folder of sockets for which the server's files were written."""
    match = re.search(f"^{_SOCKET_DIR}(.*)$", _control_of(server), re.MULTILINE)
    return str(json.loads(match[1])) if match else None


def _control_of(server: Server) -> str:
    try:
        return (server.folder / "pgembed.control").read_text(encoding="utf-8")
    except OSError:
        return ""


def _write(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InstallError(
            f"cannot write {path}: {error.strerror}; run this as a user who may, "
            "root as a rule"
        ) from None
    return path


def script_for(
    server: Server,
    transport: Transport,
    socket_dir: str | None = None,
    resources: Resources | None = None,
) -> str:
    """Return the SQL that CREATE EXTENSION runs."""
    resources = resources or Resources.found()
    text = script.contents(resources, _SCHEMAS, transport, keep_placeholders=True)
    return _script(
        server,
        "CREATE EXTENSION pgembed CASCADE",
        f"{_REFUSE_SCHEMA.strip()}\n\n{text}",
        transport,
        socket_dir,
    )


def update_script_for(
    server: Server,
    transport: Transport,
    socket_dir: str | None,
    resources: Resources,
    *,
    since: str,
) -> str:
    """Return the SQL that ALTER EXTENSION UPDATE runs, at revision *since*."""
    text = update(resources, _SCHEMAS, transport, since=since)
    return _script(
        server, "ALTER EXTENSION pgembed UPDATE", text, transport, socket_dir
    )


def _script(
    server: Server,
    statement: str,
    text: str,
    transport: Transport,
    socket_dir: str | None,
) -> str:
    knows_schemas = server.major >= _KNOWS_SCHEMAS
    settings = f"transport = '{transport}'"
    if socket_dir is not None:
        settings += f", socket_dir = {quote_literal(socket_dir)}"
    parts = [
        _HEAD.format(statement=statement),
        _REQUIRE_OWNER,
        _REFUSE_PERCENT if knows_schemas else _REQUIRE_PUBLIC,
        text if knows_schemas else resolve_schemas(text, _SCHEMAS),
        f"UPDATE pgembed.installation SET {settings};",  # noqa: S608
        _DUMPED,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"
