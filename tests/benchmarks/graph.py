"""A table like a knowledge graph, and hybrid queries like those asked of one.

Entities belong to clusters; their types, genres and years go with the cluster, types
and clusters are zipf-distributed, and so is what is asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgembed.postgres.connection import Connection

Array = NDArray[Any]
Float32 = NDArray[np.float32]

_TYPES = 12
_GENRES = 40
_COUNTRIES = 30
_LATENT = 24
_BLOCK = 50_000
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Entities: vectors float32 (n, d) of length 1, and their attributes (n,)."""

    vectors: Float32
    clusters: Array
    types: Array
    genres: Array
    artists: Array
    years: Array
    countries: Array
    popularity: Array


def zipf(random: np.random.Generator, kinds: int, size: int, s: float = 1.0) -> Array:
    """Return *size* numbers below *kinds*, the smaller the more frequent."""
    weights = 1.0 / np.arange(1, kinds + 1) ** s
    return random.choice(kinds, size, p=weights / weights.sum())


class Generator:
    """Makes entities and queries; the same seed makes the same."""

    def __init__(
        self,
        rows: int,
        dimensions: int,
        seed: int = 7,
        *,
        clusters: int | None = None,
        local: float = 0.0,
    ) -> None:
        random = np.random.default_rng(seed)
        self.rows, self.dimensions, self.random = rows, dimensions, random
        self.local = local
        n = clusters or max(20, rows // 1000)
        self.centres = random.standard_normal((n, dimensions)).astype(np.float32)
        basis = random.standard_normal((_LATENT, dimensions)) / np.sqrt(_LATENT)
        self.basis = basis.astype(np.float32)
        self.cluster_type = zipf(random, _TYPES, n)
        self.cluster_genre = zipf(random, _GENRES, n)
        self.cluster_year = random.integers(1950, 2020, n)

    def vectors(self, clusters: Array) -> Float32:
        """Return vectors of length 1 around the centres of *clusters* (n,)."""
        random, n = self.random, len(clusters)
        latent = random.standard_normal((n, _LATENT), np.float32) @ self.basis
        noise = random.standard_normal((n, self.dimensions), np.float32)
        found = self.centres[clusters] + latent + 0.2 * noise
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found, np.float32)

    def graph(self) -> Graph:
        """Return the entities."""
        random, n = self.random, self.rows
        clusters = zipf(random, len(self.centres), n, 0.5)
        return Graph(
            np.concatenate(
                [self.vectors(part) for part in np.split(clusters, _cuts(n))]
            ),
            clusters,
            self._mostly(self.cluster_type[clusters], zipf(random, _TYPES, n), 0.85),
            self._mostly(self.cluster_genre[clusters], zipf(random, _GENRES, n), 0.7),
            zipf(random, max(100, n // 50), n, 0.8),
            self.cluster_year[clusters] + random.integers(-8, 9, n),
            zipf(random, _COUNTRIES, n),
            random.random(n).astype(np.float32),
        )

    def _mostly(self, usual: Array, other: Array, share: float) -> Array:
        return np.where(self.random.random(len(usual)) < share, usual, other)

    def queries(self, count: int) -> tuple[Float32, list[dict[str, Any] | None]]:
        """Return vectors (count, d) from hot clusters, and a filter for each.

        A share *local* of those from a cluster have the same one, which asks for what
        does not go with clusters.
        """
        clusters = zipf(self.random, len(self.centres), count, 1.0)
        vectors = self.vectors(clusters)
        filters = [_filters(self.random, self, int(c)) for c in clusters]
        return vectors, filters


def _cuts(n: int) -> list[int]:
    return list(range(_BLOCK, n, _BLOCK))


def _filters(
    random: np.random.Generator, made: Generator, cluster: int
) -> dict[str, Any] | None:
    """One of ten templates with one of a few constants, which suit the cluster."""
    kind = label("type", int(min(made.cluster_type[cluster], 4)))
    genre = label("genre", int(min(made.cluster_genre[cluster], 5)))
    year = int(made.cluster_year[cluster] // 20 * 20)
    templates: list[dict[str, Any] | None] = [
        None,
        {"type": kind},
        {"type": kind, "genre": genre},
        {"genre": genre},
        {"year": {"gte": year}},
        {"type": kind, "year": {"between": [year, year + 20]}},
        {"country": [label("country", i) for i in (0, 2, 5)]},
        {"popularity": {"gt": 0.9}},
        {"artist": {"lt": 5}},
        {"type": kind, "popularity": {"gt": 0.5}, "country": label("country", 1)},
    ]
    if made.local and random.random() < made.local:
        return templates[6 + cluster % 3]
    return templates[int(zipf(random, len(templates), 1, 0.5)[0])]


def label(kind: str, number: int) -> str:
    """Return the name of a type, genre or country; names of a kind are as long."""
    return f"{kind}_{number:02d}"


def load(connection: Connection, table: str, graph: Graph) -> None:
    """Create *table* with a primary key, indexes on its attributes, and statistics."""
    n, d = graph.vectors.shape
    name = sql.Identifier(table)
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} (id bigint NOT NULL, type text NOT NULL, "
            "genre text NOT NULL, country text NOT NULL, artist int NOT NULL, "
            "year int NOT NULL, popularity real NOT NULL, v vector({}) NOT NULL)"
        ).format(name, sql.Literal(d))
    )
    copy_in = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(name)
    with connection.cursor().copy(copy_in) as copy:
        copy.write(_HEADER)
        for start in range(0, n, _BLOCK):
            copy.write(_rows(graph, start, min(n, start + _BLOCK)))
        copy.write(b"\xff\xff")
    for statement in (
        "ALTER TABLE {} ADD PRIMARY KEY (id)",
        "CREATE INDEX ON {} (type, genre)",
        "CREATE INDEX ON {} (artist)",
        "VACUUM ANALYZE {}",
    ):
        connection.execute(sql.SQL(statement).format(name))


def _rows(graph: Graph, start: int, end: int) -> bytes:
    d = graph.vectors.shape[1]
    part = slice(start, end)
    fields: list[tuple[str, str, Array]] = [
        ("id", ">i8", np.arange(start, end)),
        ("type", "S7", _labels("type", graph.types[part])),
        ("genre", "S8", _labels("genre", graph.genres[part])),
        ("country", "S10", _labels("country", graph.countries[part])),
        ("artist", ">i4", graph.artists[part]),
        ("year", ">i4", graph.years[part]),
        ("popularity", ">f4", graph.popularity[part]),
    ]
    layout: list[Any] = [("count", ">i2")]
    for name, dtype, _ in fields:
        layout += [(f"{name}_size", ">i4"), (name, dtype)]
    layout += [("size", ">i4"), ("dimensions", ">i2"), ("zero", ">i2")]
    layout += [("v", ">f4", (d,))]
    rows = np.zeros(end - start, layout)
    rows["count"] = len(fields) + 1
    for name, dtype, values in fields:
        rows[f"{name}_size"] = np.dtype(dtype).itemsize
        rows[name] = values
    rows["size"], rows["dimensions"] = 4 + 4 * d, d
    rows["v"] = graph.vectors[part]
    return rows.tobytes()


def _labels(kind: str, numbers: Array) -> Array:
    names = np.array([label(kind, i).encode() for i in range(int(numbers.max()) + 1)])
    return np.asarray(names[numbers])
