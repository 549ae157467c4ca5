"""A search page over HTTP, with nothing but WSGI: GET /?q=solar+sails&since=2020."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy import Engine
from sqlalchemy.orm import Session, joinedload

from pgembed.sqlalchemy import search
from tests.examples.articles.models import Article


def find(session: Session, words: str, since: int, k: int = 5) -> list[dict[str, Any]]:
    """Return the articles since a year that are nearest to these words."""
    statement = (
        search(Article.embedding, words, k=k)
        .where(Article.year >= since)
        .options(joinedload(Article.author))
    )
    return [
        {
            "title": article.title,
            "author": article.author.name,
            "year": article.year,
            "distance": round(distance, 3),
        }
        for article, distance in session.execute(statement)
    ]


def application(engine: Engine) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application; serve it with wsgiref, gunicorn or the like."""

    def respond(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = parse_qs(environ.get("QUERY_STRING", ""))
        with Session(engine) as session:
            found = find(
                session, query["q"][0], since=int(query.get("since", ["0"])[0])
            )
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(found, indent=1).encode()]

    return respond
