"""embed_batch of a thousand short texts, over the bare loop of the same batches."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

from pgembed.models.session import Model
from pgembed.worker.calls import SLICE_TOKENS
from tests.benchmarks.calls.calling import Caller


def measure(
    model: Model, callers: dict[str, Caller], texts: list[str], rounds: int
) -> None:
    """Embed all texts in turns, and print a table."""
    actions: dict[str, Callable[[], object]] = {
        "bare loop": lambda: model.embed(texts, batch_tokens=SLICE_TOKENS)
    }
    for name, caller in callers.items():
        actions[name] = functools.partial(caller.embed_batch, texts)
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            taken[name].append(time.perf_counter() - started)
    bare = taken["bare loop"]
    title = f"{len(texts)} texts, ms"
    print(f"{title:18}{'best':>8}{'median':>8}{'':8}{'over bare':>12}")
    for name, values in taken.items():
        best, median = min(values) * 1000, statistics.median(values) * 1000
        over = statistics.median(a / b - 1 for a, b in zip(values, bare, strict=True))
        row = f"{name:18}{best:8.0f}{median:8.0f}{'':8}"
        print(row + (f"{over:12.1%}" if values is not bare else ""))
