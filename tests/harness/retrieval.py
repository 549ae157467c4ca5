"""Retrieval test collections in BEIR layout, and how good a ranking of one is."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclasses.dataclass(frozen=True)
class Collection:
    """Documents and queries by id, and the relevance of some pairs of them."""

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]


def data_folder(name: str) -> Path:
    """Return a folder of test data; skip the test, saying where it was looked for.

    PGEMBED_TEST_DATA names another place than ../shared/data.
    """
    root = Path(os.environ.get("PGEMBED_TEST_DATA") or _BESIDE_THE_REPOSITORY)
    if not (root / name).is_dir():
        pytest.skip(f"no test data at {root / name}: set PGEMBED_TEST_DATA")
    return root / name


def cranfield() -> Collection:
    """Return the Cranfield collection: title and text of each document in one."""
    folder = data_folder("cranfield")
    documents = {
        row["_id"]: f"{row['title']} {row['text']}"
        for row in _json_lines(folder / "corpus.jsonl")
    }
    queries = {row["_id"]: row["text"] for row in _json_lines(folder / "queries.jsonl")}
    relevance: dict[str, dict[str, int]] = {}
    with (folder / "qrels.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            grades = relevance.setdefault(row["query-id"], {})
            grades[row["corpus-id"]] = max(int(row["score"]), 0)
    return Collection(documents, queries, relevance)


def product_titles() -> list[str]:
    """Return the titles of the products of one shop."""
    with (data_folder("products") / "walmart.csv").open(newline="") as file:
        return [row["title"] for row in csv.DictReader(file)]


def ndcg(
    collection: Collection,
    documents: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    k: int = 10,
) -> float:
    """Return the mean nDCG@k of a ranking by inner product.

    documents and queries are float32 (n, d), in the collection's order.
    """
    ids = list(collection.documents)
    ranked = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]
    found = {
        query: [ids[i] for i in best]
        for query, best in zip(collection.queries, ranked, strict=True)
    }
    return ranking_ndcg(collection, found, k)


def ranking_ndcg(
    collection: Collection, found: Mapping[str, Sequence[str]], k: int = 10
) -> float:
    """Return the mean nDCG@k over the queries that have a relevant document.

    *found* are the ids of documents, best first, by the id of the query.
    """
    scores = []
    for query, best in found.items():
        grades = collection.relevance.get(query, {})
        ideal = _gain(sorted(grades.values(), reverse=True)[:k])
        if ideal:
            scores.append(_gain([grades.get(i, 0) for i in best[:k]]) / ideal)
    return float(np.mean(scores))


def _gain(grades: list[int]) -> float:
    return float(sum(g / np.log2(i + 2) for i, g in enumerate(grades)))


def _json_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
