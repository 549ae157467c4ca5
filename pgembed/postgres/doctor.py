"""What is wrong with an installation, and what to do about each thing."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator

from pgembed import __version__
from pgembed.errors import InstallError
from pgembed.postgres import (
    embedding_checks,
    guards,
    installation,
    losses,
    server_checks,
    versions,
)
from pgembed.postgres.connection import (
    Connection,
    extension_schema,
    fetch_all,
    fetch_one,
    is_standby,
)
from pgembed.postgres.findings import Finding, error, ok, warning
from pgembed.postgres.resources import Resources

_OF_THIS_SERVER = ("server", "clock", "transport", "call", "settings")


def verify(
    connection: Connection, *, resources: Resources | None = None
) -> list[Finding]:
    """Look at the server, the schema, the workers, the models and the embeddings.

    Changes nothing, but asks a worker to embed a word. The findings come in the order
    in which to mend things.
    """
    findings = _verify(connection, resources or Resources.found())
    if is_standby(connection):
        return [_on_primary(finding) for finding in findings]
    return findings


def _on_primary(finding: Finding) -> Finding:
    """Send to the primary whoever is to change a standby's database."""
    if not finding.remedy or finding.subject in _OF_THIS_SERVER:
        return finding
    return dataclasses.replace(finding, remedy=f"on the primary: {finding.remedy}")


def _verify(connection: Connection, resources: Resources) -> list[Finding]:
    findings = [*_server(connection), *_vector(connection), *_access(connection)]
    if any(finding.level == "error" for finding in findings):
        return findings
    try:
        plan = installation.plan(connection, resources)
    except InstallError as failure:
        return [*findings, error("transport", str(failure), "run 'pgembed install'")]
    findings += _version(connection) or _schema(connection, plan)
    if plan.found is not None:
        findings += _privileges(connection, plan)
        findings += server_checks.check_roles(connection)
        findings += server_checks.check_clock(connection)
        findings += _transport(connection, plan)
        findings += _workers(connection)
        findings += (models := list(_models(connection)))
        if plan.transport != "none":  # which was reported already
            findings += server_checks.check_call(connection, _complete(models))
        findings += server_checks.check_settings(connection)
        findings += embedding_checks.check_all(connection)
    return findings


def _server(connection: Connection) -> Iterator[Finding]:
    text = fetch_one(connection, "SELECT pg_catalog.current_setting('server_version')")
    message = f"PostgreSQL {text[0]}"
    if connection.info.server_version < guards.MIN_SERVER:
        yield error(
            "server", message, "upgrade to PostgreSQL 15 or later, or use 'pgembed up'"
        )
    elif is_standby(connection):
        yield ok(
            "server", f"{message}, a standby: workers and changes go to its primary"
        )
    else:
        yield ok("server", message)


def _vector(connection: Connection) -> Iterator[Finding]:
    if extension_schema(connection, "vector") is None:
        loss = losses.vectors(connection)
        if loss is not None:
            yield error("pgvector", loss.message, loss.remedy)
            return
        (there,) = fetch_one(
            connection,
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_available_extensions "
            "WHERE name = 'vector')",
        )
        yield error(
            "pgvector",
            "extension vector is not in this database",
            "run 'pgembed install', which creates it; or let a superuser run 'CREATE "
            "EXTENSION vector' first"
            if there
            else "install pgvector 0.8 or later on the server (package "
            "postgresql-NN-pgvector), then run 'pgembed install'",
        )
        return
    version = guards.extension_version(connection, "vector")
    message = f"pgvector {'.'.join(map(str, version))}"
    upgrade = "upgrade the server's package, then run 'ALTER EXTENSION vector UPDATE'"
    if version < guards.MIN_PGVECTOR:
        yield error("pgvector", f"{message} is older than 0.8", upgrade)
    elif version < (0, 8, 2):
        yield warning(
            "pgvector",
            f"{message} has CVE-2026-3172: a parallel HNSW build may leak or crash",
            upgrade,
        )
    elif version < (0, 8, 4):
        yield warning(
            "pgvector", f"{message} has faults in vacuuming HNSW indexes", upgrade
        )
    else:
        yield ok("pgvector", message)


def _access(connection: Connection) -> Iterator[Finding]:
    row = fetch_one(
        connection,
        """
        SELECT n.nspowner::pg_catalog.regrole::pg_catalog.text, current_user
        FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname = 'pgembed'
          AND NOT pg_catalog.pg_has_role(current_user, n.nspowner, 'USAGE')
        """,
    )
    if row is not None:
        owner, user = row
        yield error(
            "schema",
            f"it belongs to role {owner}, and role {user} may not look into all of it",
            f"connect as {owner}",
        )


def _version(connection: Connection) -> list[Finding]:
    """Return what to run when the schema is of another version than this code."""
    differs = versions.difference(connection)
    if differs is None:
        return []
    level = error if differs.is_newer else warning
    return [level("schema", differs.message, differs.remedy)]


def _schema(connection: Connection, plan: installation.Plan) -> Iterator[Finding]:
    loss = losses.find(connection)
    if loss is not None:
        yield error("schema", loss.message, loss.remedy)
        return
    if plan.found is None:
        yield error(
            "schema",
            "pgembed is not installed in this database",
            "run 'pgembed install'",
        )
        return
    message = f"pgembed {plan.found.version}, revision {plan.revision}"
    if plan.is_newer:
        yield error(
            "schema",
            f"{message} is newer than this code, {__version__}",
            "run 'pip install --upgrade pgembed-vector'",
        )
    elif plan.missing:
        names = ", ".join(sorted(plan.missing)[:3])
        yield error(
            "schema",
            f"somebody dropped parts of it: {names}",
            "run 'pgembed uninstall', then 'CREATE EXTENSION pgembed CASCADE': models "
            "and embeddings go with it, your tables and vectors stay"
            if plan.is_extension
            else "run 'pgembed install'",
        )
    elif not plan.is_current:
        yield warning(
            "schema",
            f"{message} is not what this code, {__version__}, would install here",
            "run 'pgembed install'",
        )
    else:
        yield ok("schema", message)


def _privileges(connection: Connection, plan: installation.Plan) -> Iterator[Finding]:
    schema = guards.find_schema(connection)
    foreign = guards.foreign_objects(connection, schema) if schema else []
    if foreign:
        yield error(
            "privileges",
            f"objects of other roles are in schema pgembed: {', '.join(foreign)}",
            "move them with ALTER … SET SCHEMA, or drop them",
        )
    public = guards.open_to_public(connection)
    if public:
        yield warning(
            "privileges",
            f"everybody may use {', '.join(public[:3])}"
            + (f" and {len(public) - 3} more" if len(public) > 3 else ""),
            (
                ""
                if plan.is_extension
                else "run 'pgembed install', which revokes it, or "
            )
            + "REVOKE it FROM PUBLIC; then grant it to the roles that need it",
        )
    elif not foreign:
        yield ok("privileges", "nothing is granted to PUBLIC")


def _transport(connection: Connection, plan: installation.Plan) -> Iterator[Finding]:
    if plan.calls.transport == "none":
        way_out = (
            "'pgembed extension install --transport dblink' writes another extension"
            if plan.is_extension
            else "'pgembed install --transport auto' changes it"
        )
        yield ok(
            "transport",
            "none, by your choice: SQL functions cannot ask a worker to embed a text; "
            + way_out,
        )
    elif plan.transport == "none":
        yield warning(
            "transport",
            "without dblink SQL functions cannot ask a worker to embed a text",
            "let a superuser run 'CREATE EXTENSION dblink', then run 'pgembed install'",
        )
    elif plan.transport == "plpython":
        yield from _sockets(connection, plan)
    elif not _dblink_is_private(connection):
        yield warning(
            "transport",
            "others may execute dblink, so each call opens a connection of its own",
            "REVOKE EXECUTE on dblink's functions FROM PUBLIC: calls are then faster",
        )
    else:
        yield ok("transport", "dblink")


def _sockets(connection: Connection, plan: installation.Plan) -> Iterator[Finding]:
    """Look for sockets with the server's eyes; nobody else may be allowed to."""
    row = fetch_one(connection, "SELECT pg_catalog.to_regproc('pgembed._talk')")
    if row[0] is None:  # another transport is installed, which was reported already
        return
    (trouble,) = fetch_one(
        connection, "SELECT trouble FROM pgembed._talk('look', patience => 1)"
    )
    if trouble is None:
        yield ok("transport", f"plpython, by a socket in {plan.calls.socket_dir}")
    else:
        yield warning(
            "transport",
            f"plpython, but no worker can be reached: {trouble}",
            "start one on the server's machine, which shares the folder, or run "
            f"'pgembed {'extension ' if plan.is_extension else ''}install --transport "
            "dblink' or with another --socket-dir"
            + (", and create the extension anew" if plan.is_extension else ""),
        )


def _dblink_is_private(connection: Connection) -> bool:
    function = "pgembed._dblink_is_private()"  # absent from a schema without calls
    row = fetch_one(connection, "SELECT pg_catalog.to_regprocedure(%s)", (function,))
    if row[0] is None:
        return True
    return bool(fetch_one(connection, f"SELECT {function}".encode())[0])


def _workers(connection: Connection) -> Iterator[Finding]:
    rows = fetch_all(
        connection,
        """
        SELECT role, pg_catalog.count(*), pg_catalog.array_agg(DISTINCT version)
        FROM pgembed.worker
        WHERE seen_at > pg_catalog.now() - interval '1 minute'
        GROUP BY role ORDER BY role
        """,
    )
    missing = {"embed", "calls"} - {row[0] for row in rows}
    if missing:
        what = {"embed": "embeds rows", "calls": "answers pgembed.embed()"}
        yield warning(
            "workers",
            "no process " + " or ".join(what[role] for role in sorted(missing)),
            "start one with 'pgembed worker'",
        )
    else:
        counts = ", ".join(f"{count} for {role}" for role, count, _ in rows)
        yield ok("workers", f"processes: {counts}")
    silent = fetch_one(
        connection,
        """
        SELECT pg_catalog.count(*),
            pg_catalog.min(pg_catalog.concat(host, ', pid ', pid))
        FROM pgembed.worker
        WHERE seen_at <= pg_catalog.now() - interval '1 minute'
        """,
    )
    if silent[0]:
        yield warning(
            "workers",
            f"{silent[0]} have not been heard of for a minute (one on {silent[1]})",
            "if they were killed, the next worker forgets them after five minutes; if "
            "they run, look at their logs",
        )
    others = {version for row in rows for version in row[2]} - {__version__}
    if others:
        yield warning(
            "workers",
            f"some run pgembed {', '.join(sorted(others))}, this is {__version__}",
            "restart them with the installed version",
        )


def _complete(models: list[Finding]) -> list[str]:
    return [m.subject.removeprefix("model ") for m in models if m.level == "ok"]


def _models(connection: Connection) -> Iterator[Finding]:
    rows = fetch_all(
        connection,
        """
        SELECT m.name, m.source, pg_catalog.bool_and(coalesce(b.bytes, 0) = f.bytes)
        FROM pgembed.model AS m
        LEFT JOIN pgembed.model_file AS f ON f.model = m.name
        LEFT JOIN LATERAL (
            SELECT pg_catalog.sum(pg_catalog.octet_length(c.data)) AS bytes
            FROM pgembed.blob_chunk AS c WHERE c.sha256 = f.sha256
        ) AS b ON true
        GROUP BY m.name ORDER BY m.name
        """,
    )
    if not rows:
        yield warning("models", "there is none", "add one with 'pgembed model add'")
    for name, source, complete in rows:
        if complete:
            yield ok(f"model {name}", "its files are complete")
        else:
            yield error(
                f"model {name}",
                "parts of its files are missing in the database",
                f"add it again, with the options that it has, which puts them back: "
                f"pgembed model add {shlex.quote(name)} {shlex.quote(source)}",
            )
