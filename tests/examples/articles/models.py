"""The models of the example: articles with authors, searchable by meaning."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from pgembed.sqlalchemy import Embedding


class Base(DeclarativeBase):
    """The base of the models."""


class Author(Base):
    """Who writes articles."""

    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Article(Base):
    """A text; its vector follows whenever title or body change."""

    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str]
    year: Mapped[int]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()

    embedding = Embedding("{title}: {body}", model="minilm")
    passages = Embedding("body", model="minilm", chunk_tokens=64, chunk_overlap=8)
