"""The models of the search tests."""

from __future__ import annotations

import datetime
import decimal
import enum

from sqlalchemy import ForeignKey, Numeric, String
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from pgembed.sqlalchemy import Embedding


class Base(DeclarativeBase):
    """The base of the models."""


class State(enum.Enum):
    """A native enum."""

    DRAFT = "draft"
    PUBLIC = "public"


class Author(Base):
    """Who wrote it."""

    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country: Mapped[str | None]
    articles: Mapped[list[Article]] = relationship(back_populates="author")


class Article(Base):
    """A table with a column of many kinds."""

    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(40))
    body: Mapped[str | None]
    year: Mapped[int]
    price: Mapped[decimal.Decimal] = mapped_column(Numeric(10, 2))
    state: Mapped[State]
    labels: Mapped[list[str]] = mapped_column(ARRAY(String))
    written: Mapped[datetime.datetime]
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("article.id"))

    author: Mapped[Author | None] = relationship(back_populates="articles")
    tags: Mapped[list[Tag]] = relationship()
    parent: Mapped[Article | None] = relationship(remote_side="Article.id")

    body_embedding = Embedding("body", model="tiny", index="none")

    @hybrid_property
    def is_old(self) -> bool:
        """Whether it is of before 2000."""
        return self.year < 2000


class Tag(Base):
    """A tag of an article: a composite key, and many of them."""

    __tablename__ = "tag"

    article_id: Mapped[int] = mapped_column(ForeignKey("article.id"), primary_key=True)
    word: Mapped[str] = mapped_column(primary_key=True)
