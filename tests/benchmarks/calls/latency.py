"""Calls of embed_query one by one, in milliseconds over session.run."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from pgembed.models.session import Model
from tests.benchmarks.calls.calling import Caller
from tests.benchmarks.embed_query import p95, timed

_TURN = 20


def measure(model: Model, callers: dict[str, Caller], texts: list[str]) -> None:
    """Ask every text once, in turns, and print a table."""
    actions: dict[str, Callable[[str], object]] = {
        "session.run": lambda text: model.embed([text], "query")
    }
    actions |= {name: caller.embed_query for name, caller in callers.items()}
    _show(_in_turns(texts, actions))
    caller = next(iter(callers.values()))
    print(_row("SELECT 1", _empty_queries(model, caller, texts)))


def _in_turns(
    texts: list[str], actions: dict[str, Callable[[str], object]]
) -> dict[str, list[float]]:
    """Return each action's milliseconds on each text, taken in turns of some texts.

    Not of one: each would find the caches full of the others' copies of the model.
    """
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for start in range(0, len(texts), _TURN):
        for name, action in actions.items():
            action("the first of a turn finds cold caches")
            taken[name] += [timed(action, t) for t in texts[start : start + _TURN]]
    return taken


def _empty_queries(model: Model, caller: Caller, texts: list[str]) -> list[float]:
    """Return the milliseconds of ``SELECT 1``: no call takes less.

    Each follows a run of the model, and finds the caches as a call does.
    """

    def ask(query: str) -> object:
        return caller.connection.execute(query, binary=True).fetchone()

    taken = []
    for text in texts:
        model.embed([text], "query")
        taken.append(timed(ask, "SELECT 1"))
    return taken


def _show(taken: dict[str, list[float]]) -> None:
    """Print a row for each way, and what it adds to the model, text by text."""
    print(f"{'one text, ms':18}{'p10':>8}{'median':>8}{'p95':>8}{'over bare':>12}")
    bare = taken["session.run"]
    for name, values in taken.items():
        over = statistics.median(a - b for a, b in zip(values, bare, strict=True))
        print(_row(name, values) + (f"{over:12.2f}" if values is not bare else ""))


def _row(name: str, values: list[float]) -> str:
    p10, median = statistics.quantiles(values, n=10)[0], statistics.median(values)
    return f"{name:18}{p10:8.2f}{median:8.2f}{p95(values):8.2f}"
