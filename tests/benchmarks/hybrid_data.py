"""What the benchmark of hybrid search searches: rows, filters, queries, answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, K = 128, 10

Matrix = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Items:
    """The rows: vectors (n, d) of length 1, and their attributes (n,)."""

    vectors: Matrix
    category: NDArray[np.int64]
    price: NDArray[np.float64]
    year: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Query:
    """A vector under a filter, and the ids of the rows that answer it."""

    vector: str
    shape: str
    filter: Mapping[str, Any]
    where: str
    truth: frozenset[int]


def make_items(rows: int, rng: np.random.Generator) -> Items:
    """Return rows around 120 centres of unequal size, each flat in its own way.

    Half of the categories and of a row's price follow its cluster.
    """
    sizes = rng.dirichlet(np.full(120, 2.0))
    cluster = rng.choice(120, rows, p=sizes)
    centres = rng.standard_normal((120, WIDTH), dtype=np.float32)
    axes = rng.standard_normal((120, 24, WIDTH), dtype=np.float32) / np.sqrt(24)
    vectors = np.empty((rows, WIDTH), dtype=np.float32)
    for c in range(120):
        own = np.flatnonzero(cluster == c)
        place = rng.standard_normal((len(own), 24), dtype=np.float32)
        noise = rng.standard_normal((len(own), WIDTH), dtype=np.float32)
        vectors[own] = centres[c] + 0.8 * place @ axes[c] + 0.3 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    popular = 1 / np.arange(1, 51) ** 0.9
    category = np.where(
        rng.random(rows) < 0.5,
        (cluster * 7) % 50,
        rng.choice(50, rows, p=popular / popular.sum()),
    )
    level = rng.normal(0, 0.5, 120)[cluster]
    price = np.exp(3.6 + level + rng.normal(0, 0.7, rows)).round(2).astype(np.float64)
    return Items(vectors, category, price, rng.integers(1990, 2026, rows))


def make_filters(rng: np.random.Generator) -> list[tuple[str, dict[str, Any], float]]:
    """Return the filters that recur: shape, filter, and how often."""
    hot, cold = range(8), range(8, 50)
    found: list[tuple[str, dict[str, Any], float]] = []
    found += [("category", {"category": c}, 4) for c in hot]
    found += [("category", {"category": c}, 0.8) for c in rng.choice(cold, 10, False)]
    for c in hot:
        year = int(rng.choice([2005, 2012, 2018, 2023]))
        found.append(
            ("category, year", {"category": c, "year": {"gte": year}}, 2),
        )
    for c in hot:
        low, high = rng.choice([5, 20, 60], 1)[0], rng.choice([80, 120], 1)[0]
        between = {"gte": int(low), "lt": int(high)}
        found.append(("category, price", {"category": c, "price": between}, 1.5))
    found += [("price <", {"price": {"lt": p}}, 2) for p in (5, 8, 12, 16)]
    for low, high in ((150, 160), (100, 120), (300, 1000)):
        between = {"gte": low, "lt": high}
        found.append(("price range", {"price": between}, 2))
    found += [("year", {"year": y}, 2) for y in (2025, 2024, 1999)]
    found.append(("year", {"year": {"gte": 2021}}, 3))
    for low, year in ((90, 2020), (40, 2025)):
        where = {"price": {"gte": low}, "year": {"gte": year}}
        found.append(("price, year", where, 2))
    rare = {"category": 44, "year": {"gte": 2003, "lt": 2006}}
    found.append(("category, year", rare, 1))
    for some in ([9, 17, 30], [1, 3], [40, 41, 42, 43, 44]):
        found.append(("categories", {"category": some}, 2))
    return [
        (shape, json.loads(json.dumps(f, default=int)), weight)
        for shape, f, weight in found
    ]


def passing(items: Items, where: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return which rows pass a filter, (n,)."""
    passes = np.ones(len(items.year), dtype=bool)
    for column, terms in where.items():
        values = getattr(items, column)
        if not isinstance(terms, dict):
            passes &= np.isin(values, terms)
            continue
        passes &= values >= terms.get("gte", -np.inf)
        passes &= values < terms.get("lt", np.inf)
    return passes


def as_sql(where: Mapping[str, Any]) -> str:
    """Return a filter as one writes it after WHERE."""
    words = {"lt": "<", "gte": ">="}
    parts = []
    for column, terms in where.items():
        if isinstance(terms, list):
            parts.append(f"{column} IN ({', '.join(map(str, terms))})")
        elif isinstance(terms, dict):
            parts += [f"{column} {words[w]} {value}" for w, value in terms.items()]
        else:
            parts.append(f"{column} = {terms}")
    return " AND ".join(parts)


def make_queries(items: Items, count: int, rng: np.random.Generator) -> list[Query]:
    """Return queries near rows of the table, each under one of the filters."""
    filters = make_filters(np.random.default_rng(3))
    weights = np.array([weight for _, _, weight in filters])
    chosen = rng.choice(len(filters), count, p=weights / weights.sum())
    near = items.vectors[rng.integers(0, len(items.vectors), count)]
    noise = rng.standard_normal((count, WIDTH), dtype=np.float32)
    vectors = (near + 0.04 * noise).astype(np.float32)
    queries: list[Query | None] = [None] * count
    for number, (shape, where, _) in enumerate(filters):
        passes = np.flatnonzero(passing(items, where))
        for i in np.flatnonzero(chosen == number):
            text = "[" + ",".join(f"{x:.6g}" for x in vectors[i]) + "]"
            truth = nearest(items, passes, vectors[i])
            queries[i] = Query(text, shape, where, as_sql(where), truth)
    return [query for query in queries if query is not None]


def nearest(items: Items, passes: NDArray[np.int64], vector: Matrix) -> frozenset[int]:
    """Return the ids of the k rows among *passes* with the largest cosine."""
    scores = items.vectors[passes] @ vector
    best = np.argpartition(-scores, min(K, len(scores)) - 1)[:K]
    return frozenset(passes[best].tolist())
