"""What int8 weights do to MiniLM: cosines, retrieval and speed beside float32.

python -m tests.benchmarks.model_precision [--threads N] [--rounds N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pgembed.models.session import Model
from tests.harness.minilm import minilm_candidate
from tests.harness.retrieval import Collection, cranfield, ndcg, product_titles

SENTENCES = (
    "A man is eating food.",
    "Someone is having a meal",
    "The girl is carrying a baby",
    "stock markets fell sharply today",
)


def main() -> None:
    """Print one column per precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts")
    arguments = parser.parse_args()
    models = {
        "float32": load(quantize=False, threads=arguments.threads),
        "int8": load(quantize=True, threads=arguments.threads),
    }
    texts = cranfield()
    documents = {
        name: model.embed(list(texts.documents.values()))
        for name, model in models.items()
    }
    columns = {n: quality(models[n], texts, documents[n]) for n in models}
    cosines = (documents["float32"] * documents["int8"]).sum(axis=1)
    columns["int8"]["cosine to float32, mean"] = float(cosines.mean())
    columns["int8"]["cosine to float32, lowest"] = float(cosines.min())
    for name, rows in speed(models, texts, arguments.rounds).items():
        columns[name].update(rows)
    show(columns)


def load(*, quantize: bool, threads: int) -> Model:
    """Return MiniLM in one of the two precisions."""
    candidate = minilm_candidate(quantize=quantize)
    return Model.load(
        candidate.files["model.onnx"],
        candidate.files["tokenizer.json"],
        candidate.options,
        threads=threads,
    )


def quality(
    model: Model, texts: Collection, documents: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Return cosines, nDCG, and how far a batch moves the vectors in it."""
    vectors = model.embed(SENTENCES)
    rows = {f"cosine {i}": float(vectors[i] @ vectors[0]) for i in (1, 2, 3)}
    queries = model.embed(list(texts.queries.values()), "query")
    rows["cranfield nDCG@10"] = ndcg(texts, documents, queries)
    titles = product_titles()[:64]
    together = model.embed(titles)
    alone = np.concatenate([model.embed([title]) for title in titles])
    moved = (together * alone).sum(axis=1)
    rows["cosine of a text alone to it in a batch, lowest"] = float(moved.min())
    return rows


def speed(
    models: dict[str, Model], texts: Collection, rounds: int
) -> dict[str, dict[str, float]]:
    """Return texts per second and CPU time; the models take turns, the best counts."""
    titles = product_titles()
    cases = {
        "product title": (titles[:1024], 1),
        "abstract": (list(texts.documents.values())[:128], 1),
        "single title": (titles[:32], 32),
    }
    best: dict[str, dict[str, float]] = {name: {} for name in models}
    for _ in range(rounds):
        for case, (some, calls) in cases.items():
            for name, model in models.items():
                wall, cpu = seconds(model, some, calls)
                rate, cost = f"{case}s/s", f"CPU ms a {case}"
                rows = best[name]
                rows[rate] = max(len(some) / wall, rows.get(rate, 0))
                rows[cost] = min(1000 * cpu / len(some), rows.get(cost, np.inf))
    return best


def seconds(model: Model, texts: Sequence[str], calls: int) -> tuple[float, float]:
    """Return the time on the clock and on the CPU to embed texts in so many calls."""
    size = len(texts) // calls
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(calls):
        model.embed(texts[i * size : (i + 1) * size], batch_tokens=2048)
    return time.perf_counter() - wall, time.process_time() - cpu


def show(columns: dict[str, dict[str, float]]) -> None:
    """Print the columns side by side."""
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    print(f"{'':48}" + "".join(f"{name:>10}" for name in columns))
    for row in rows:
        values = (column.get(row) for column in columns.values())
        cells = ("" if v is None else f"{v:.4g}" for v in values)
        print(f"{row:48}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
