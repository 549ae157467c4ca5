"""Statements in, keys and distances out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, Table, select
from sqlalchemy.exc import DataError

from pgembed.batch.execute import Batch, Options
from pgembed.batch.result import BatchResult
from pgembed.batch.rows import fetch
from pgembed.batch.source import Source, describe
from pgembed.batch.workload import Workload
from pgembed.errors import FilterError, VectorError
from pgembed.sqlalchemy.asked import Asked, Nearest
from pgembed.sqlalchemy.call import SearchedBy, SearchedEmbedding
from pgembed.sqlalchemy.ddl import explained
from pgembed.sqlalchemy.executor import Executor
from pgembed.sqlalchemy.search import Embedder, embedded

Float32 = NDArray[np.float32]


class Answers:
    """Answers statements on one connection."""

    def __init__(
        self,
        execute: Executor,
        options: Options,
        embedder: Embedder | Callable[[str], Any] | None,
    ) -> None:
        self._execute, self._options, self._embedder = execute, options, embedder
        self._names: dict[tuple[Table, str | None, str], str] = {}
        self._predicates: dict[Hashable, str | None] = {}

    def of(self, asked: Sequence[Asked]) -> list[Nearest]:
        """Return for each statement the keys and distances of the nearest rows."""
        groups: dict[tuple[str, float], list[int]] = {}
        for number, each in enumerate(asked):
            group = (self._embedding(each), each.recall)
            groups.setdefault(group, []).append(number)
        found: dict[int, Nearest] = {}
        for (embedding, recall), members in groups.items():
            part = [asked[i] for i in members]
            answer = self._batch(embedding, recall, part)
            found.update(zip(members, _lists(answer), strict=True))
        return [found[number] for number in range(len(asked))]

    def _embedding(self, asked: Asked) -> str:
        """The name of the embedding that is searched."""
        source, name = asked.shape.signature.source, asked.argument("embedding")
        options = asked.statement.get_execution_options()
        key = source, name, str(options.get("schema_translate_map"))
        if key not in self._names:
            query = select(SearchedEmbedding(source, name))
            self._names[key] = self._value(query, asked.statement)
        return self._names[key]

    def _predicate(self, asked: Asked) -> str | None:
        """The predicate of the search."""
        if asked.criteria not in self._predicates:
            final = self._execute.final(asked.statement)
            query = select(SearchedBy(final)).options(*final._with_options)
            self._predicates[asked.criteria] = self._value(query, final)
        return self._predicates[asked.criteria]

    def _value(self, query: Select[Any], like: Select[Any]) -> Any:
        """Return what *query* selects, translated as the statement *like* would be."""
        schemas = like.get_execution_options().get("schema_translate_map")
        if schemas is not None:
            query = query.execution_options(schema_translate_map=schemas)
        with explained(), _fitting():
            return self._execute.connection.scalar(query)

    def _batch(
        self, embedding: str, recall: float, asked: Sequence[Asked]
    ) -> BatchResult:
        predicates = [self._predicate(each) for each in asked]

        def run() -> BatchResult:
            driver = self._execute.driver
            source = describe(driver, embedding)
            workload = Workload.of(
                self._vectors(source, [each.query for each in asked]),
                [each.argument("filter") for each in asked],
                predicates,
                np.array([each.argument("k") for each in asked]),
            )
            options = dataclasses.replace(self._options, recall=recall)
            return Batch(driver, source, workload, options).run()

        return self._execute.blocking(run)

    def _vectors(self, source: Source, queries: Sequence[Any]) -> Float32:
        texts = list(dict.fromkeys(q for q in queries if isinstance(q, str)))
        known = dict(zip(texts, self._embed(source, texts), strict=True))
        vectors = [known[q] if isinstance(q, str) else q.values for q in queries]
        widths = {len(vector) for vector in vectors}
        if len(widths) > 1:
            raise VectorError(
                f"the queries for embedding {source.name!r} have "
                f"{', '.join(map(str, sorted(widths)))} dimensions, and the embedding "
                f"has {source.dimensions}: make them with the model that made it"
            )
        return np.stack(vectors)

    def _embed(self, source: Source, texts: list[str]) -> Sequence[Float32]:
        if not texts:
            return []
        if self._embedder is not None:
            return embedded(self._embedder, texts)
        rows = fetch(
            self._execute.driver,
            "SELECT pgembed._query_vector("  # noqa: S608 - names PostgreSQL quoted
            f"pg_catalog.pg_typeof(NULL::{source.relation}), t.content, $1) "
            "FROM pg_catalog.unnest($2::pg_catalog._text) WITH ORDINALITY "
            "AS t (content, place) ORDER BY t.place",
            [source.name, texts],
        )
        return [row[0] for row in rows]


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise FilterError(
            f"a value in the criteria does not fit its type: {error.orig}"
        ) from error


def _lists(answer: BatchResult) -> Iterator[Nearest]:
    """Yield keys and distances of each query."""
    rows = zip(
        answer.keys.tolist(),
        answer.distances.tolist(),
        answer.counts.tolist(),
        strict=True,
    )
    for keys, distances, count in rows:
        yield keys[:count], distances[:count]
