"""pgembed search."""

from __future__ import annotations

import json
from typing import Any

import click
from psycopg import sql

from pgembed.cli import options, output
from pgembed.errors import EmbeddingError
from pgembed.postgres.connection import Connection, connect


@click.command()
@click.argument("embedding")
@click.argument("query")
@options.dsn
@options.as_json
@click.option("-k", type=int, default=10, show_default=True, help="Rows to return.")
@click.option("--filter", "filter_json", help='JSON, as {"price": {"lt": 100}}.')
@click.option("--where", help="SQL, as one writes it after WHERE.")
@click.option("--mode", default="auto", show_default=True, help="auto, exact or index.")
@click.option("--explain", is_flag=True, help="Show how it is done, not the rows.")
def search(
    embedding: str,
    query: str,
    dsn: str | None,
    as_json: bool,
    explain: bool,
    **arguments: Any,
) -> None:
    """Search EMBEDDING for the rows nearest to the text QUERY.

    The text becomes a vector in a running worker. --filter is data and safe to take
    from anyone; --where is SQL and runs with your rights.
    """
    options.check_filter(arguments["filter_json"])
    parameters = {**arguments, "embedding": embedding, "query": query}
    with connect(options.settings(dsn=dsn).dsn, purpose="search") as connection:
        rows = output.query(
            connection, _statement(connection, embedding, explain=explain), parameters
        )
    if explain:
        click.echo(json.dumps(rows[0]["explain_search"], indent=2))
    else:
        output.show(rows, as_json=as_json, empty="no rows", rounded=["distance"])


def _statement(
    connection: Connection, embedding: str, *, explain: bool
) -> sql.Composed:
    rows = output.query(
        connection,
        "SELECT n.nspname, c.relname, ARRAY(SELECT attname::text FROM pg_attribute a "
        "WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
        "AND NOT EXISTS (SELECT FROM pgembed.embedding AS o "
        "WHERE o.target = a.attrelid AND o.target_column = a.attname) "
        "ORDER BY a.attnum) AS columns "
        "FROM pgembed._find_embedding(%s) AS e "
        "JOIN pg_class AS c ON c.oid = e.source::oid "
        "JOIN pg_namespace AS n ON n.oid = c.relnamespace",
        [embedding],
    )
    if not rows:
        raise EmbeddingError(f"the source of embedding {embedding!r} was dropped")
    table = rows[0]["relname"]
    call = sql.SQL(
        "pgembed.{function}(NULL::{table}, %(query)s::text, k => %(k)s::int, "
        "filter => %(filter_json)s::jsonb, predicate => %(where)s, "
        "embedding => %(embedding)s, mode => %(mode)s)"
    ).format(
        function=sql.Identifier("explain_search" if explain else "search"),
        table=_quoted(rows[0]["nspname"], table),
    )
    if explain:
        return sql.SQL("SELECT {} AS explain_search").format(call)
    columns = sql.SQL(", ").join(
        sql.SQL("(s.item).{} AS {}").format(
            _quoted(c), _quoted(f"{table}.{c}" if c == "distance" else c)
        )
        for c in rows[0]["columns"]
    )
    return sql.SQL("SELECT s.distance, {} FROM {} AS s").format(columns, call)


def _quoted(*names: str) -> sql.SQL:
    """Return an identifier for a statement with parameters, where % is doubled."""
    return sql.SQL(sql.Identifier(*names).as_string().replace("%", "%%"))
